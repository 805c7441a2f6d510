"""Stores to keep things in: one of each kind, with nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from citadel_companion.config import Config
from citadel_companion.embedded import Embedded
from citadel_companion.store import Store
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
