"""How much memory one instance takes.

need = weights + cache of keys and values + largest repacked tensor + overhead
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import accuracy
from .architecture import BF16, Architecture, ArchitectureError
from .catalogue import CatalogueError, Model, Weights
from .known_models import KNOWN_MODELS
from .topology import GIB

PROCESSES_BYTES = 5 * GIB // 4  # API process and engine without weights and cache, as measured
ACTIVATIONS_MOST = GIB
TOLERANCE = 0.10
OVERHEAD_STEP = GIB // 2


@dataclass(frozen=True)
class Measured:
    """What an instance really takes: memory as it runs, and the seconds of its last start."""

    memory: int = 0
    load_seconds: float = 0.0


def deviation(used: int, planned: int, cache: int) -> float:
    """By how much an estimate was wrong, as a share of it. The cache is given at once and filled by and by, so anything
    between an empty and a full one is as planned."""
    if not used or planned - cache <= used <= planned:
        return 0.0
    return used / (planned if used > planned else planned - cache) - 1


@dataclass(frozen=True)
class Knowledge:
    """What is known beside the catalogue."""

    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # <model>/<revision> -> what its files say
    measured: Mapping[str, Measured] = field(default_factory=dict)  # instance -> figures
    reports: Mapping[str, accuracy.Report] = field(default_factory=dict)  # <model>/<revision> -> its accuracy

    def of(self, model: Model, weights: Weights) -> Mapping[str, Any] | None:
        """Read from the files if they are at hand, else as recorded; what is made here is in no record."""
        if weights.made_from:
            return self.details.get(f"{model.name}/{weights.revision}")
        return self.details.get(f"{model.name}/{weights.revision}") or KNOWN_MODELS.get(weights.repository)

    def objection(self, model: Model, variant: str) -> str:
        """What was measured that speaks against serving the model so."""
        return accuracy.objection(model, variant, self.reports.get(f"{model.name}/{model.weights[variant].revision}"))

    def shape_of_base(self, model: Model, variant: str) -> Mapping[str, Any] | None:
        """A quantised variant has the shape of the model that it was made from, but not its size."""
        base = model.weights.get("bf16")
        known = self.of(model, base) if base and variant != "bf16" else None
        return {"config": known["config"]} if known else None


@dataclass(frozen=True)
class Need:
    """One instance and the memory it takes, piece by piece."""

    instance: str
    port: int
    model: Model
    variant: str
    architecture: Architecture
    weights: int
    files: int
    cache: int
    context_cache: int
    repack: int
    overhead: int
    measured: Measured = Measured()

    @property
    def running(self) -> int:
        """What it takes once it runs: the repacked tensors are gone by then."""
        return self.weights + self.cache + self.overhead

    @property
    def total(self) -> int:
        return self.running + self.repack

    @property
    def off(self) -> float:
        return deviation(self.measured.memory, self.running, self.cache)

    def corrected(self) -> Need:
        """With the measured overhead if the estimate was too low. Rounded up, and never down: a figure that
        follows every measurement would restart the model at every deployment."""
        if self.off <= TOLERANCE:
            return self
        surplus = self.measured.memory - self.weights - self.cache
        return replace(self, overhead=-(-surplus // OVERHEAD_STEP) * OVERHEAD_STEP)


def needs_of(models: Sequence[Model], chosen: Mapping[str, str], knowledge: Knowledge) -> list[Need]:
    """The needs of all instances, each model in its chosen variant."""
    return [need for model in models for need in needs_of_model(model, chosen[model.name], knowledge)]


def needs_of_model(model: Model, variant: str, knowledge: Knowledge) -> list[Need]:
    weights = model.weights[variant]
    known = knowledge.of(model, weights) or knowledge.shape_of_base(model, variant)
    if known is None:
        raise CatalogueError(
            model.name,
            "repository",
            weights.repository,
            "its config.json is neither on this host nor recorded, and was not to be had from its source; "
            "fetch the model first, or add it to known_models.py",
        )
    architecture = architecture_of(model, weights, known)
    if not architecture.known and not known.get("weight_bytes"):
        raise CatalogueError(
            model.name,
            "repository",
            weights.repository,
            f"{architecture.name} is no architecture that the plan knows, and its files could not be asked for their "
            "size; fetch the model first",
        )
    weight_bytes = int(known.get("weight_bytes") or architecture.weight_bytes(variant))
    width = width_of(model)
    # the cache has the numbers that the engine computes with
    context_cache = architecture.kv_bytes_of_context(model.context, model.batched_tokens) * width // BF16
    cache = 0 if architecture.encoder else max(round(model.kv_cache_gib * GIB), context_cache)
    return [
        Need(
            instance=instance,
            port=port,
            model=model,
            variant=variant,
            architecture=architecture,
            weights=weight_bytes * width // BF16,
            files=int(known.get("file_bytes") or weight_bytes),
            cache=cache,
            context_cache=context_cache,
            repack=architecture.largest_repack(variant),
            overhead=PROCESSES_BYTES + activations(model, architecture, width),
            measured=knowledge.measured.get(instance, Measured()),
        ).corrected()
        for instance, port in model.instances()
    ]


def architecture_of(model: Model, weights: Weights, known: Mapping[str, Any]) -> Architecture:
    try:
        architecture = Architecture.of(known["config"])
    except ArchitectureError as error:
        raise CatalogueError(model.name, "repository", weights.repository, str(error)) from None
    if model.context > architecture.longest_context:
        raise CatalogueError(
            model.name,
            "context",
            model.context,
            f"{architecture.name} takes {architecture.longest_context} tokens at most; lower context",
        )
    return architecture


def width_of(model: Model) -> int:
    """Bytes of a number: 16 bits, unless the stanza has the engine compute in 32."""
    return 2 * BF16 if model.engine.get("dtype") == "float32" else BF16


def activations(model: Model, architecture: Architecture, width: int) -> int:
    """The largest batch between two layers, and the logits of all sequences."""
    batch = model.batched_tokens * (4 * architecture.hidden + 3 * architecture.width) * width
    logits = model.sequences * architecture.vocabulary * 4
    return min(batch + logits, ACTIVATIONS_MOST)
