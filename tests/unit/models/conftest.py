"""The catalogue as it is committed, and tiny models on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel import catalogue, fetch
from lab import tiny_models
from tests.unit.models.hub import Hub

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def committed() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "group_vars/all/models.yml").read_text(encoding="utf-8"))
    return found


Models = Callable[..., list[catalogue.Model]]


@pytest.fixture
def models(committed: dict[str, Any]) -> Models:
    """The committed models, with overrides by model name; the one that makes vectors only where a test wants it."""

    def parse(
        overrides: dict[str, Any] | None = None, extra: dict[str, Any] | None = None, *, vectors: bool = False
    ) -> list[catalogue.Model]:
        stanzas = {**committed["citadel_models"], **(extra or {})}
        overrides = {**(overrides or {}), **({} if vectors else {"nomic-embed-text": {"enabled": False}})}
        return catalogue.parse(catalogue.complete(stanzas, committed["citadel_models_defaults"], overrides))

    return parse


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    assert tiny_models.main([str(folder)]) == 0
    return folder


@pytest.fixture
def hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.01)
    server = Hub(tiny / "phi-3-mini")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
