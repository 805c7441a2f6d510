"""Reads the matrices of a stored model, quantised or not, and writes models with other numbers in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from citadel import quantiser, safetensors
from lab.tiny_models import bfloat16

FILE = "model.safetensors"
KINDS = {"I8": np.int8, "I32": np.int32, "F32": np.float32, "I64": np.int64}


def tensor(folder: Path, name: str) -> NDArray[Any]:
    """As it is written."""
    path = folder / FILE
    entry = safetensors.read_header(path)[name]
    begin, end = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(safetensors.data_start(path) + begin)
        raw = file.read(end - begin)
    if entry["dtype"] == "BF16":
        return np.asarray(quantiser.floats(raw, "BF16").reshape(entry["shape"]))
    return np.frombuffer(raw, dtype=KINDS[entry["dtype"]]).reshape(entry["shape"])


def matrix(folder: Path, name: str) -> NDArray[np.float32]:
    """As vLLM's kernels see it."""
    there = safetensors.read_header(folder / FILE)
    if f"{name}_scale" not in there:
        return tensor(folder, name)
    scale = tensor(folder, f"{name}_scale")
    if name in there:
        return np.asarray(tensor(folder, name).astype(np.float32) * scale)
    packed = tensor(folder, f"{name}_packed").view(np.uint32)
    nibbles = (packed[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    rows, columns = tensor(folder, f"{name}_shape")
    numbers = nibbles.reshape(rows, columns).astype(np.float32) - 8
    return np.asarray((numbers.reshape(rows, -1, 128) * scale[:, :, None]).reshape(rows, columns))


def rewritten(base: Path, target: Path, quantised: list[str], give: Callable[[str], NDArray[np.float32]]) -> None:
    """A copy of a bfloat16 model with other numbers in these matrices."""
    shutil.copytree(base, target)
    path = target / FILE
    path.chmod(0o644)
    header, start = safetensors.read_header(path), safetensors.data_start(path)
    with path.open("r+b") as file:
        for name in quantised:
            file.seek(start + header[name]["data_offsets"][0])
            file.write(bfloat16(give(name)).tobytes())
