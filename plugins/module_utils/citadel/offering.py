"""Which variants of each model a host has, which it could make, and what keeps it from the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import accuracy
from .catalogue import VARIANTS, Model, Weights
from .making import ERRORS
from .needs import Knowledge, needs_of_model
from .placement import gib
from .sources import MANIFEST
from .topology import Host
from .variants import hindrance


def lines(
    models: Sequence[Model], host: Host, knowledge: Knowledge, root: Path, chosen: Mapping[str, str]
) -> Iterator[str]:
    """One for each model and variant; a star is what the plan chose."""
    for model in models:
        for variant in VARIANTS:
            if variant not in model.weights:
                continue
            need = needs_of_model(model, variant, knowledge)[0]
            said = state(root / model.name, model.weights[variant])
            said = said or hindrance(model, variant, need.architecture, host.processor)
            said = said or whence(model.weights[variant])
            star = "*" if chosen.get(model.name) == variant else " "
            yield f"{star} {model.name:<16} {variant:<5} {gib(need.weights):>9}  {said}"


def state(folder: Path, weights: Weights) -> str:
    """What is on the host of it; empty if nothing is."""
    there = folder / weights.revision
    if not (there / MANIFEST).exists():
        return "is being made or fetched" if (folder / f".{there.name}.partial").exists() else ""
    if not (there / ERRORS).exists():
        return f"here as {there.name}"
    told = json.loads((there / ERRORS).read_text(encoding="utf-8"))
    worst = told["worst"]
    lost = f"error {told['mean']:.2%} in the mean, {worst['error']:.2%} in {worst['tensor']}"
    measured = accuracy.read(there) or f"not measured yet: make variants MEASURE={folder.name}"
    return f"here as {there.name}, {lost}; {measured}"


def whence(weights: Weights) -> str:
    if weights.made_from:
        return f"can be made here of {weights.made_from}"
    return f"can be fetched: {weights.repository or 'its source'} at {weights.revision}"
