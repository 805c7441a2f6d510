"""Reads the headers of safetensors files: what is inside, and whether the file is whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADER_MOST = 100_000_000  # the format's own limit
INDEX = "model.safetensors.index.json"


class WeightsError(ValueError):
    """A file of weights that cannot be used as it is."""


@dataclass(frozen=True)
class Weights:
    """The sums over the files of one model."""

    served_bytes: int
    file_bytes: int


def read_header(path: Path) -> dict[str, Any]:
    """The tensors of one file; a truncated or foreign file is refused with a sentence."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise WeightsError(f"{path.name} is truncated: {size} bytes do not even hold a header; fetch it again")
        (length,) = struct.unpack("<Q", start)
        if length > min(HEADER_MOST, size - 8):
            raise WeightsError(
                f"{path.name} is truncated or no safetensors file: its header claims {length} bytes, "
                f"the file has {size}; fetch it again"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise WeightsError(f"{path.name} is no safetensors file: its header is not JSON; fetch it again") from None
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != 8 + length + end:
        raise WeightsError(
            f"{path.name} is truncated or altered: it should have {8 + length + end} bytes and has {size}; "
            "fetch it again"
        )
    return tensors


def data_start(path: Path) -> int:
    """Where the first tensor begins."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    return 8 + int(length)


def tensor_bytes(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return int(end) - int(begin)


def sums(tensors: Mapping[str, dict[str, Any]]) -> Weights:
    """The engine computes in 16 bits and rounds what is stored in 32 as it loads it; only scales stay as they are."""
    stored = {name: tensor_bytes(entry) for name, entry in tensors.items()}
    rounded = sum(
        size // 2 for name, size in stored.items() if tensors[name]["dtype"] == "F32" and not name.endswith("_scale")
    )
    return Weights(sum(stored.values()) - rounded, sum(stored.values()))


def described(config: Mapping[str, Any], parts: Iterable[Weights]) -> dict[str, Any]:
    """What a plan needs to know of a model: its shape, the memory of its weights, and the disk where that is more."""
    parts = list(parts)
    served, stored = (sum(one.served_bytes for one in parts), sum(one.file_bytes for one in parts))
    return {"config": config, "weight_bytes": served, **({"file_bytes": stored} if stored != served else {})}


def files_of(folder: Path) -> list[str]:
    """The files of weights; every one that the index names has to be there."""
    index = folder / INDEX
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise WeightsError(f"{folder} has no *.safetensors; fetch the model again")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise WeightsError(f"{folder} lacks {missing[0]}, which {INDEX} names; fetch the model again")
    return names


def describe(folder: Path) -> dict[str, Any]:
    """The same of the files in a folder."""
    config = folder / "config.json"
    if not config.exists():
        raise WeightsError(f"{folder} has no config.json; a model cannot be planned or started without it")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{config} is not JSON: {error}") from None
    return described(settings, (sums(read_header(folder / name)) for name in files_of(folder)))
