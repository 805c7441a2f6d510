"""The arithmetic gives the figures that the real models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from citadel import safetensors
from citadel.architecture import Architecture, ArchitectureError
from citadel.known_models import KNOWN_MODELS

GIB = 2**30
MIXTRAL = "mistralai/Mixtral-8x7B-Instruct-v0.1"
HERMES = "NousResearch/Hermes-2-Pro-Mistral-7B"
OPENCHAT = "openchat/openchat-3.5-0106"
PHI = "microsoft/Phi-3-mini-4k-instruct"


def architecture(repository: str, **changes: Any) -> Architecture:
    return Architecture.of({**KNOWN_MODELS[repository]["config"], **changes})


@pytest.mark.parametrize(
    ("repository", "bf16", "int8", "int4"),
    [(MIXTRAL, 87.0, 43.7, 23.0), (HERMES, 13.5, 7.0, 3.9), (OPENCHAT, 13.5, 7.0, 3.9), (PHI, 7.1, 3.7, 2.1)],
)
def test_weights_in_gib(repository: str, bf16: float, int8: float, int4: float) -> None:
    one = architecture(repository)
    assert [round(one.weight_bytes(variant) / GIB, 1) for variant in ("bf16", "int8", "int4")] == [bf16, int8, int4]


@pytest.mark.parametrize("repository", [name for name, known in KNOWN_MODELS.items() if "weight_bytes" in known])
def test_weights_to_the_byte_of_the_index(repository: str) -> None:
    assert architecture(repository).weight_bytes("bf16") == KNOWN_MODELS[repository]["weight_bytes"]


@pytest.mark.parametrize(("repository", "kib"), [(MIXTRAL, 128), (HERMES, 128), (OPENCHAT, 128), (PHI, 384)])
def test_cache_of_a_token(repository: str, kib: int) -> None:
    assert architecture(repository).kv_bytes_per_token == kib * 1024


@pytest.mark.parametrize(
    ("repository", "changes", "context", "gib"),
    [
        (MIXTRAL, {}, 32768, 4.02),
        (HERMES, {}, 8192, 0.78),
        (HERMES, {"sliding_window": None}, 8192, 1.02),
        (PHI, {}, 4096, 1.59),
    ],
)
def test_cache_of_a_full_context(repository: str, changes: dict[str, Any], context: int, gib: float) -> None:
    assert round(architecture(repository, **changes).kv_bytes_of_context(context, 2048) / GIB, 2) == gib


def test_a_token_reads_two_of_eight_experts() -> None:
    one = architecture(MIXTRAL)
    assert one.active_bytes("bf16") / one.weight_bytes("bf16") == pytest.approx(12.9 / 46.7, abs=0.01)


def test_the_largest_repack_is_a_layers_experts() -> None:
    assert architecture(MIXTRAL).largest_repack("bf16") == 2 * 8 * 4096 * 14336 * 2
    assert architecture(MIXTRAL).largest_repack("int8") < architecture(MIXTRAL).largest_repack("bf16")


def test_an_explicit_head_size_counts() -> None:
    assert architecture(HERMES, head_dim=256).kv_bytes_per_token == 2 * architecture(HERMES).kv_bytes_per_token


def test_a_window_that_is_switched_off_does_not_slide() -> None:
    assert architecture(HERMES, use_sliding_window=False).window is None


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_says_which_key_is_missing(key: str) -> None:
    config = {name: value for name, value in KNOWN_MODELS[PHI]["config"].items() if name != key}
    with pytest.raises(ArchitectureError, match=key):
        Architecture.of(config)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "tiny-embeddings"])
def test_agrees_with_real_files(tiny: Path, name: str) -> None:
    found = safetensors.describe(tiny / name)
    assert Architecture.of(found["config"]).weight_bytes("bf16") == found["weight_bytes"]
