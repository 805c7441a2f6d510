"""The door for the companion: it asks models in the names of clients, and nobody else can."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from citadel_companion.config import Config
from citadel_companion.services import Asker, Problem, Services
from citadel_companion.store import opened
from tests.gateway.harness import Lab, code_of, running

pytestmark = pytest.mark.anyio
BODY = {"model": "phi", "messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def inside(lab: Lab) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(lab.process.ports["inner"]))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def in_the_name_of(principal: str) -> dict[str, str]:
    return {"x-citadel-principal": principal, "x-citadel-address": "192.0.2.7"}


async def test_a_request_counts_as_its_clients_own() -> None:
    async with running({"limits": {"tiers": {"default": {"requests_per_minute": 3}}}}) as lab, inside(lab) as client:
        ident, key = lab.key()
        headers = in_the_name_of(f"key:{ident}")
        for _ in range(2):
            assert (await client.post("/v1/chat/completions", json=BODY, headers=headers)).status_code == 200
        assert (await lab.chat(headers=key, model="phi")).status_code == 200
        refused = await client.post("/v1/chat/completions", json=BODY, headers=headers)
        assert (refused.status_code, code_of(refused)) == (429, "rate_limit_exceeded")
        record = lab.records()[0]
        assert (record["principal"], record["address"], record["tier"]) == (f"key:{ident}", "192.0.2.7", "default")


async def test_a_key_that_is_no_more_opens_nothing(lab: Lab) -> None:
    ident, _ = lab.key()
    lab.gateway.keys.revoke(ident)
    async with inside(lab) as client:
        for principal, code in ((f"key:{ident}", "revoked_api_key"), ("key:00000000", "invalid_api_key")):
            answer = await client.post("/v1/chat/completions", json=BODY, headers=in_the_name_of(principal))
            assert (answer.status_code, code_of(answer)) == (401, code)


async def test_strangers_stay_strangers() -> None:
    async with running() as lab, inside(lab) as client:
        answer = await client.post("/v1/chat/completions", json=BODY, headers=in_the_name_of("address:192.0.2.9"))
        assert answer.status_code == 200
        assert lab.records()[-1]["principal"] == "address:192.0.2.9"
    closed = {"auth": {"anonymous": {"enabled": False}}}
    async with running(closed) as lab, inside(lab) as client:
        for headers in (in_the_name_of("address:192.0.2.9"), in_the_name_of("root"), {}):
            answer = await client.post("/v1/chat/completions", json=BODY, headers=headers)
            assert (answer.status_code, code_of(answer)) == (401, "missing_api_key")


async def test_a_client_cannot_say_whom_it_is(lab: Lab) -> None:
    ident, _ = lab.key()
    await lab.chat(headers=in_the_name_of(f"key:{ident}"), model="phi")
    assert lab.records()[-1]["principal"] == "address:127.0.0.1"


async def test_the_door_leads_to_models_alone(lab: Lab) -> None:
    async with inside(lab) as client:
        headers = in_the_name_of("address:192.0.2.9")
        assert {model["id"] for model in (await client.get("/v1/models", headers=headers)).json()["data"]} >= {"phi"}
        for path in ("/management/keys", "/metrics", "/health", "/docs"):
            assert (await client.get(path, headers=headers)).status_code == 404


async def test_the_companion_asks_through_it(lab: Lab) -> None:
    ident, _ = lab.key()
    folder = str(lab.folder)
    config = Config(socket="", state=folder, spool=folder, gateway=str(lab.process.ports["inner"]))
    services = Services(config, opened(config))
    try:
        async with services.ask(Asker(f"key:{ident}"), "/v1/chat/completions", BODY) as answer:
            assert answer.status_code == 200
            assert (await answer.aread())[:1] == b"{"
        async with services.ask(Asker(f"key:{ident}"), "/v1/models/phi") as answer:
            assert (await answer.aread()).startswith(b"{")
        nowhere = Services(config.model_copy(update={"gateway": f"{folder}/nothing"}), services.store)
        with pytest.raises(Problem, match="does not answer its companion"):
            async with nowhere.ask(Asker("key:a"), "/v1/models"):
                pass
        await nowhere.close()
    finally:
        await services.close()
