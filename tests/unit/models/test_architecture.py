"""The arithmetic gives the figures that the real models have."""

from __future__ import annotations

import json
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
    [(MIXTRAL, 87.0, 43.8, 22.8), (HERMES, 13.5, 7.0, 3.8), (OPENCHAT, 13.5, 7.0, 3.8), (PHI, 7.1, 3.7, 2.1)],
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
    assert architecture(HERMES, use_sliding_window=False).windows == 0


# What the public config.json of each says, the parameters that its files hold, and what a token takes of the cache: two
# bytes for each key and value of every layer, head and component; with latent attention for one short vector.
PUBLIC: dict[str, Any] = json.loads(Path(__file__).with_name("public_models.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", list(PUBLIC))
def test_public_models_have_the_parameters_and_the_cache_that_they_have(name: str) -> None:
    told = PUBLIC[name]
    one = Architecture.of(told["config"])
    assert one.known
    assert one.parameters == told["parameters"]
    assert one.weight_bytes("bf16") == 2 * told["parameters"]
    assert one.kv_bytes_per_token == told["cache_bytes_per_token"]
    assert 0 < one.active_bytes("bf16") <= 2 * told["parameters"]


@pytest.mark.parametrize(
    ("name", "active"),
    [("Qwen3-30B-A3B", 3.3e9), ("DeepSeek-V2", 21.4e9), ("DeepSeek-V2-Lite", 2.4e9), ("OLMoE", 1.3e9)],
)
def test_a_token_reads_what_its_experts_hold(name: str, active: float) -> None:
    """Published figures count the embedding too, of which a token reads one row."""
    one = Architecture.of(PUBLIC[name]["config"])
    assert one.active_bytes("bf16") / 2 == pytest.approx(active, rel=0.12)


def test_windows_on_some_layers_only() -> None:
    """vLLM makes groups of as many layers as the rarer kind has: here 4 attend to all, 22 to a window."""
    one = Architecture.of(PUBLIC["gemma-3-1b"]["config"])
    assert (one.layers, one.windows, one.window) == (4, 22, 512)
    whole, sliding = -(-32768 // 128) + 1, -(-(511 + 2048) // 128) + 2
    assert one.kv_bytes_of_context(32768, 2048) == 4 * 1024 * 128 * (whole + 6 * sliding)
    listed = Architecture.of(
        {**PUBLIC["gemma-3-1b"]["config"], "layer_types": ["sliding_attention", "full_attention"] * 13}
    )
    assert (listed.layers, listed.windows) == (13, 13)


def test_a_context_that_is_scaled() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert Architecture.of({**PUBLIC["Qwen2.5-7B"]["config"], "rope_scaling": yarn}).longest_context == 131072
    linear = {"rope_type": "linear", "factor": 8.0}
    assert Architecture.of({**PUBLIC["gemma-7b"]["config"], "rope_parameters": linear}).longest_context == 65536
    assert (
        Architecture.of(
            {**PUBLIC["Llama-3.1-8B"]["config"], "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
        ).longest_context
        == 131072
    )


def test_an_architecture_that_nobody_knows_is_not_taken_for_another() -> None:
    odd = Architecture.of({**PUBLIC["Llama-3.1-8B"]["config"], "architectures": ["OddForCausalLM"]})
    assert not odd.known
    assert odd.weight_bytes("bf16") == 0, "nothing is guessed: its files tell"
    assert odd.kv_bytes_per_token == 131072, "the most that it can be"
    mixed = {"layer_types": ["sliding_attention", "full_attention"] * 12, "sliding_window": 128}
    gpt_oss = {"hidden_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8}
    gpt_oss |= {"head_dim": 64, "vocab_size": 201088, "max_position_embeddings": 131072, "intermediate_size": 2880}
    one = Architecture.of({"architectures": ["GptOssForCausalLM"], **gpt_oss, **mixed})
    assert (one.layers, one.windows, one.kv_bytes_per_token) == (12, 12, 49152)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_says_which_key_is_missing(key: str) -> None:
    config = {name: value for name, value in KNOWN_MODELS[PHI]["config"].items() if name != key}
    with pytest.raises(ArchitectureError, match=key):
        Architecture.of(config)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "nomic-embed-text"])
def test_agrees_with_real_files(tiny: Path, name: str) -> None:
    found = safetensors.describe(tiny / name)
    assert Architecture.of(found["config"]).weight_bytes("bf16") == found["weight_bytes"]
