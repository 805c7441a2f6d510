"""How variants are made here: what is quantised, how it is written, and how the result is named.

int8 has one scale for each row of a matrix and quantises the activations token by token while it serves; int4 has one
scale for each group of 128 weights. Both are compressed-tensors as vLLM's kernels for CPUs take them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

VERSION = 1  # one more whenever the same files would give other bytes: the result then has another name
GROUP = 128
ROWS_MULTIPLE = 32  # what the kernel for int4 asks of a matrix
# Families whose layers vLLM loads under the names that their files have, so that a scale finds its weight.
FAMILIES = frozenset(
    f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Mixtral", "Phi3", "Qwen2", "Qwen3", "Qwen3Moe")
)
LINEAR = re.compile(r"model\.layers\.\d+\..*\.(?:[a-z_]*proj|w[123])\.weight")


@dataclass(frozen=True)
class Recipe:
    """One way to quantise; `group` is how many weights share a scale, 0 is a whole row."""

    variant: str
    bits: int
    group: int
    version: int = VERSION

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def quantises(self, name: str, shape: Sequence[int]) -> bool:
        """Matrices of the layers. Embedding, output and routers stay: they are small, and decide much."""
        return len(shape) == 2 and bool(LINEAR.fullmatch(name))

    def unfit(self, shape: Sequence[int]) -> str:
        """Why a matrix of this shape cannot be written so; empty if it can."""
        if self.group and (shape[1] % self.group or shape[0] % ROWS_MULTIPLE):
            return f"{shape[0]} x {shape[1]} is no multiple of {ROWS_MULTIPLE} x {self.group}"
        return ""

    def written(self, name: str, shape: Sequence[int]) -> dict[str, tuple[str, list[int]]]:
        """The tensors that stand for a matrix: name -> type and shape."""
        rows, columns = shape
        if not self.group:
            return {name: ("I8", [rows, columns]), f"{name}_scale": ("F32", [rows, 1])}
        return {
            f"{name}_packed": ("I32", [rows, columns * self.bits // 32]),
            f"{name}_scale": ("BF16", [rows, columns // self.group]),
            f"{name}_shape": ("I64", [2]),
        }

    def described(self) -> dict[str, Any]:
        """What config.json tells vLLM."""
        weights = {"num_bits": self.bits, "type": "int", "symmetric": True, "dynamic": False}
        by_row = {"strategy": "channel", "group_size": None}
        by_group = {"strategy": "group", "group_size": self.group}
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        layout = "pack-quantized" if self.group else "int-quantized"
        return {
            "quant_method": "compressed-tensors",
            "format": layout,
            "quantization_status": "compressed",
            "ignore": ["lm_head", r"re:.*gate$"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "format": layout,
                    "weights": {**weights, **(by_group if self.group else by_row)},
                    "input_activations": None if self.group else activations,
                    "output_activations": None,
                }
            },
        }


# The relative error of a matrix that no matrix worth serving comes near: random weights lose 0.7 and 10 %.
ERROR_MOST: Mapping[str, float] = {"int8": 0.1, "int4": 0.3}
RECIPES: Mapping[str, Recipe] = {"int8": Recipe("int8", 8, 0), "int4": Recipe("int4", 4, GROUP)}


def revision_of(variant: str, repository: str, revision: str) -> str:
    """The name of what is made, known before anything was fetched: of the recipe and the pinned source."""
    named = f"{repository}\n{revision}\n{RECIPES[variant].digest}"
    return f"{variant}-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
