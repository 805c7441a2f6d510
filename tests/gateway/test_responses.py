"""Conversations through the real gateway and the real companion, by OpenAI's own SDKs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.gateway.beside import Beside, companion
from tests.gateway.harness import Lab
from tests.gateway.simulator import Act, Simulator, until

pytestmark = pytest.mark.anyio
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
        numbers = [event.sequence_number async for event in again]  # type: ignore[union-attr]
        assert numbers == list(range(len(events)))
        assert [role for role, _ in said(lab.simulators["phi"])] == ["user", "assistant", "user"]
    await lab.settled()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_generation(estate: tuple[Lab, Beside], stream: bool) -> None:
    lab, _ = estate
    phi = lab.simulators["phi"]
    phi.default = Act(tokens=500, gap=0.01)
    async with sdk(lab, timeout=0.5) as client:
        if stream:
            events = await client.responses.create(model="phi", input="hello", stream=True)
            async for _ in events:
                break
            await events.close()  # type: ignore[union-attr]
        else:
            with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
                await client.responses.create(model="phi", input="hello")
        await until(lambda: bool(phi.seen) and phi.seen[0].state == "aborted")
    await lab.settled()
