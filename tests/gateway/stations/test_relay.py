"""Station 6, what is decided there: whose fault a failure was, what the client is told, what is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from citadel_gateway import relay
from citadel_gateway.endpoints import ENDPOINTS
from citadel_gateway.fleet import Replica
from citadel_gateway.relay import CallFailed
from citadel_gateway.sse import EventStream, Usage
from citadel_gateway.upstream import Kind, UpstreamError
from tests.gateway.harness import MESSAGES, running
from tests.gateway.simulator import Act
from tests.gateway.stations.parts import Clock, exchange_of, replicas_of


def replica_of() -> Replica:
    (replica,) = replicas_of({}, load_seconds=40.0)
    return replica


def error(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


def judged(failure: CallFailed) -> tuple[str, int, str, bool, bool, bool, int]:
    refusal = failure.refusal
    return failure.kind, refusal.status, refusal.code, failure.again, failure.blame, failure.counts, failure.doubt


class TestFailed:
    @pytest.mark.parametrize(
        ("kind", "judgement", "retry_after"),
        [
            # kind, status, code, again, blame, counts, doubt
            ("refused", ("refused", 503, "model_not_ready", True, False, False, 0), 40.0),
            ("timeout", ("timeout", 504, "upstream_timeout", False, True, True, 0), 1.0),
            ("local", ("local", 503, "gateway_overloaded", False, False, True, 0), 1.0),
            ("too_large", ("too_large", 503, "answer_too_large", False, False, True, 0), None),
            ("reset", ("reset", 503, "upstream_failed", True, False, True, 0), 1.0),
            ("protocol", ("protocol", 503, "upstream_failed", True, True, True, 0), 1.0),
        ],
    )
    def test_who_is_to_blame_and_whether_another_try_helps(
        self, clock: Clock, kind: Kind, judgement: tuple[Any, ...], retry_after: float | None
    ) -> None:
        replica = replica_of()
        failure = relay._failed(UpstreamError(kind, "x"), replica, 5.0)
        assert judged(failure) == judgement
        assert failure.refusal.retry_after == retry_after
        assert replica.state == ("loading" if kind == "refused" else "ready")

    def test_after_a_death_the_client_comes_back_when_the_model_does(self, clock: Clock) -> None:
        replica = replica_of()
        replica.dies()
        assert relay._failed(UpstreamError("reset", "x"), replica, 5.0).refusal.retry_after == 40.0


class TestTranslate:
    @pytest.mark.parametrize(
        ("status", "message", "judgement", "state"),
        [
            (429, "busy", ("saturated", 429, "upstream_saturated", True, False, True, 0), "ready"),
            (500, "after shutdown", ("stopping", 503, "model_not_ready", True, False, False, 0), "loading"),
            (
                500,
                "EngineCore encountered an issue. See",
                ("engine_died", 503, "upstream_failed", True, False, True, 0),
                "loading",
            ),
            (
                500,
                "told: EngineCore encountered an issue.",
                ("status_5xx", 503, "upstream_error", True, False, True, 500),
                "ready",
            ),
            (503, "", ("status_5xx", 503, "upstream_error", True, False, True, 503), "ready"),
            (401, "", ("misconfigured", 503, "upstream_misconfigured", False, False, True, 0), "ready"),
            (403, "", ("misconfigured", 503, "upstream_misconfigured", False, False, True, 0), "ready"),
            (405, "", ("misconfigured", 503, "upstream_misconfigured", False, False, True, 0), "ready"),
        ],
    )
    def test_what_only_the_operator_can_mend(
        self, status: int, message: str, judgement: tuple[Any, ...], state: str
    ) -> None:
        replica = replica_of()
        with pytest.raises(CallFailed) as caught:
            relay._translate(status, error(message), replica)
        assert judged(caught.value) == judgement
        assert replica.state == state

    def test_when_to_come_again(self, clock: Clock) -> None:
        for message, wait in (("after shutdown", 40.0), ("EngineCore encountered an issue.", 40.0), ("", 1.0)):
            with pytest.raises(CallFailed) as caught:
                relay._translate(500, error(message), replica_of())
            assert caught.value.refusal.retry_after == wait
        with pytest.raises(CallFailed) as caught:
            relay._translate(429, b"", replica_of())
        assert (caught.value.refusal.retry_after, caught.value.refusal.message) == (1.0, "phi is saturated.")
        near = replica_of()
        near.load_seconds = 0.5
        with pytest.raises(CallFailed) as caught:
            relay._translate(500, error("EngineCore encountered an issue."), near)
        assert caught.value.refusal.retry_after == 1.0

    @pytest.mark.parametrize(
        ("status", "body", "told"),
        [
            (400, error("no", param="n", code="odd"), ("no", "invalid_request_error", "n", "odd")),
            (400, error("no"), ("no", "invalid_request_error", None, "invalid_request_error")),
            (404, b"", ("The model server refused this.", "not_found_error", None, "not_found_error")),
            (
                400,
                error("the maximum context length is 5", code="odd"),
                ("the maximum context length is 5", "invalid_request_error", None, "context_length_exceeded"),
            ),
            # words of a 4xx are the client's own and mean nothing about the server
            (
                400,
                error("after shutdown"),
                ("after shutdown", "invalid_request_error", None, "invalid_request_error"),
            ),
            (
                499,
                error("EngineCore encountered an issue."),
                ("EngineCore encountered an issue.", "server_error", None, "server_error"),
            ),
        ],
    )
    def test_what_the_client_can_mend(self, status: int, body: bytes, told: tuple[Any, ...]) -> None:
        found = json.loads(relay._translate(status, body, replica_of()))["error"]
        assert (found["message"], found["type"], found["param"], found["code"]) == told

    @pytest.mark.parametrize(
        ("body", "read"),
        [
            (b"not json", ("", None, None)),
            (b"[1]", ("", None, None)),
            (b'{"error":"text"}', ("text", None, None)),
            (b'{"message":"flat","param":"n","code":"c"}', ("flat", "n", "c")),
            (b'{"error":{"message":5,"param":5,"code":400}}', ("", None, None)),
            (json.dumps({"error": "x" * 1001}).encode(), ("x" * 1000, None, None)),
        ],
    )
    def test_errors_of_any_shape(self, body: bytes, read: tuple[str, str | None, str | None]) -> None:
        assert relay._read_error(body) == read

    @pytest.mark.parametrize(
        ("code", "status"),
        [(400, 400), (399, 500), (422, 422), (599, 599), (600, 500), ("400", 500), (None, 500)],
    )
    def test_the_status_of_an_error_that_came_as_an_event(self, code: Any, status: int) -> None:
        assert relay._status_of(json.dumps({"error": {"code": code}}).encode()) == status
        for broken in (b"", b"[]", b"{}", b'{"error":[]}'):
            assert relay._status_of(broken) == 500

    def test_a_request_that_fails_alone(self) -> None:
        model = replica_of().model
        assert [relay.unfit(model, status).code for status in (503, 500)] == [
            "upstream_saturated",
            "request_fails_on_model",
        ]
        assert [relay.unfit(model, status).status for status in (503, 500)] == [503, 422]
        assert [relay.unfit(model, status).retry_after for status in (503, 500)] == [1.0, None]


class TestUsage:
    def test_the_models_figures(self) -> None:
        exchange, events = exchange_of(), EventStream(False)
        events.usage = Usage(7, 5, 3)
        relay._take_usage(exchange, events)
        assert (exchange.prompt_tokens, exchange.completion_tokens, exchange.cached_tokens) == (7, 5, 3)
        assert exchange.usage_exact

    def test_of_a_stream_cut_short_a_token_for_each_event(self) -> None:
        exchange, events = exchange_of(), EventStream(False)
        exchange.prompt_estimate, events.events = 20, 9
        relay._take_usage(exchange, events)
        assert (exchange.prompt_tokens, exchange.completion_tokens, exchange.usage_exact) == (20, 9, False)

    @pytest.mark.parametrize(("done", "failed", "good"), [(1, 0, True), (0, 1, True), (1, 1, True), (0, 0, False)])
    def test_a_stream_without_its_end_was_cut(self, done: int, failed: int, good: bool) -> None:
        events = EventStream(False)
        events.done, events.failed = bool(done), bool(failed)
        if good:
            relay._check_end(events)
        else:
            with pytest.raises(UpstreamError):
                relay._check_end(events)


def test_what_the_replica_is_sent() -> None:
    exchange = exchange_of(headers={b"traceparent": b"00-1", b"x-other": b"secret"}, body=b"{}")
    lines = relay.request_head(exchange, replica_of()).split(b"\r\n")
    assert lines[0] == b"POST " + ENDPOINTS["chat"].path.encode() + b" HTTP/1.1"
    assert lines[3:] == [
        b"x-request-id: " + exchange.id.encode(),
        b"content-length: 2",
        b"traceparent: 00-1",
        b"",
        b"",
    ]


@pytest.mark.anyio
class TestCall:
    """Before a simulated model."""

    async def test_a_whole_answer_is_bound_by_the_clients_patience_and_a_stream_is_not(self) -> None:
        async with running() as lab:
            lab.simulators["phi"].default = Act(delay=0.3)
            headers = {"x-request-timeout": "0.2"}
            assert (await lab.chat(headers=headers)).status_code == 504
            assert (await lab.stream(headers=headers))[-1] == "[DONE]"
            assert (await lab.chat()).status_code == 200

    async def test_what_the_model_refuses_is_no_answer_of_it(self) -> None:
        async with running() as lab:
            lab.simulators["phi"].default = Act(status=400, body=b'{"message":"no","usage":{"prompt_tokens":5}}')
            answer = await lab.chat()
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, "no")
            assert (answer.headers["x-should-retry"], answer.headers["content-type"]) == ("false", "application/json")
            await lab.settled()
            (record,) = lab.records()
            assert (record["error"], record["charged_tokens"]) == ("upstream_client_error", 0)

    async def test_a_stream_has_the_headers_of_every_answer_and_its_own(self) -> None:
        over = {"limits": {"tiers": {"default": {"requests_per_minute": 9}}}}
        async with running(over) as lab:
            answer = await lab.client.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": True})
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert (answer.headers["x-ratelimit-remaining-requests"], answer.headers["x-citadel-replica"]) == (
                "8",
                "phi",
            )
            assert answer.text.endswith("data: [DONE]\n\n")
