"""OpenAI's own SDKs for Python and Node as clients: what they get, and which exceptions they raise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.harness import Lab, running
from tests.gateway.node import printed
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def estate() -> AsyncIterator[Lab]:
    names = ("phi", "slow", "broken", "breaks", "flaky")
    async with running(models={name: {"capabilities": ["tools"]} for name in names}) as lab:
        lab.simulators["slow"].default = Act(tokens=500, gap=0.01, delay=0.05)
        lab.simulators["broken"].default = Act(status=500)
        lab.simulators["breaks"].default = Act(stop_after=3, then="close")
        lab.simulators["flaky"].script.extend([Act(status=500)] * 3)
        yield lab


def asynchronous(lab: Lab, key: str = "EMPTY", **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=lab.url() + "/v1", api_key=key, **{"max_retries": 0, **options})


class TestPython:
    async def test_what_it_gets(self, estate: Lab) -> None:
        async with asynchronous(estate) as client:
            assert [model.id async for model in client.models.list()] == list(estate.simulators)
            assert (await client.models.retrieve("phi")).id == "phi"
            whole = await client.chat.completions.create(model="phi", messages=MESSAGES)
            assert whole.choices[0].message.content == "word " * 5
            assert whole.usage is not None
            assert whole._request_id
            stream = await client.chat.completions.create(model="phi", messages=MESSAGES, stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "word " * 5
            completion = await client.completions.create(model="phi", prompt="once")
            assert completion.choices[0].text
        await estate.settled()

    async def test_the_synchronous_one(self, estate: Lab) -> None:
        def ask() -> str:
            with openai.OpenAI(base_url=estate.url() + "/v1", api_key="EMPTY", max_retries=0) as client:
                stream = client.chat.completions.create(model="phi", messages=MESSAGES, stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        assert await asyncio.to_thread(ask) == "word " * 5

    async def test_leaving_early_stops_the_generation(self, estate: Lab) -> None:
        async with asynchronous(estate) as client:
            stream = await client.chat.completions.create(model="slow", messages=MESSAGES, stream=True)
            async for _ in stream:
                break
            await stream.close()
            await until(lambda: estate.simulators["slow"].seen[0].state == "aborted", 2.0)
        await estate.settled()

    @pytest.mark.parametrize(
        ("error", "status", "code", "body"),
        [
            (openai.NotFoundError, 404, "model_not_found", {"model": "nope"}),
            (openai.BadRequestError, 400, "empty_array", {"messages": []}),
            (openai.BadRequestError, 400, "context_length_exceeded", {"max_tokens": 100_000}),
            (openai.UnprocessableEntityError, 422, "out_of_range", {"temperature": 9}),
            (openai.InternalServerError, 503, "upstream_error", {"model": "broken"}),
        ],
    )
    async def test_errors_become_its_exceptions(
        self, estate: Lab, error: type[openai.APIStatusError], status: int, code: str, body: dict[str, Any]
    ) -> None:
        async with asynchronous(estate) as client:
            with pytest.raises(error) as raised:
                await client.chat.completions.create(**{"model": "phi", "messages": MESSAGES, **body})
        assert (raised.value.status_code, raised.value.code) == (status, code)

    async def test_authentication_permission_and_limits(self, estate: Lab) -> None:
        _, headers = estate.key(models=("slow",))
        secret = headers["authorization"].removeprefix("Bearer ")
        async with asynchronous(estate, "ck_00000000_wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(model="phi", messages=MESSAGES)
        async with asynchronous(estate, secret) as client:
            with pytest.raises(openai.PermissionDeniedError):
                await client.chat.completions.create(model="phi", messages=MESSAGES)
        estate.reconfigure({"limits": {"tiers": {"default": {"requests_per_minute": 1}}}})
        async with asynchronous(estate) as client:
            await client.chat.completions.create(model="phi", messages=MESSAGES)
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(model="phi", messages=MESSAGES)

    async def test_its_timeout_reaches_the_model(self, estate: Lab) -> None:
        async with asynchronous(estate, timeout=0.3) as client:
            with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
                await client.chat.completions.create(model="slow", messages=MESSAGES)
        await until(lambda: estate.simulators["slow"].seen[0].state == "aborted", 2.0)
        await estate.settled()

    async def test_it_retries_what_it_is_told_to_retry(self, estate: Lab) -> None:
        async with asynchronous(estate, max_retries=2) as client:
            answer = await client.chat.completions.create(model="flaky", messages=MESSAGES)
            assert answer.choices
            assert len(estate.simulators["flaky"].seen) == 4  # three tries of the gateway, then the SDK came again
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="nope", messages=MESSAGES)
        assert sum(record["status"] == 404 for record in estate.records()) == 1

    async def test_a_stream_that_breaks_raises(self, estate: Lab) -> None:
        async with asynchronous(estate) as client:
            stream = await client.chat.completions.create(model="breaks", messages=MESSAGES, stream=True)
            with pytest.raises(openai.APIError, match="failed in mid-stream"):
                async for _ in stream:
                    pass


async def test_node(estate: Lab) -> None:
    seen = await printed("sdk.mjs", GATEWAY=estate.url())
    assert seen["models"] == list(estate.simulators)
    assert seen["whole"] == seen["stream"] == "word " * 5
    assert seen["usage"] == 5
    assert seen["retried"] == 1
    assert seen["errors"] == {
        "notFound": ["NotFoundError", 404, "model_not_found"],
        "badRequest": ["BadRequestError", 400, "empty_array"],
        "unprocessable": ["UnprocessableEntityError", 422, "out_of_range"],
        "unavailable": ["InternalServerError", 503, "upstream_error"],
        "key": ["AuthenticationError", 401, "invalid_api_key"],
        "timeout": ["APIConnectionTimeoutError"],
        "stream": ["APIError", "upstream_failed"],
    }
    slow = estate.simulators["slow"]
    await until(lambda: all(request.state == "aborted" for request in slow.seen), 2.0)
    await estate.settled()
