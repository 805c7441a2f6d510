"""Conversations through the real gateway and the real companion, by OpenAI's own SDKs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.gateway.beside import Beside, companion
from tests.gateway.harness import Lab
from tests.gateway.node import printed
from tests.gateway.simulator import Act, Simulator, until

pytestmark = pytest.mark.anyio
TOO_LONG = Act(
    status=400,
    body=b'{"error": {"message": "This model\'s maximum context length is 256 tokens. However, you requested 64 output '
    b'tokens and your prompt contains 400 input tokens.", "type": "BadRequestError", "code": 400}}',
)
ROUTES = ["/v1/responses", "/v1/responses/*"]


@pytest.fixture
async def estate() -> AsyncIterator[tuple[Lab, Beside]]:
    async with companion(ROUTES, models={"phi": {"capabilities": ["tools"]}, "small": {"context": 256}}) as found:
        yield found


def sdk(lab: Lab, headers: dict[str, str] | None = None, **options: Any) -> openai.AsyncOpenAI:
    key = (headers or {}).get("authorization", "Bearer EMPTY").removeprefix("Bearer ")
    return openai.AsyncOpenAI(base_url=lab.url() + "/v1", api_key=key, **{"max_retries": 0, **options})


def said(simulator: Simulator, number: int = -1) -> list[tuple[str, Any]]:
    return [(one["role"], one["content"]) for one in simulator.seen[number].body["messages"]]


async def test_a_conversation_goes_on_over_a_restart(estate: tuple[Lab, Beside]) -> None:
    lab, beside = estate
    _, mine = lab.key()
    _, theirs = lab.key()
    async with sdk(lab, mine) as client, sdk(lab, theirs) as stranger:
        first = await client.responses.create(model="phi", input="My name is Ada.", instructions="Be brief.")
        assert (first.status, first.output_text) == ("completed", "word " * 5)
        assert first.usage is not None
        assert (first.usage.input_tokens, first.usage.output_tokens, first.usage.total_tokens) == (7, 5, 12)
        await beside.stop()
        await beside.start(str(lab.process.ports["inner"]))
        second = await client.responses.create(model="phi", input="Who am I?", previous_response_id=first.id)
        assert said(lab.simulators["phi"]) == [
            ("user", "My name is Ada."),
            ("assistant", "word " * 5),
            ("user", "Who am I?"),
        ], "instructions are of one response alone"
        assert (await client.responses.retrieve(second.id)).model_dump() == second.model_dump()
        items = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=2)]
        assert [item.to_dict()["content"][0]["text"] for item in items] == [  # type: ignore[index]
            "My name is Ada.",
            "word " * 5,
            "Who am I?",
        ]
        for attempt in (
            stranger.responses.retrieve(first.id),
            stranger.responses.delete(first.id),
            stranger.responses.create(model="phi", input="Who?", previous_response_id=second.id),
            client.responses.retrieve("resp_" + "0" * 32),
        ):
            with pytest.raises(openai.NotFoundError):
                await attempt
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            await client.responses.cancel(first.id)
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match=first.id):
            await client.responses.create(model="phi", input="Who?", previous_response_id=second.id)


async def test_a_stream_has_the_official_events(estate: tuple[Lab, Beside]) -> None:
    lab, _ = estate
    async with sdk(lab) as client:
        async with client.responses.stream(model="phi", input="hello") as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert final.output_text == "word " * 5
        assert [event.type for event in events] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * 5,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert (await client.responses.retrieve(final.id)).output_text == final.output_text
        again = await client.responses.create(model="phi", input="more", previous_response_id=final.id, stream=True)
        numbers = [event.sequence_number async for event in again]
        assert numbers == list(range(len(events)))
        assert [role for role, _ in said(lab.simulators["phi"])] == ["user", "assistant", "user"]
    await lab.settled()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_generation(estate: tuple[Lab, Beside], stream: bool) -> None:
    lab, _ = estate
    phi = lab.simulators["phi"]
    phi.default = Act(tokens=2000, gap=0.01)
    async with lab.raw() as client:
        await client.post({"model": "phi", "input": "hello", "stream": stream}, "/v1/responses")
        if stream:
            await client.reader.readuntil(b"response.output_text.delta")
        await until(lambda: bool(phi.seen))
        client.abort()
        await until(lambda: phi.seen[0].state == "aborted")
    await lab.settled()


async def test_the_time_that_a_client_has_reaches_the_model(estate: tuple[Lab, Beside]) -> None:
    lab, _ = estate
    phi = lab.simulators["phi"]
    phi.default = Act(tokens=2000, gap=0.01)
    async with sdk(lab, timeout=0.5) as client:
        with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
            await client.responses.create(model="phi", input="hello")
    await until(lambda: phi.seen[0].state == "aborted")
    await lab.settled()


async def test_a_response_is_found_by_the_id_of_its_request(estate: tuple[Lab, Beside]) -> None:
    lab, _ = estate
    async with sdk(lab) as client:
        answer = await client.responses.create(model="phi", input="hello")
    asked = [record for record in lab.records() if record.get("model") == "phi"]
    assert [record["request_id"] for record in asked] == [answer._request_id]


async def test_node(estate: tuple[Lab, Beside]) -> None:
    lab, _ = estate
    seen = await printed("responses.mjs", GATEWAY=lab.url())
    assert seen["first"] == ["completed", "word " * 5, {"a": "b"}, 12]
    assert (seen["events"][0], seen["events"][-1]) == ("response.created", "response.completed")
    assert seen["events"].count("response.output_text.delta") == 5
    assert seen["second"] == ["completed", "word " * 5, True]
    assert seen["retrieved"] == "word " * 5
    assert seen["items"] == ["one", "word " * 5, "two"]
    assert seen["errors"] == {
        "cancel": ["BadRequestError", 400, "not_in_background"],
        "gone": ["NotFoundError", 404, "previous_response_not_found"],
        "background": ["BadRequestError", 400, "unsupported_parameter"],
        "model": ["NotFoundError", 404, "model_not_found"],
    }


async def test_limits_and_refusals_are_the_gateways_own(estate: tuple[Lab, Beside]) -> None:
    lab, _ = estate
    _, mine = lab.key(models=("small",))
    async with sdk(lab) as client, sdk(lab, mine) as narrow:
        with pytest.raises(openai.NotFoundError, match="The model 'phi' does not exist"):
            await narrow.responses.create(model="phi", input="hello")
        with pytest.raises(openai.BadRequestError, match="context length") as long:
            await client.responses.create(model="small", input="x" * 10_000)
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
            await client.responses.create(model="phi", input="hello", temperature=9)
        lab.simulators["phi"].script.extend([Act(status=500)] * 3)
        with pytest.raises(openai.InternalServerError) as failed:
            await client.responses.create(model="phi", input="hello", stream=True)
        assert failed.value.status_code == 503
        lab.reconfigure({"limits": {"tiers": {"default": {"requests_per_minute": 1}}}})
        with pytest.raises(openai.RateLimitError) as limited:
            for _ in range(3):
                await client.responses.create(model="phi", input="hello")
        assert float(limited.value.response.headers["retry-after"]) > 0
    records = [record for record in lab.records() if record.get("model") == "phi" and record["status"] == 200]
    assert records and {record["principal"] for record in records} == {"address:127.0.0.1"}


async def test_a_stream_that_breaks_ends_in_a_failed_response(estate: tuple[Lab, Beside]) -> None:
    lab, _ = estate
    lab.simulators["phi"].default = Act(stop_after=3, then="close")
    async with sdk(lab) as client:
        events = [event async for event in await client.responses.create(model="phi", input="hello", stream=True)]
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert "failed in mid-stream" in last.response.error.message
        assert (await client.responses.retrieve(last.response.id)).status == "failed"


async def test_a_model_that_says_it_is_too_much_gets_fewer_turns(estate: tuple[Lab, Beside]) -> None:
    lab, _ = estate
    small = lab.simulators["small"]
    # each character is a token, as in a language that the tokenizer has not learnt
    small.rules.append((lambda body: sum(len(one["content"]) for one in body["messages"]) > 192, TOO_LONG))
    small.default = Act(text="x", tokens=20)
    async with sdk(lab) as client:
        previous = None
        for number in range(8):
            answer = await client.responses.create(
                model="small", input=f"{number}" * 20, previous_response_id=previous, max_output_tokens=64
            )
            previous = answer.id
        texts = [content for _, content in said(small)]
        assert texts[-1] == "7" * 20
        assert 3 <= len(texts) < 15
        assert sum(len(text) for text in texts) <= 192
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.responses.create(
                model="small", input="no", previous_response_id=previous, truncation="disabled"
            )
