"""Which model answers when none is named, and which replica of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.gateway.harness import Lab, code_of, running
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio

MODELS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {"context": 32768, "specialisation": ["reasoning", "long-form"]},
    "hermes-2": {"context": 8192, "specialisation": ["conversation", "tools"], "capabilities": ["tools"]},
    "openchat-3.5": {"context": 8192, "specialisation": ["interactive", "streaming"]},
    "phi-3-mini": {"specialisation": ["fast", "cheap"]},
    "embedder": {"endpoints": ["embeddings"], "vector_size": 2},
}
TURNS = [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "word " * 60}] * 3


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"max_tokens": 5}, "phi-3-mini"),
        ({"model": "auto", "max_tokens": 5}, "phi-3-mini"),
        ({"model": "", "max_tokens": 5}, "phi-3-mini"),
        ({"tools": [{"type": "function"}]}, "hermes-2"),
        ({"max_tokens": 3000}, "mixtral-8x7b"),
        ({"messages": [{"role": "user", "content": "word " * 8000}]}, "mixtral-8x7b"),
        ({"messages": TURNS, "max_tokens": 300}, "hermes-2"),
        ({"messages": TURNS[:1], "stream": True, "max_tokens": 300}, "openchat-3.5"),
    ],
)
async def test_the_gateway_chooses_by_what_is_asked(body: dict[str, Any], model: str) -> None:
    async with running({"routing": {"default_model": "phi-3-mini"}}, models=MODELS) as lab:
        answer = await lab.chat(**body)
        assert (answer.status_code, answer.headers["x-citadel-model"]) == (200, model)
        assert lab.simulators[model].seen[-1].body["model"] == model


async def test_embeddings_go_to_a_model_that_makes_them() -> None:
    async with running(models=MODELS) as lab:
        answer = await lab.client.post("/v1/embeddings", json={"input": "x"})
        assert answer.headers["x-citadel-model"] == "embedder"


async def test_a_model_that_is_away_is_not_chosen() -> None:
    async with running({"routing": {"default_model": "phi-3-mini"}}, models=MODELS) as lab:
        next(replica for replica in lab.gateway.fleet.replicas() if replica.name == "phi-3-mini").drain()
        answer = await lab.chat(max_tokens=5)
        assert answer.status_code == 200
        assert answer.headers["x-citadel-model"] != "phi-3-mini"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"model": "embedder"}, 404, "endpoint_not_supported"),
        ({"model": "phi-3-mini", "tools": [{"type": "function"}]}, 400, "tools_not_supported"),
        ({"model": "phi-3-mini", "max_tokens": 5000}, 400, "context_length_exceeded"),
        (
            {"model": "phi-3-mini", "messages": [{"role": "user", "content": "x" * 70_000}]},
            400,
            "context_length_exceeded",
        ),
        ({"model": "phi-3-mini", "temperature": 2.5}, 422, "out_of_range"),
        ({"model": "phi-3-mini", "top_p": 1.5}, 422, "out_of_range"),
        ({"model": "phi-3-mini", "temperature": "hot"}, 400, "invalid_type"),
        ({"model": "phi-3-mini", "max_tokens": -1}, 422, "out_of_range"),
    ],
)
async def test_what_cannot_succeed_is_refused_at_once(body: dict[str, Any], status: int, code: str) -> None:
    async with running(models=MODELS) as lab:
        answer = await lab.chat(**body)
        assert (answer.status_code, code_of(answer)) == (status, code)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert not any(simulator.seen for simulator in lab.simulators.values())
        await lab.settled()


async def test_tokens_are_counted_exactly_where_the_client_sends_tokens() -> None:
    async with running() as lab:
        body = {"model": "phi", "prompt": list(range(4000)), "max_tokens": 97}
        answer = await lab.client.post("/v1/completions", json=body)
        assert code_of(answer) == "context_length_exceeded"
        body["max_tokens"] = 96
        assert (await lab.client.post("/v1/completions", json=body)).status_code == 200


async def spread(lab: Lab, count: int, **options: Any) -> Counter[str]:
    answers = [await lab.chat(**options) for _ in range(count)]
    return Counter(answer.headers["x-citadel-replica"] for answer in answers)


async def test_weighted_round_robin() -> None:
    async with running({"routing": {"policy": "weighted_round_robin"}}, replicas=2) as lab:
        config = lab.config
        config["models"]["phi"]["replicas"][0]["weight"] = 3
        assert lab.reconfigure({}) is None
        assert await spread(lab, 16) == {"phi-1": 12, "phi-2": 4}


async def test_least_in_flight() -> None:
    async with running(replicas=2) as lab:
        lab.simulators["phi-1"].default = Act(delay=0.4)
        first = asyncio.create_task(lab.chat())
        await until(lambda: lab.simulators["phi-1"].running == 1)
        assert await spread(lab, 5) == {"phi-2": 5}
        await first


async def test_response_time() -> None:
    async with running({"routing": {"policy": "response_time"}}, replicas=2) as lab:
        lab.simulators["phi-1"].default = Act(delay=0.05)
        assert (await spread(lab, 12))["phi-2"] >= 10


async def test_resource_use() -> None:
    async with running({"routing": {"policy": "resource"}}, replicas=2) as lab:
        next(lab.gateway.fleet.replicas()).cache_used = 0.9
        if lab.gateway.prober is not None:  # its next look would see the truth
            await lab.gateway.prober.close()
        assert await spread(lab, 5) == {"phi-2": 5}


async def test_a_session_stays_where_it_is_and_moves_only_if_it_must() -> None:
    async with running(replicas=3) as lab:
        homes = {}
        for name in "abcdefgh":
            found = await spread(lab, 3, headers={"x-session-id": name})
            assert len(found) == 1
            homes[name] = next(iter(found))
        assert len(set(homes.values())) > 1
        away = homes["a"]
        next(replica for replica in lab.gateway.fleet.replicas() if replica.name == away).drain()
        for name, home in homes.items():
            (now,) = await spread(lab, 1, headers={"x-session-id": name})
            assert now != away
            assert now == home or home == away


async def test_messages_as_parts() -> None:
    async with running() as lab:
        parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
        assert (await lab.chat(messages=parts)).status_code == 200
        assert lab.simulators["phi"].seen[-1].body["messages"] == parts
