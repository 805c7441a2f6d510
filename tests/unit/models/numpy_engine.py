"""Stands for vLLM where a text is read: a network without attention, in numpy, on the files of a stored model.

Each token is foretold from the one before it alone, so that a text of the network's own can be drawn from one table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.weights import matrix

Table = NDArray[np.float64]


def normed(values: Table) -> Table:
    return np.asarray(values / np.sqrt(np.square(values).mean(axis=-1, keepdims=True) + 1e-6))


def table(folder: Path) -> Table:
    """log P(next token | this token), for every pair."""
    state = matrix(folder, "model.embed_tokens.weight").astype(np.float64)
    for layer in range(2):
        gate, up, down = (
            matrix(folder, f"model.layers.{layer}.mlp.{part}_proj.weight") for part in ("gate", "up", "down")
        )
        inner = normed(state)
        opened = inner @ gate.T
        state = state + (opened / (1 + np.exp(-opened)) * (inner @ up.T)) @ down.T
    logits = normed(state) @ matrix(folder, "lm_head.weight").T
    top = logits.max(axis=-1, keepdims=True)
    return np.asarray(logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))


def main() -> None:
    order = json.load(sys.stdin)
    chances = table(Path(order["options"]["model"]))
    tokens = [int(word) for word in order["text"].split()]
    pieces = [tokens[at : at + order["window"]] for at in range(0, len(tokens), order["window"])]
    print(json.dumps({"windows": len(pieces)}))
    for piece in pieces:
        rows = chances[piece[:-1]]
        best = np.argsort(-rows, axis=-1)[:, : order["top"]]
        told = {
            "tokens": piece[1:],
            "likely": [float(row[token]) for row, token in zip(rows, piece[1:], strict=True)],
            "candidates": best.tolist(),
            "chances": np.take_along_axis(rows, best, axis=-1).tolist(),
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
