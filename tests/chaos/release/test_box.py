"""Deployments on a host with a real systemd, while a client asks all the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.release.box.content import content
from tests.chaos.release.conftest import Box, Client

OLD: dict[str, dict[str, Any]] = {"alpha": {}, "beta": {}}


@pytest.fixture
def old(box: Box) -> str:
    box.clear()
    manifest = box.stage(content(OLD))
    outcome = box.activate(manifest.id)
    assert outcome["outcome"] == "committed", outcome
    return manifest.id


def test_models_and_gateway_are_replaced_under_load(box: Box, old: str, client: Callable[..., Client]) -> None:
    manifest = box.stage(content({"alpha": {"load": "1"}, "beta": {}}, {"colour": "green"}))
    with client("alpha", "beta") as asking:
        outcome = box.activate(manifest.id)
    assert outcome["outcome"] == "committed", outcome
    assert asking.wrong == []
    assert asking.asked > 10
    assert set(box.units()) == {
        "citadel-llm@alpha.service",
        "citadel-llm@beta.service",
        f"citadel-gateway@{manifest.id}.service",
    }
