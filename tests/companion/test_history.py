"""The settings of a host and what they were before, as releases come and go."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from citadel_companion.app import application
from citadel_companion.config import Config
from citadel_companion.history import Historian
from citadel_companion.store import Store, Version

ADMIN = {"x-citadel-principal": "key:a", "x-citadel-role": "admin"}


def release(folder: Path, number: int, gateway: dict[str, Any], context: int = 4096) -> Path:
    place = folder / "releases" / f"r{number}"
    (place / "config" / "models").mkdir(parents=True)
    manifest = {
        "id": f"r{number}",
        "models": {"phi": {"revision": f"rev-{number // 3}", "path": "/opt/models/phi"}},
        "source": {"revision": "abc123", "dirty": number == 2},
        "created": {"by": "ada@desk", "at": "2026-01-01T00:00:00+00:00"},
    }
    (place / "manifest.json").write_text(json.dumps(manifest))
    (place / "config" / "gateway.yml").write_text(yaml.safe_dump(gateway))
    (place / "config" / "companion.yml").write_text(yaml.safe_dump({"retention": {"requests": 30}}))
    (place / "config" / "models" / "phi.yml").write_text(yaml.safe_dump({"max-model-len": context}))
    (place / "config" / "models" / "phi.env").write_text("# of the engine\nOMP_NUM_THREADS=4\n")
    return place


def live(folder: Path, place: Path) -> Path:
    current = folder / "current"
    aside = folder / "next"
    aside.symlink_to(place)
    aside.replace(current)
    return current


def test_only_what_differs_is_kept(tmp_path: Path, store: Store) -> None:
    first = release(tmp_path, 1, {"server": {"drain": 60.0, "cors": {"origins": ["a"]}}, "tls": None})
    current = live(tmp_path, first)
    Historian(current, store).look()
    names = {one["name"] for one in store.configuration("")}
    assert names == {
        "gateway.server.drain",
        "gateway.server.cors.origins",
        "companion.retention.requests",
        "models.phi.max-model-len",
        "models.phi.environment.OMP_NUM_THREADS",
        "models.phi.revision",
    }
    live(tmp_path, release(tmp_path, 2, {"server": {"drain": 30.0}}))
    historian = Historian(current, store)
    historian.look()
    drain, origins = sorted(store.changes("", None, 2), key=lambda one: -len(one["name"]))[::-1]
    assert (drain["name"], drain["value"], drain["previous"]) == ("gateway.server.drain", 30.0, 60.0)
    assert (origins["name"], origins["value"], origins["previous"]) == ("gateway.server.cors.origins", None, ["a"])
    assert (drain["version"], drain["changed_by"], drain["changed_from"]) == ("r2", "ada@desk", "abc123, with changes")
    count = len(store.changes("", None, 1000))
    historian.look()
    Historian(current, store).look()  # after a restart
    assert len(store.changes("", None, 1000)) == count
    # a rollback is a change like any other
    live(tmp_path, first)
    historian.look()
    assert [one["version"] for one in store.changes("gateway.server.drain", None, 10)] == ["r1", "r2", "r1"]
    assert [one["value"] for one in store.configuration("gateway.server")] == [["a"], 60.0]


def test_hosts_have_settings_of_their_own(store: Store) -> None:
    moment = datetime.now(UTC)
    for host in ("one", "other"):
        version = Version(host, "r1", "ada", "abc", moment)
        assert store.configure(version, {"gateway.port": 8000, "gateway.ports": 1}) == 2
        assert store.configure(version, {"gateway.port": 8000, "gateway.ports": 1}) == 0
    assert [one["host"] for one in store.configuration("gateway.port")] == ["one", "other"], (
        "a name is no prefix of one"
    )
    first, *_ = seen = store.changes("", None, 1)
    seen += store.changes("", first["number"], 10)
    assert len(seen) == len({one["number"] for one in seen}) == 4
    assert datetime.fromisoformat(first["changed_at"]) == moment


def test_a_release_that_cannot_be_read_is_told_once(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    place = release(tmp_path, 1, {})
    (place / "config" / "gateway.yml").write_text("{")
    historian = Historian(live(tmp_path, place), store)
    historian.look()
    historian.look()
    assert len([one for one in caplog.records if "cannot be read" in one.message]) == 1
    assert store.configuration("") == []
    Historian(tmp_path / "nothing", store).look()


@pytest.mark.anyio
async def test_an_administrator_asks_and_nobody_else(tmp_path: Path, anyio_backend: str) -> None:
    current = live(tmp_path, release(tmp_path, 1, {"server": {"drain": 60.0}}))
    folder = str(tmp_path)
    app = application(Config(socket="", state=folder, spool=folder, release=str(current)))
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://c") as client:
        found: list[Any] = []
        end = time.monotonic() + 20
        while not found and time.monotonic() < end:
            answer = await client.get("/v1/configuration", params={"name": "gateway"}, headers=ADMIN)
            found = answer.json().get("data", [])
        assert [(one["name"], one["value"]) for one in found] == [("gateway.server.drain", 60.0)]
        history = await client.get("/v1/configuration/history", params={"limit": 1}, headers=ADMIN)
        assert len(history.json()["data"]) == 1
        for path in ("/v1/configuration", "/v1/configuration/history"):
            refused = await client.get(path, headers={**ADMIN, "x-citadel-role": "user"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_not_allowed")
        wrong = await client.get("/v1/configuration/history", params={"limit": 0}, headers=ADMIN)
        assert wrong.json()["error"]["param"] == "limit"
