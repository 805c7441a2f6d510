"""Station 2: what a body says, how much it is taken for, and how the model gets it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from citadel_gateway.config import Config
from citadel_gateway.envelope import Envelope, fit, open_envelope, refit
from citadel_gateway.errors import Refusal
from citadel_gateway.exchange import Exchange
from citadel_gateway.fleet import Model
from tests.gateway.stations.parts import Clock, config_of, exchange_of, model_of, principal_of

HELLO = [{"role": "user", "content": "hello"}]
CONFIG: Config = config_of(server={"client_timeout": 100.0})
PLAIN: dict[str, Any] = {"defaults": {"max_tokens": None, "temperature": None}}


def opened(endpoint: str = "chat", headers: dict[bytes, bytes] | None = None, **body: Any) -> tuple[Exchange, Envelope]:
    exchange = exchange_of(endpoint, headers, json.dumps(body).encode())
    return exchange, open_envelope(exchange, CONFIG)


def fitted(settings: dict[str, Any] | None = None, endpoint: str = "chat", **body: Any) -> Exchange:
    """A request as the model gets it."""
    base: dict[str, Any] = {} if endpoint != "chat" else {"messages": HELLO}
    exchange, envelope = opened(endpoint, **{**base, **body})
    fit(exchange, envelope, model_of({"endpoints": ["chat", "completions", "embeddings"], **(settings or {})}))
    return exchange


def refusal_of(
    settings: dict[str, Any] | None = None, endpoint: str = "chat", **body: Any
) -> tuple[int, str, str | None]:
    with pytest.raises(Refusal) as caught:
        fitted(settings, endpoint, **body)
    return caught.value.status, caught.value.code, caught.value.param


def sent(exchange: Exchange) -> dict[str, Any]:
    data = json.loads(exchange.body)
    assert isinstance(data, dict)
    return data


class TestBody:
    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"", "empty_body"),
            (b"{", "invalid_json"),
            (b"[]", "invalid_json"),
            (b"{}", "missing_required_parameter"),
            (b'{"messages":null}', "missing_required_parameter"),
            (b'{"messages":"x"}', "invalid_type"),
            (b'{"messages":[]}', "empty_array"),
            (b'{"messages":["x"]}', "invalid_type"),
            (b'{"messages":[{"role":"user"},{"role":5}]}', "invalid_type"),
            (b'{"messages":[{"content":"x"}]}', "invalid_type"),
        ],
    )
    def test_what_no_model_would_take(self, body: bytes, code: str) -> None:
        with pytest.raises(Refusal) as caught:
            open_envelope(exchange_of(body=body), CONFIG)
        assert (caught.value.status, caught.value.code) == (400, code)

    @pytest.mark.parametrize(
        ("endpoint", "value", "code"),
        [
            ("completions", 5, "invalid_type"),
            ("completions", {"a": 1}, "invalid_type"),
            ("embeddings", "", "empty_array"),
            ("embeddings", [], "empty_array"),
            ("embeddings", 5, "invalid_type"),
            ("completions", "", None),
            ("completions", [], None),
        ],
    )
    def test_prompts_of_the_wrong_sort(self, endpoint: str, value: Any, code: str | None) -> None:
        body = {"prompt" if endpoint == "completions" else "input": value}
        if code is None:
            opened(endpoint, **body)
            return
        with pytest.raises(Refusal) as caught:
            opened(endpoint, **body)
        assert caught.value.code == code

    @pytest.mark.parametrize(("deep", "good"), [(127, True), (128, True), (129, False)])
    def test_how_deep_a_body_may_be(self, deep: int, good: bool) -> None:
        """Beyond it, whoever walks through the body would run out of stack."""
        nested = "[" * deep + "]" * deep
        for body in (
            f'{{"messages":{json.dumps(HELLO)},"x":{nested}}}',
            f'{{"x":{nested},"messages":{json.dumps(HELLO)}}}',
        ):
            exchange = exchange_of(body=body.encode())
            if good:
                open_envelope(exchange, CONFIG)
            else:
                with pytest.raises(Refusal) as caught:
                    open_envelope(exchange, CONFIG)
                assert (caught.value.code, caught.value.param) == ("invalid_json", "x")

    def test_objects_count_as_depth_too_and_breadth_does_not(self) -> None:
        deep: Any = {}
        for _ in range(128):
            deep = {"a": deep}
        with pytest.raises(Refusal):
            opened(messages=HELLO, x=deep)
        opened(messages=HELLO, x=[[]] * 500)

    @pytest.mark.parametrize(("value", "stream"), [(None, False), (True, True), (False, False)])
    def test_stream(self, value: bool | None, stream: bool) -> None:
        assert opened(messages=HELLO, stream=value)[0].stream is stream

    def test_stream_is_no_word_and_not_for_embeddings(self) -> None:
        for endpoint, body in (
            ("chat", {"messages": HELLO, "stream": "true"}),
            ("embeddings", {"input": "x", "stream": True}),
        ):
            with pytest.raises(Refusal) as caught:
                opened(endpoint, **body)
            assert (caught.value.status, caught.value.param) == (400, "stream")
        opened("embeddings", input="x", stream=False)


class TestSizes:
    @pytest.mark.parametrize(
        ("endpoint", "value", "prompts", "longest", "exact"),
        [
            ("chat", HELLO, [2], 5, False),
            ("chat", [{"role": "user", "content": "x" * 7}, {"role": "user", "content": "x" * 8}], [4], 15, False),
            ("chat", [{"role": "user", "content": [{"type": "text", "text": "x" * 40}]}], [11], 40, False),
            ("chat", [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}], [1], 1, False),
            ("chat", [{"role": "assistant", "content": None}], [1], 0, False),
            ("chat", [{"role": "assistant", "content": 5}], [1], 0, False),
            ("chat", [{"role": "user", "content": []}], [1], 0, False),
            ("chat", [{"role": "user", "content": ["ab", "abc", 5]}], [1], 3, False),
            ("completions", "x" * 8, [3], 8, False),
            ("completions", [], [1], 0, False),
            ("completions", ["x" * 8, "x" * 4], [3, 2], 8, False),
            ("completions", [5, 6, 7], [3], 0, True),
            ("completions", [[5, 6, 7], [8], 9], [3, 1, 1], 0, True),
            ("completions", ["x" * 8, 5], [3, 1], 8, False),
            ("embeddings", ["x" * 8], [3], 8, False),
            ("embeddings", [{"text": "x" * 8}], [3], 8, False),
        ],
    )
    def test_a_prompt(self, endpoint: str, value: Any, prompts: list[int], longest: int, exact: bool) -> None:
        """About four characters to a token; a token sent is a token."""
        key = {"chat": "messages", "completions": "prompt", "embeddings": "input"}[endpoint]
        envelope = opened(endpoint, **{key: value})[1]
        assert (envelope.prompts, envelope.longest, envelope.exact) == (prompts, longest, exact)

    @pytest.mark.parametrize(
        ("endpoint", "body", "asked", "by"),
        [
            ("chat", {}, None, "max_tokens"),
            ("chat", {"max_tokens": 5}, 5, "max_tokens"),
            ("chat", {"max_tokens": 0}, 0, "max_tokens"),
            ("chat", {"max_tokens": 5, "max_completion_tokens": 6}, 6, "max_completion_tokens"),
            ("chat", {"max_tokens": 5, "max_output_tokens": 7}, 5, "max_tokens"),
            ("completions", {"max_tokens": 5, "max_completion_tokens": 6}, 5, "max_tokens"),
            ("completions", {"max_tokens": None, "max_completion_tokens": 6}, 6, "max_completion_tokens"),
            ("embeddings", {"max_tokens": 5}, None, "max_tokens"),
        ],
    )
    def test_the_length_of_an_answer(self, endpoint: str, body: dict[str, Any], asked: int | None, by: str) -> None:
        base: dict[str, Any] = {"messages": HELLO, "prompt": "x", "input": "x"}
        envelope = opened(endpoint, **base, **body)[1]
        assert (envelope.asked, envelope.asked_by) == (asked, by)

    @pytest.mark.parametrize(("value", "status"), [(-1, 422), (1.5, 400), ("5", 400), (True, 400)])
    def test_a_length_that_is_none(self, value: Any, status: int) -> None:
        for key in ("max_tokens", "max_output_tokens"):
            with pytest.raises(Refusal) as caught:
                opened(messages=HELLO, **{key: value})
            assert (caught.value.status, caught.value.param) == (status, key)

    def test_what_is_reserved(self) -> None:
        assert fitted(max_tokens=10).max_tokens == 10
        assert fitted(max_tokens=10, n=3).max_tokens == 30
        assert fitted(None, "completions", prompt=["a", "b"], max_tokens=10, n=3).max_tokens == 60
        assert fitted(None, "completions", prompt=["x" * 8, "x" * 4]).prompt_estimate == 5
        assert fitted(None, "embeddings", input=["x" * 8, "x" * 4], max_tokens=9).max_tokens == 0


class TestFit:
    def test_tools_need_a_model_that_has_them(self) -> None:
        assert refusal_of(tools=[{}]) == (400, "tools_not_supported", "tools")
        assert refusal_of(tools=[{}], tool_choice="auto") == (400, "tools_not_supported", "tools")
        fitted(tools=[{}], tool_choice="none")
        fitted(tools=[])
        fitted({"capabilities": ["tools"]}, tools=[{}])

    def test_how_many_prompts(self) -> None:
        bounds = {"bounds": {"prompts": 2, "inputs": 3}}
        fitted(bounds, "completions", prompt=["x"] * 2)
        fitted(bounds, "embeddings", input=["x"] * 3)
        assert refusal_of(bounds, "completions", prompt=["x"] * 3) == (422, "out_of_range", "prompt")
        assert refusal_of(bounds, "embeddings", input=["x"] * 4) == (422, "out_of_range", "input")

    def test_an_answer_longer_than_the_model_gives(self) -> None:
        bounds = {"bounds": {"max_tokens": 100}}
        fitted(bounds, max_tokens=100)
        assert refusal_of(bounds, max_tokens=101) == (422, "out_of_range", "max_tokens")
        fitted({"context": 50}, max_tokens=50)
        assert refusal_of({"context": 50}, max_tokens=51) == (400, "context_length_exceeded", "max_tokens")
        assert refusal_of({"context": 50}, max_completion_tokens=51)[2] == "max_completion_tokens"
        fitted({"context": 50}, "embeddings", input="x", max_tokens=51)  # it has no answer

    def test_tokens_are_counted_exactly_and_text_is_refused_only_where_it_cannot_fit(self) -> None:
        context = {"context": 10}
        fitted(context, "completions", prompt=[1] * 6, max_tokens=4)
        assert refusal_of(context, "completions", prompt=[1] * 7, max_tokens=4) == (
            400,
            "context_length_exceeded",
            "prompt",
        )
        fitted(context, "completions", prompt=[1] * 10)
        assert refusal_of(context, "completions", prompt=[1] * 11)[1] == "context_length_exceeded"
        assert refusal_of(context, "completions", prompt=[[1], [1] * 11, [1]])[1] == "context_length_exceeded"
        fitted(context, "completions", prompt="x" * 160)  # sixteen characters to a token, at the very most
        assert refusal_of(context, "completions", prompt="x" * 161) == (400, "context_length_exceeded", "prompt")

    def test_a_length_that_is_not_said_is_filled_in_unless_it_could_make_a_long_prompt_impossible(self) -> None:
        settings = {"defaults": {"max_tokens": 100, "temperature": None}, "context": 500}
        short = fitted(settings)
        assert (short.max_tokens, sent(short)["max_tokens"]) == (100, 100)
        room = 500 - 100 - len(json.dumps({"prompt": ""}))
        assert sent(fitted(settings, "completions", prompt="x" * room))["max_tokens"] == 100
        long = fitted(settings, "completions", prompt="x" * (room + 1))
        assert (long.max_tokens, "max_tokens" in sent(long)) == (16, False)  # the model server's own default
        long = fitted(settings, messages=[{"role": "user", "content": "x" * 400}])
        assert (long.max_tokens, "max_tokens" in sent(long)) == (500 - 101, False)  # as much as the context leaves
        assert fitted({**PLAIN, "context": 4}, messages=[{"role": "user", "content": "x" * 40}]).max_tokens == 1

    def test_a_length_by_a_name_that_the_model_server_does_not_read(self) -> None:
        assert sent(fitted(PLAIN, max_output_tokens=5))["max_tokens"] == 5
        assert "max_tokens" not in sent(fitted(PLAIN, max_completion_tokens=5))
        assert sent(fitted(PLAIN, "completions", prompt="x", max_completion_tokens=5))["max_tokens"] == 5
        assert sent(fitted(PLAIN, max_tokens=None, max_output_tokens=5))["max_tokens"] == 5

    def test_a_body_that_needs_nothing_goes_on_as_it_came(self) -> None:
        exchange = exchange_of(body=b'{ "model" : "phi", "messages":[{"role":"user","content":"\xc3\xa9"}], "x":1}')
        before = exchange.body
        fit(exchange, open_envelope(exchange, CONFIG), model_of(PLAIN))
        assert exchange.body is before

    def test_what_lacks_is_put_in_front_of_it(self) -> None:
        exchange = exchange_of(body=b'  {"messages":[{"role":"user","content":"x"}], "x" : 1.0}')
        fit(exchange, open_envelope(exchange, CONFIG), model_of({"defaults": {"max_tokens": 9, "top_p": 0.5}}))
        assert exchange.body == (
            b'{"max_tokens":9,"model":"phi","temperature":0.7,"top_p":0.5,'
            b'"messages":[{"role":"user","content":"x"}], "x" : 1.0}'
        )

    def test_the_clients_own_values_stand(self) -> None:
        settings = {"defaults": {"max_tokens": None, "temperature": 0.7, "top_p": 0.5}}
        assert sent(fitted(settings, temperature=0.1, top_p=0.2)) == {
            "model": "phi",
            "messages": HELLO,
            "temperature": 0.1,
            "top_p": 0.2,
        }
        # null is as good as nothing, and must not win over what is filled in
        assert sent(fitted(settings, temperature=None, top_p=None))["temperature"] == 0.7
        assert sent(fitted(settings, temperature=0))["temperature"] == 0
        assert "temperature" not in sent(fitted(PLAIN))
        assert sent(fitted(settings, "embeddings", input="x")) == {"model": "phi", "input": "x"}

    def test_the_model_servers_name(self) -> None:
        assert sent(fitted({**PLAIN, "served_name": "served"}, model="phi"))["model"] == "served"
        assert sent(fitted(PLAIN, model=None))["model"] == "phi"
        raw = fitted({**PLAIN, "served_name": "served"}, model="served").body
        assert raw == json.dumps({"messages": HELLO, "model": "served"}).encode()

    def test_every_stream_has_usage_and_only_who_asked_sees_it(self) -> None:
        for options, strip in (
            ({}, True),
            ({"stream_options": None}, True),
            ({"stream_options": {}}, True),
            ({"stream_options": {"include_usage": False, "x": 1}}, True),
            ({"stream_options": {"include_usage": True}}, False),
        ):
            exchange = fitted(PLAIN, stream=True, **options)
            assert (sent(exchange)["stream_options"]["include_usage"], exchange.strip_usage) == (True, strip)
        assert sent(fitted(PLAIN, stream=True, stream_options={"x": 1}))["stream_options"]["x"] == 1
        assert "stream_options" not in sent(fitted(PLAIN))
        assert fitted(PLAIN).strip_usage is False
        assert refusal_of(stream=True, stream_options=[]) == (400, "invalid_type", "stream_options")


class TestRefit:
    """A stand-in gets the client's own request, not the first model's form of it."""

    def again(self, settings: dict[str, Any], endpoint: str = "chat", **body: Any) -> tuple[Exchange, bool]:
        first = model_of({"defaults": {"max_tokens": 7}, "endpoints": ["chat", "completions"]})
        base: dict[str, Any] = {"messages": HELLO} if endpoint == "chat" else {}
        exchange, envelope = opened(endpoint, **{**base, **body})
        exchange.original = exchange.body
        fit(exchange, envelope, first)
        other: Model = model_of(settings)
        before = exchange.body, exchange.max_tokens, exchange.prompt_estimate
        done = refit(exchange, other)
        assert done or (exchange.body, exchange.max_tokens, exchange.prompt_estimate) == before
        return exchange, done

    def test_as_the_other_gets_it(self) -> None:
        exchange, done = self.again({"defaults": {"max_tokens": 9}, "served_name": "other"})
        assert (done, exchange.max_tokens, sent(exchange)["max_tokens"]) == (True, 9, 9)
        assert sent(exchange)["model"] == "other"

    def test_one_that_cannot_serve_it(self) -> None:
        assert self.again({"endpoints": ["completions"]})[1] is False
        assert self.again({"bounds": {"n": 1}}, n=2)[1] is False
        # five characters are taken for two tokens
        assert self.again({"context": 12}, max_tokens=10)[1] is True
        assert self.again({"context": 11}, max_tokens=10)[1] is False
        assert self.again({"context": 2, **PLAIN})[1] is True
        assert self.again({"context": 1, **PLAIN})[1] is False
        prompts = {"prompt": ["x" * 40, "x"], "max_tokens": 1}
        assert self.again({"context": 11}, "completions", **prompts)[1] is False
        assert self.again({"context": 12}, "completions", **prompts)[1] is True


class TestHeaders:
    def priority(self, header: bytes | None, highest: int) -> int:
        headers = {} if header is None else {b"x-priority": header}
        exchange = exchange_of(headers=headers, principal=principal_of(priority=highest))
        open_envelope(exchange, CONFIG)
        return exchange.priority

    def test_nobody_gets_a_higher_priority_than_its_own(self) -> None:
        assert [self.priority(None, highest) for highest in (0, 1, 3)] == [0, 1, 1]
        assert [self.priority(b"Critical", highest) for highest in (0, 1, 3)] == [0, 1, 3]
        assert self.priority(b"low", 3) == 0
        with pytest.raises(Refusal):
            self.priority(b"urgent", 3)

    def test_a_session_has_a_name_of_bounded_length(self) -> None:
        assert opened(headers={b"x-session-id": b"x" * 300}, messages=HELLO)[0].session == "x" * 256
        assert opened(messages=HELLO)[0].session is None

    @pytest.mark.parametrize(
        ("headers", "client", "deadline"),
        [
            ({}, None, 100.0),
            ({b"x-request-timeout": b"5"}, 5.0, 5.0),
            ({b"x-request-timeout": b"500"}, 500.0, 100.0),
            ({b"x-request-timeout": b"86400"}, 86400.0, 100.0),
            ({b"x-request-timeout": b"86401"}, None, 100.0),
            ({b"x-request-timeout": b"0"}, None, 100.0),
            ({b"x-request-timeout": b"-1"}, None, 100.0),
            ({b"x-request-timeout": b"nan"}, None, 100.0),
            ({b"x-request-timeout": b"0.5"}, 0.5, 0.5),
            ({b"x-request-timeout": b"soon", b"x-stainless-timeout": b"6"}, 6.0, 6.0),
            ({b"x-request-timeout": b"5", b"x-stainless-timeout": b"6"}, 5.0, 5.0),
            ({b"x-stainless-read-timeout": b"7", b"x-stainless-timeout": b"6"}, 7.0, 7.0),
        ],
    )
    def test_how_long_the_client_waits(
        self, clock: Clock, headers: dict[bytes, bytes], client: float | None, deadline: float
    ) -> None:
        exchange, _ = opened(headers=headers, messages=HELLO)
        told = None if exchange.client_deadline is None else exchange.client_deadline - exchange.started
        assert (told, exchange.deadline - exchange.started) == (client, deadline)

    def test_a_deadline_that_has_passed(self, clock: Clock) -> None:
        exchange = exchange_of(headers={b"x-request-timeout": b"5"})
        clock.now += 4.9
        open_envelope(exchange, CONFIG)
        clock.now = exchange.started + 5.0
        with pytest.raises(Refusal) as caught:
            open_envelope(exchange, CONFIG)
        assert (caught.value.status, caught.value.code) == (504, "deadline_passed")


@pytest.mark.anyio
async def test_a_coded_body_is_not_read() -> None:
    from citadel_gateway.envelope import read_body

    for coding, refused in ((b"gzip", True), (b"Identity", False), (None, False)):
        exchange = exchange_of(headers={} if coding is None else {b"content-encoding": coding})
        exchange.client.whole = True
        if refused:
            with pytest.raises(Refusal) as caught:
                await read_body(exchange)
            assert (caught.value.status, caught.value.code) == (400, "unsupported_encoding")
        else:
            await read_body(exchange)
