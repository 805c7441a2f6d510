"""The lab's models are the same every time, and say sentences: followed here through the output matrix alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from lab import tiny_models
from lab.tiny_models import RECIPES, Array, Recipe


def tensor(folder: Path, name: str) -> Array:
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entry = json.loads(content[8 : 8 + length])[name]
    begin, end = entry["data_offsets"]
    half = np.frombuffer(content[8 + length + begin : 8 + length + end], dtype=np.uint16)
    whole: Array = (half.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return whole


def pieces(folder: Path) -> list[str]:
    return [piece for piece, _ in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]]


def walk(folder: Path, rng: np.random.Generator | None, first: int = 40) -> list[str]:
    """What comes if the layers add nothing: greedily, or at temperature 0.7."""
    embedding, output = tensor(folder, "model.embed_tokens.weight"), tensor(folder, "lm_head.weight")
    words, token = pieces(folder), first
    said: list[str] = []
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    while token != end and len(said) < 60:
        state = embedding[token] / np.sqrt(np.mean(embedding[token] ** 2))
        logits = (output @ state).astype(np.float64)
        if rng is None:
            token = int(logits.argmax())
        else:
            chances = np.exp((logits - logits.max()) / 0.7)
            token = int(rng.choice(len(chances), p=chances / chances.sum()))
        said.append(words[token] if token < len(words) else "<padding>")
    return said


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_walk_is_a_sentence_that_ends(tiny: Path, recipe: Recipe) -> None:
    rng = np.random.default_rng(7)
    for sampled in (None, *([rng] * 10)):
        said = walk(tiny / recipe.name, sampled)
        assert said[0] == recipe.speaker
        assert said[-1] == recipe.end
        assert said[-2] == "."
        assert 8 < len(said) < 25
        allowed = {f"▁{word}" for slot in tiny_models.SLOTS for word in slot}
        assert set(said[1:-2]) <= allowed


def test_the_same_twice_and_different_from_each_other(tiny: Path, tmp_path: Path) -> None:
    tiny_models.main([str(tmp_path)])
    weights = {}
    for recipe in RECIPES:
        weights[recipe.name] = (tiny / recipe.name / "model.safetensors").read_bytes()
        assert (tmp_path / recipe.name / "model.safetensors").read_bytes() == weights[recipe.name]
    assert len(set(weights.values())) == len(RECIPES)


def test_hermes_has_a_tool_call_to_say(tiny: Path) -> None:
    folder = tiny / "hermes-2"
    said = walk(folder, None, pieces(folder).index("<|use_tool|>"))
    call = "".join(said[:-1]).replace("▁", " ")
    assert json.loads(call.removeprefix("<tool_call>").removesuffix("</tool_call>"))["name"] == "get_weather"


def test_bfloat16_rounds_to_the_nearest() -> None:
    values = np.array([1.0, 1.00390625, 1.005859375, -2.5, 0.0], dtype=np.float32)
    back = (tiny_models.bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    assert back.tolist() == [1.0, 1.0, 1.0078125, -2.5, 0.0]


def test_a_large_model_has_the_size_asked_for(tmp_path: Path) -> None:
    tiny_models.main([str(tmp_path), "--parameters", "5e7"])
    assert (tmp_path / "large" / "model.safetensors").stat().st_size == pytest.approx(1e8, rel=0.25)
