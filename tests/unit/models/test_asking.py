"""A model of which nobody knows is asked for at its source, before anything is fetched."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from citadel import asking, capacity, safetensors
from citadel.catalogue import CatalogueError
from citadel.needs import Knowledge
from citadel.sources import source_of
from citadel.topology import GIB, Host
from tests.unit.models.hub import Hub

FIFTH = {"repository": "o/n", "revision": "r1", "port": 11404, "aliases": [], "context": 2048}


@pytest.fixture
def fifth(models: Any, committed: dict[str, Any]) -> Any:
    return models(extra={"fifth": {**committed["citadel_models"]["phi-3-mini"], **FIFTH}})


def place(hub: Hub) -> dict[str, str]:
    return {"kind": "hub", "url": hub.url}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_fifth_model_is_one_stanza(hub: Hub, fifth: Any, ranges: bool) -> None:
    hub.ranges = ranges
    details = asking.ask(fifth, place(hub), {})
    assert details == {"fifth/r1": safetensors.describe(hub.folder)}, "the other four are recorded"
    need = capacity.plan(fifth, Host.sketched(32, 256 * GIB), knowledge=Knowledge(details)).placed[-1].need
    assert (need.instance, need.weights) == ("fifth", details["fifth/r1"]["weight_bytes"])
    if ranges:
        weights = (hub.folder / "model.safetensors").stat().st_size
        assert hub.sent < weights / 50, "headers, not weights"


def test_what_the_host_has_is_not_asked_for(hub: Hub, fifth: Any) -> None:
    assert asking.ask(fifth, place(hub), {"fifth/r1": {}}) == {}
    assert not hub.requests


def split(hub: Hub, folder: Path) -> None:
    """The same in two files with an index."""
    shutil.copytree(hub.folder, folder)
    whole = safetensors.read_header(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for number, names in enumerate((list(whole)[::2], list(whole)[1::2])):
        offset, header = 0, {}
        for name in names:
            size = safetensors.tensor_bytes(whole[name])
            header[name] = {**whole[name], "data_offsets": [offset, offset + size]}
            offset += size
            where[name] = f"model-{number}.safetensors"
        text = json.dumps(header).encode()
        (folder / f"model-{number}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": where}))
    hub.folder = folder


def test_every_file_of_an_index_is_asked(hub: Hub, fifth: Any, tmp_path: Path) -> None:
    expected = safetensors.describe(hub.folder)["weight_bytes"]
    split(hub, tmp_path / "split")
    assert asking.ask(fifth, place(hub), {})["fifth/r1"]["weight_bytes"] == expected
    (tmp_path / "split" / "model-1.safetensors").unlink()
    with pytest.raises(CatalogueError, match=r"fifth.repository = 'o/n'.*has no model-1.safetensors"):
        asking.ask(fifth, place(hub), {})


def test_a_busy_hub_is_asked_again(hub: Hub, fifth: Any) -> None:
    hub.fail = 2
    assert asking.ask(fifth, place(hub), {})


def test_a_hub_that_is_away_is_named(fifth: Any) -> None:
    with pytest.raises(CatalogueError, match=r"fifth.repository = 'o/n'.*127\.0\.0\.1:9"):
        asking.ask(fifth, {"kind": "hub", "url": "http://127.0.0.1:9"}, {})


def test_a_file_that_is_none(hub: Hub, fifth: Any, tmp_path: Path) -> None:
    hub.folder = Path(shutil.copytree(hub.folder, tmp_path / "odd"))
    (hub.folder / "model.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(CatalogueError, match=r"model.safetensors is no safetensors file"):
        asking.ask(fifth, place(hub), {})


def test_an_unknown_architecture_is_taken_by_its_files_and_told(hub: Hub, fifth: Any, tmp_path: Path) -> None:
    hub.folder = Path(shutil.copytree(hub.folder, tmp_path / "odd"))
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps({**config, "architectures": ["OddForCausalLM"]}))
    details = asking.ask(fifth, place(hub), {})
    plan = capacity.plan(fifth, Host.sketched(32, 256 * GIB), knowledge=Knowledge(details))
    assert plan.placed[-1].need.weights == details["fifth/r1"]["weight_bytes"]
    assert "fifth: OddForCausalLM is no architecture that the plan knows" in plan.report()
    unasked = {"fifth/r1": {"config": details["fifth/r1"]["config"]}}
    with pytest.raises(CatalogueError, match="OddForCausalLM is no architecture that the plan knows"):
        capacity.plan(fifth, Host.sketched(32, 256 * GIB), knowledge=Knowledge(unasked))


@pytest.mark.parametrize("kind", ["directory", "archive", "mirror"])
def test_every_kind_of_source_tells(hub: Hub, tmp_path: Path, kind: str) -> None:
    folder = hub.folder
    places = {"directory": {"path": str(folder)}, "archive": {"path": str(tmp_path / "m.tar")}, "mirror": {"url": ""}}
    if kind == "archive":
        shutil.make_archive(str(tmp_path / "m"), "tar", folder)
    if kind == "mirror":
        from citadel import fetch

        source = source_of("phi", "", "r1", {"kind": "directory", "path": str(folder)})
        hub.folder, _ = fetch.fetch("phi", source, "r1", tmp_path / "models")
        places["mirror"]["url"] = f"{hub.url}/mirror"
    source = source_of("phi", "o/n", "r1", {"kind": kind, **places[kind]})
    assert asking.described(source, "r1") == safetensors.describe(folder)
