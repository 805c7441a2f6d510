"""What a variant costs in accuracy: figures beside its manifest, the bounds of a stanza, and what lies beyond them.

Perplexity is how many equally likely tokens a model hesitates between, on the average of a text; its ratio to that of
the original is what the bounds are about. Divergence is in nats. It is summed over the candidates that both told, with
all others as one: what is left out can only make it smaller.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import store
from .catalogue import Model

REPORT = "citadel-accuracy.json"
SURPRISE_MOST = 700.0  # beyond that a float has no power of e
NOBODY = 1e-9  # what is left for all other candidates is never quite nothing


@dataclass(frozen=True)
class Report:
    """What is known of one variant. Without figures of the models themselves, `reason` says why there are none."""

    variant: str
    weights: str  # digest of the files that were measured
    text: str  # digest of the text
    measured: str = ""  # the day
    tokens: int = 0
    perplexity: float = 0.0
    original: float = 0.0  # perplexity of the model that it was made from
    agreement: float = 0.0  # share of the tokens for which both have the same first choice
    divergence: float = 0.0
    reason: str = ""
    engine: str = ""

    @property
    def ratio(self) -> float:
        return self.perplexity / self.original if self.tokens else 0.0

    def __str__(self) -> str:
        if not self.tokens:
            return f"by its matrices alone: {self.reason}"
        return (
            f"perplexity {self.perplexity:.2f} instead of {self.original:.2f} ({self.ratio - 1:+.2%}), the same "
            f"first choice for {self.agreement:.1%}, divergence {self.divergence:.4f}, measured {self.measured}"
        )


def read(folder: Path) -> Report | None:
    """The report of a stored variant; none if it is of other files."""
    try:
        report = Report(**json.loads((folder / REPORT).read_text(encoding="utf-8")))
        return report if report.weights == store.digest_of(store.read_manifest(folder)) else None
    except (OSError, ValueError, TypeError, store.StoreError):
        return None


def write(folder: Path, report: Report) -> None:
    aside = folder / f".{REPORT}"
    aside.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    aside.chmod(0o444)
    aside.replace(folder / REPORT)


def reports(models: Iterable[Model], root: Path) -> dict[str, Report]:
    """<model>/<revision> -> its report, of all that the store has."""
    keys = [f"{model.name}/{weights.revision}" for model in models for weights in model.weights.values()]
    return {key: report for key in keys if (report := read(root / key))}


def objection(model: Model, variant: str, report: Report | None) -> str:
    """What was measured beyond the bound of the stanza; empty if nothing was measured, or nothing speaks against it."""
    bound = model.accuracy.get(variant)
    if report is None or not report.tokens or bound is None or report.ratio <= bound:
        return ""
    return (
        f"{variant} of {model.name} has {report.ratio:.3f} times the perplexity of the original (measured "
        f"{report.measured}), and citadel_models.{model.name}.accuracy.{variant} allows {bound:g}"
    )


def way_out(model: str) -> str:
    return f"choose another variant, or set citadel_models.{model}.accept_accuracy_loss: true"


@dataclass
class Reading:
    """How one model read the text, window after window."""

    tokens: list[int] = field(default_factory=list)
    likely: list[float] = field(default_factory=list)
    candidates: list[Sequence[int]] = field(default_factory=list)
    chances: list[Sequence[float]] = field(default_factory=list)

    def add(self, told: Mapping[str, Any]) -> None:
        self.tokens += told["tokens"]
        self.likely += told["likely"]
        # a tenth of the memory that lists would take
        self.candidates += (array("i", row) for row in told["candidates"])
        self.chances += (array("d", row) for row in told["chances"])

    @property
    def perplexity(self) -> float:
        return math.exp(min(-sum(self.likely) / len(self.likely), SURPRISE_MOST))


def compared(original: Reading, other: Reading) -> dict[str, float]:
    """The figures of a report."""
    if original.tokens != other.tokens or not original.tokens:
        raise ValueError("the two did not read the same tokens; their tokenizers differ")
    count = len(original.tokens)
    same = sum(a[0] == b[0] for a, b in zip(original.candidates, other.candidates, strict=True))
    return {
        "tokens": count,
        "perplexity": other.perplexity,
        "original": original.perplexity,
        "agreement": same / count,
        "divergence": sum(divergence(*pair) for pair in zip(rows(original), rows(other), strict=True)) / count,
    }


def rows(reading: Reading) -> Iterable[Mapping[int, float]]:
    """For each token what is known of it: the candidates, and the one that came."""
    for token, likely, candidates, chances in zip(
        reading.tokens, reading.likely, reading.candidates, reading.chances, strict=True
    ):
        yield {**dict(zip(candidates, chances, strict=True)), token: likely}


def divergence(original: Mapping[int, float], other: Mapping[int, float]) -> float:
    known = original.keys() & other.keys()
    told = sum(math.exp(original[one]) * (original[one] - other[one]) for one in known)
    left, theirs = (max(NOBODY, 1 - sum(math.exp(side[one]) for one in known)) for side in (original, other))
    return max(0.0, told + left * math.log(left / theirs))
