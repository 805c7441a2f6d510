"""The module that fills the store: idempotent, true in check mode, and repairing what was damaged."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import citadel
from citadel import fetch, safetensors, sources, store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as Ansible would import it, with the package where Ansible puts it."""
    monkeypatch.setitem(sys.modules, "ansible.module_utils.citadel", citadel)
    for one in (fetch, safetensors, sources, store):
        monkeypatch.setitem(sys.modules, f"ansible.module_utils.{one.__name__}", one)
    spec = importlib.util.spec_from_file_location("citadel_model", ROOT / "plugins/modules/citadel_model.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run(module: ModuleType, tiny: Path, root: Path, **more: Any) -> dict[str, Any]:
    place = {"kind": "directory", "path": f"{tiny}/{{model}}"}
    params = {
        "models": {"phi-3-mini": {"repository": "o/n", "revision": "r1", "source": place}},
        "root": str(root),
        "deep": False,
    }
    ansible = SimpleNamespace(params={**params, **more}, check_mode=more.get("check", False))
    found: dict[str, Any] = module.run(ansible)
    return found


def test_fetches_once(module: ModuleType, tiny: Path, tmp_path: Path) -> None:
    first, second = run(module, tiny, tmp_path), run(module, tiny, tmp_path)
    assert (first["changed"], second["changed"]) == (True, False)
    assert first["models"] == second["models"]


def test_check_mode_says_what_would_be_fetched_and_fetches_nothing(
    module: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    found = run(module, tiny, tmp_path, check=True)
    assert found["fetched"] == ["phi-3-mini r1: not in the store"]
    assert not list(tmp_path.iterdir())


def test_what_was_damaged_is_fetched_anew(module: ModuleType, tiny: Path, tmp_path: Path) -> None:
    before = run(module, tiny, tmp_path)
    weights = tmp_path / "phi-3-mini" / "r1" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    after = run(module, tiny, tmp_path)
    assert "model.safetensors was altered" in after["fetched"][0]
    assert after["models"] == before["models"]
    assert weights.read_bytes() == (tiny / "phi-3-mini" / "model.safetensors").read_bytes()


def test_progress_is_told_to_the_journal(
    module: ModuleType, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the name that docs/models.md gives; Ansible itself is told to log nothing there."""
    names: list[str] = []
    lines: list[str] = []
    monkeypatch.setattr("syslog.openlog", names.append)
    monkeypatch.setattr("syslog.syslog", lines.append)
    run(module, tiny, tmp_path)
    assert set(names) == {"ansible-citadel_model"}
    assert lines[-1].startswith("phi-3-mini: 100% of ")
