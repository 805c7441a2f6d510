"""Stores to keep things in: one of each kind, with nothing in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from citadel_companion.config import Config
from citadel_companion.embedded import Embedded
from citadel_companion.store import Store
from tests.companion.beside import Beside, FakeGateway, companion
from tests.companion.databases import Cluster, Opened, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    with running() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """A store of each kind, and a way to count what is in it."""
    if request.param == "postgresql":
        yield from request.getfixturevalue("postgres").fresh(tmp_path)
        return
    config = Config(socket="", state=str(tmp_path / "state"), spool=str(tmp_path))
    store = Embedded(config)
    yield Opened(lambda: Embedded(config), lambda: store._run("SELECT request_id FROM llm_model_requests"))
    store.close()


@pytest.fixture
def store(opened: Opened) -> Iterator[Store]:
    store = opened.another()
    store.prepare()
    yield store
    store.close()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """Of a companion, for each kind of store."""
    folders = {name: str(tmp_path / name) for name in ("socket", "gateway", "state", "spool")}
    (tmp_path / "spool").mkdir()
    config = Config.model_validate(folders)
    if request.param == "sqlite":
        return config
    cluster: Cluster = request.getfixturevalue("postgres")
    return config.model_copy(update={"database": cluster.config(cluster.database(), tmp_path).database})


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[FakeGateway]:
    gateway = FakeGateway(tmp_path / "gateway")
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def beside(config: Config, gateway: FakeGateway) -> AsyncIterator[Beside]:
    async with companion(config, gateway) as beside:
        yield beside
