"""Server-sent events as they pass: whole ones only, and the usage in the tail found and taken out."""

from __future__ import annotations

import pytest

from citadel_gateway import sse as module
from citadel_gateway.sse import ERROR_EVENT, EventStream, event_data, find_usage

TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"


def figures(data: bytes) -> tuple[int, int, int] | None:
    found = find_usage(data)
    return None if found is None else (found.prompt, found.completion, found.cached)


class TestUsage:
    @pytest.mark.parametrize(
        ("data", "found"),
        [
            (b'{"usage":{"prompt_tokens":7,"completion_tokens":5}}', (7, 5, 0)),
            (b'{"usage" : { "prompt_tokens" : 7 } }', (7, 0, 0)),
            (b'{"usage":{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}', (7, 0, 4)),
            (b'{"usage":null}', None),
            (b'{"usage":{}}', None),
            (b"{}", None),
            # the last one counts, and what only reads like it does not
            (b'{"usage":{"prompt_tokens":1}}{"usage":{"prompt_tokens":2,"completion_tokens":3}}', (2, 3, 0)),
            (b'{"usage":{"prompt_tokens":1},"x":["usage"]}', (1, 0, 0)),
            (b'"usage":{"prompt_tokens":1}', (1, 0, 0)),
        ],
    )
    def test_what_a_client_is_charged(self, data: bytes, found: tuple[int, int, int] | None) -> None:
        assert figures(data) == found


class TestFeed:
    def test_whole_events_go_on_as_they_came(self) -> None:
        stream = EventStream(strip_usage=False)
        assert (stream.done, stream.failed, stream.failure, stream.events) == (False, False, b"", 0)
        assert stream.feed(TOKEN + TOKEN) == TOKEN + TOKEN
        assert (stream.events, stream.done, stream.failed, stream.usage) == (2, False, False, None)
        assert stream.feed(TOKEN + DONE) == TOKEN + DONE
        assert (stream.events, stream.done) == (3, True)

    @pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
    def test_however_it_is_cut(self, end: bytes) -> None:
        """No cut falls inside an event, so that a client never gets half of a character or of a JSON text."""
        whole = b'data: {"a":1}' + end + b'data: {"b":2}' + end
        for cut in range(1, len(whole)):
            stream = EventStream(strip_usage=False)
            first, second = stream.feed(whole[:cut]), stream.feed(whole[cut:])
            assert first in (b"", b'data: {"a":1}' + end), cut
            if end == b"\n\n":
                assert (first + second, stream.events) == (whole, 2)
                assert bool(first) == (cut >= 15)
            else:
                assert (first + second + stream._held).startswith(whole[: -len(end)])

    def test_the_shortest_event_goes_on_at_once(self) -> None:
        stream = EventStream(strip_usage=False)
        assert stream.feed(b"::\n\nda") == b"::\n\n"
        assert stream._held == b"da"

    @pytest.mark.parametrize("start", [b"\n\n", b":\n\n", b"::\n\n", b"\r\n\r\n"])
    def test_what_is_not_whole_waits(self, start: bytes) -> None:
        stream = EventStream(strip_usage=False)
        assert stream.feed(start + b"data") + stream.feed(b": x\n\n") == start + b"data: x\n\n"

    def test_windows_line_ends(self) -> None:
        stream = EventStream(strip_usage=False)
        assert stream.feed(b"data: x\r\n\r\ndata: y") == b"data: x\r\n\r\n"
        assert stream.feed(b"\r\n\r\n") == b"data: y\r\n\r\n"
        assert stream.feed(b"data: [DONE]\r\n\r\n") == b"data: [DONE]\r\n\r\n"
        assert (stream.done, stream.events) == (True, 2)
        mixed = EventStream(strip_usage=False)
        assert mixed.feed(b"data: x\r\n\r\ndata: y\n\ndata: z") == b"data: x\r\n\r\ndata: y\n\n"

    def test_an_event_without_end_does_not_fill_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_MOST_HELD", 8)
        stream = EventStream(strip_usage=False)
        assert stream.feed(b"data: xx") == b""
        assert stream.feed(b"y") == b"data: xxy"
        assert stream.feed(b"z\n\n") == b"z\n\n"
        assert module.EventStream(False).feed(b"data: far too long") == b"data: far too long"

    def test_the_usage_that_the_client_did_not_ask_for_is_taken_out(self) -> None:
        for strip, passed in ((True, TOKEN + DONE), (False, TOKEN + USAGE + DONE)):
            stream = EventStream(strip_usage=strip)
            assert stream.feed(TOKEN + USAGE + DONE) == passed
            assert stream.usage is not None
            assert (stream.usage.prompt, stream.usage.completion) == (7, 5)
            assert (stream.events, stream.done) == (1, True)

    def test_usage_beside_a_choice_stays(self) -> None:
        event = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n'
        stream = EventStream(strip_usage=True)
        assert stream.feed(event) == event
        assert stream.usage is not None
        assert (stream.usage.completion, stream.events) == (1, 1)

    def test_usage_with_windows_line_ends_is_read_and_left(self) -> None:
        stream = EventStream(strip_usage=True)
        event = USAGE.replace(b"\n\n", b"\r\n\r\n")
        assert stream.feed(event) == event
        assert stream.usage is not None
        assert stream.usage.prompt == 7
        nothing = b'data: {"usage":null}\r\n\r\n'
        assert stream.feed(nothing) == nothing
        assert stream.usage.prompt == 7  # the figure of before stands

    def test_an_error_of_the_model_server(self) -> None:
        stream = EventStream(strip_usage=False)
        event = ERROR_EVENT + b':{"message":"EngineCore"}}\n\n'
        assert stream.feed(TOKEN + event + DONE) == TOKEN + event + DONE
        assert (stream.failed, stream.failure) == (True, b'{"error":{"message":"EngineCore"}}')
        assert event_data(b"data: x\n\n") == b"x"
