"""A file of weights that is not whole is found by its header."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from citadel import safetensors
from citadel.safetensors import WeightsError


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny / "phi-3-mini", folder)
    return folder


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1, -4096])
def test_a_truncated_file_is_refused_wherever_it_ends(model: Path, keep: int) -> None:
    cut(model / "model.safetensors", keep)
    with pytest.raises(WeightsError, match=r"model.safetensors is (truncated|no safetensors).*fetch it again"):
        safetensors.describe(model)


def test_a_longer_file_is_refused_too(model: Path) -> None:
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match="truncated or altered"):
        safetensors.describe(model)


def test_something_else_is_refused(model: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"<htm" + b" " * 50)
    with pytest.raises(WeightsError, match="no safetensors file"):
        safetensors.describe(model)


def test_a_missing_configuration_is_named(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        safetensors.describe(model)


def test_a_shard_that_the_index_names_has_to_be_there(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="lacks model-00002-of-00002"):
        safetensors.describe(model)


def test_no_weights_at_all(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no \*\.safetensors"):
        safetensors.describe(model)
