"""The management API: for administrators, true in what it says, and written down."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.gateway.harness import Lab, code_of
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def admin(lab: Lab) -> AsyncIterator[httpx.AsyncClient]:
    _, headers = lab.key(role="admin")
    async with httpx.AsyncClient(base_url=lab.url("management"), headers=headers) as client:
        yield client


async def test_only_for_administrators(lab: Lab) -> None:
    _, user = lab.key()
    async with httpx.AsyncClient(base_url=lab.url("management")) as client:
        for path in ("/management/models", "/management/keys", "/management/stats", "/metrics"):
            assert code_of(await client.get(path)) == "missing_api_key"
            assert (await client.get(path, headers=user)).status_code == 403
        assert (await client.post("/management/replicas/phi/drain")).status_code == 401
        assert (await client.get("/health")).status_code == 200
    assert next(lab.gateway.fleet.replicas()).state == "ready"
    assert any(record["event"] == "authentication" for record in lab.records("audit"))
    assert (await lab.client.get("/management/stats")).status_code == 404  # not on the clients' port


async def test_the_unix_socket_needs_no_key_but_the_files_permission(lab: Lab) -> None:
    path = Path(str(lab.process.ports["management_socket"]))
    mode = await asyncio.to_thread(path.stat)
    assert stat.S_IMODE(mode.st_mode) == 0o660
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://x") as client:
        assert (await client.get("/management/stats")).status_code == 200


async def test_models_and_stats_tell_the_truth(lab: Lab, admin: httpx.AsyncClient) -> None:
    lab.simulators["phi"].default = Act(tokens=100, gap=0.01)
    streaming = asyncio.create_task(lab.stream())
    await until(lambda: lab.simulators["phi"].running == 1)
    (model,) = (await admin.get("/management/models")).json()["models"]
    assert (model["id"], model["in_flight"], model["capacity"]) == ("phi", 1, 16)
    assert model["replicas"][0]["in_flight"] == 1
    stats = (await admin.get("/management/stats")).json()
    assert (stats["running"], stats["in_flight"], stats["reserved_requests"]) == (1, 1, 1)
    (request,) = (await admin.get("/management/requests")).json()["requests"]
    assert (request["model"], request["stream"]) == ("phi", True)
    assert (await admin.get("/management/models/nope")).status_code == 404
    # the documents' own paths
    (model,) = (await admin.get("/management/models/list")).json()["models"]
    assert model["id"] == "phi"
    status = (await admin.get("/management/servers/status")).json()
    assert (status["status"], [server["state"] for server in status["servers"]]) == ("healthy", ["ready"])
    await streaming
    await lab.settled()
    assert (await admin.get("/management/stats")).json()["running"] == 0


async def test_drain_waits_for_the_last_and_holds_the_next(lab: Lab, admin: httpx.AsyncClient) -> None:
    lab.simulators["phi"].default = Act(tokens=10, gap=0.02)
    streaming = asyncio.create_task(lab.stream())
    await until(lambda: lab.simulators["phi"].running == 1)
    assert (await admin.post("/management/replicas/phi/drain")).json()["idle"] is False
    waiting = asyncio.create_task(lab.chat())
    drained = (await admin.post("/management/replicas/phi/drain", params={"wait": 5})).json()
    assert drained["idle"] is True
    assert drained["replicas"][0]["state"] == "draining"
    assert (await streaming)[-1] == "[DONE]"
    assert not waiting.done()
    assert len(lab.simulators["phi"].seen) == 1
    undrained = await admin.post("/management/replicas/phi/undrain")
    assert undrained.status_code == 200
    assert (await waiting).status_code == 200
    assert (await admin.post("/management/replicas/nope/drain")).status_code == 404
    events = [record["event"] for record in lab.records("audit")]
    assert events.count("drain") == 2
    assert events.count("undrain") == 1


async def test_keys(lab: Lab, admin: httpx.AsyncClient) -> None:
    made = (await admin.post("/management/keys", json={"name": "app", "tier": "default", "days": 1})).json()
    headers = {"authorization": f"Bearer {made['secret']}"}
    assert (await lab.chat(headers=headers)).status_code == 200
    assert not any("hash" in key or "secret" in key for key in (await admin.get("/management/keys")).json()["keys"])
    turned = (await admin.post(f"/management/keys/{made['id']}/rotate", json={"overlap_seconds": 60})).json()
    assert (await lab.chat(headers=headers)).status_code == 200
    fresh = {"authorization": f"Bearer {turned['secret']}"}
    assert (await lab.chat(headers=fresh)).status_code == 200
    assert (await admin.post(f"/management/keys/{turned['id']}/revoke")).status_code == 200
    assert (await lab.chat(headers=fresh)).status_code == 401
    for body in ({"name": "x", "tier": "gold"}, {"name": ""}, {"name": "x", "role": "king"}):
        refused = await admin.post("/management/keys", json=body)
        assert refused.status_code == 422
        assert refused.json()["error"]["message"]
    assert (await admin.post("/management/keys/nope/revoke")).status_code == 404
    assert made["secret"] not in str(lab.records("audit"))


async def test_reload(lab: Lab, admin: httpx.AsyncClient) -> None:
    config = lab.config
    config["models"]["phi"]["description"] = "new"
    lab.gateway.path.write_text(yaml.safe_dump(config))
    assert (await admin.post("/management/reload")).json() == {"reloaded": True}
    assert (await lab.client.get("/v1/models/phi")).json()["description"] == "new"
    lab.gateway.path.write_text("models: {}")
    refused = await admin.post("/management/reload")
    assert (refused.status_code, code_of(refused)) == (422, "invalid_configuration")


async def test_it_documents_itself(admin: httpx.AsyncClient) -> None:
    document = (await admin.get("/openapi.json")).json()
    assert {"/management/models", "/management/keys", "/management/replicas/{name}/drain"} <= set(document["paths"])
    assert (await admin.get("/nowhere")).json()["error"]["code"] == "unknown_url"
