from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.release.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests cut no power, and thousands of flushes take minutes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
