"""The module that fills the store: idempotent, true in check mode, and repairing what was damaged."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import citadel
from citadel import catalogue, fetch, making, measuring, safetensors, serving, settings, sources, store, topology
from citadel.recipes import revision_of

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = Path(sys.executable).parents[1]  # it has numpy


def imported(name: str, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> ModuleType:
    """A module as Ansible would import it, with the package where Ansible puts it."""
    monkeypatch.setitem(sys.modules, "ansible.module_utils.citadel", citadel)
    for one in modules:
        monkeypatch.setitem(sys.modules, f"ansible.module_utils.{one.__name__}", one)
    spec = importlib.util.spec_from_file_location(name, ROOT / f"plugins/modules/{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("citadel_model", monkeypatch, fetch, making, safetensors, sources, store)


def run(module: ModuleType, tiny: Path, root: Path, **more: Any) -> dict[str, Any]:
    place = {"kind": "directory", "path": f"{tiny}/{{model}}"}
    params = {
        "models": {"phi-3-mini": {"repository": "o/n", "revision": "r1", "source": place}},
        "root": str(root),
        "environment": str(ENVIRONMENT),
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


def variant(tiny: Path) -> dict[str, Any]:
    place = {"kind": "directory", "path": f"{tiny}/{{model}}"}
    made = {"repository": "o/n", "source": place, "variant": "int8", "made_from": "r1"}
    return {"phi-3-mini": {**made, "revision": revision_of("int8", "o/n", "r1")}}


def test_a_variant_is_made_once_of_what_is_fetched_for_it(module: ModuleType, tiny: Path, tmp_path: Path) -> None:
    pretended = run(module, tiny, tmp_path, models=variant(tiny), check=True)
    first, second = (run(module, tiny, tmp_path, models=variant(tiny)) for _ in range(2))
    name = revision_of("int8", "o/n", "r1")
    told = ["phi-3-mini r1: not in the store", f"phi-3-mini {name}: not in the store, made of r1"]
    assert pretended["fetched"] == first["fetched"] == told
    assert (first["changed"], second["changed"]) == (True, False)
    assert first["models"] == second["models"]
    assert first["models"]["phi-3-mini"]["path"] == str(tmp_path / "phi-3-mini" / name)


def test_a_variant_is_made_anew_when_it_is_damaged_or_of_other_files(
    module: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    before = run(module, tiny, tmp_path, models=variant(tiny))
    target = Path(before["models"]["phi-3-mini"]["path"])
    (target / "model.safetensors").unlink()
    repaired = run(module, tiny, tmp_path, models=variant(tiny))
    assert "model.safetensors is missing" in repaired["fetched"][0]
    assert repaired["models"] == before["models"]
    manifest = store.read_manifest(target)
    (target / sources.MANIFEST).unlink()
    manifest["made"]["source"] = "0" * 64
    (target / sources.MANIFEST).write_text(json.dumps(manifest))
    again = run(module, tiny, tmp_path, models=variant(tiny))
    assert "it was made from other files than" in again["fetched"][0]
    assert again["models"] == before["models"]
    shutil.rmtree(tmp_path / "phi-3-mini" / "r1")
    assert not run(module, tiny, tmp_path, models=variant(tiny))["changed"], "its source need not be kept"


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


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("gpt-9", "MEASURE is 'gpt-9': the catalogue has no such model; it has mixtral-8x7b, hermes-2, "),
        ("phi-3-mini", "env is missing or half built; deploy first, which builds it"),
    ],
)
def test_what_cannot_be_measured(
    asked: str, told: str, committed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = (catalogue, measuring, safetensors, serving, settings, sources, store, topology)
    module = imported("citadel_accuracy", monkeypatch, *modules)
    stanzas = catalogue.complete(committed["citadel_models"], committed["citadel_models_defaults"])
    params = {"model": asked, "models": stanzas, "environment_path": str(tmp_path / "env")}
    with pytest.raises(measuring.MeasureError, match=told):
        module.run(SimpleNamespace(params=params))
