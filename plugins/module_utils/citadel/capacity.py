"""The capacity plan: does the catalogue fit a host, and what does each model get?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import remedies, tables
from .catalogue import CatalogueError, Model
from .needs import Knowledge, Need, needs_of, needs_of_model
from .placement import Placed, Settings, gib, place
from .topology import Host
from .variants import obstacle, runnable

MEASURED_TOLERANCE = 0.10


class DoesNotFit(ValueError):
    """The catalogue asks for more than the host has; the message is the whole report."""


@dataclass(frozen=True)
class Plan:
    """Every instance in its place."""

    host: Host
    settings: Settings
    placed: tuple[Placed, ...]
    notes: tuple[str, ...]

    def report(self) -> str:
        return tables.of_plan(self.host, self.settings, self.placed, self.notes)


def plan(
    models: Sequence[Model], host: Host, settings: Settings | None = None, knowledge: Knowledge | None = None
) -> Plan:
    """The plan with the most faithful variants that fit, or DoesNotFit with the sums and the way out."""
    settings, knowledge = settings or Settings(), knowledge or Knowledge()
    choices = {model.name: variants_of(model, host, knowledge) for model in models}
    refused: tuple[list[str], list[Need]] | None = None
    for chosen in combinations(choices):
        needs = needs_of(models, chosen, knowledge)
        problems, placed = place(needs, host, settings, knowledge.measured)
        if not problems:
            notes = remarks(needs, placed, host, settings, knowledge)
            return Plan(host, settings, tuple(placed), tuple(notes))
        refused = refused or (problems, needs)
    if refused is None:
        raise CatalogueError("*", "enabled", False, "no model is left to plan")
    situation = remedies.Situation(tuple(models), host, settings)
    ways = remedies.ways_out(situation, knowledge)
    raise DoesNotFit(tables.of_refusal(host, settings, *refused, ways))


def variants_of(model: Model, host: Host, knowledge: Knowledge) -> list[str]:
    """What may be chosen for this model here, the most faithful first."""
    moe = needs_of_model(model, "bf16", knowledge)[0].architecture.moe
    wanted = [model.variant] if model.variant != "auto" else list(model.weights)
    found = runnable(wanted, moe, host.processor)
    if not found:
        problem = "; ".join(filter(None, (obstacle(variant, moe, host.processor) for variant in wanted)))
        raise CatalogueError(
            model.name, "variant", model.variant, f"{problem}, and {host.name} has {host.processor}; choose another"
        )
    return found


def combinations(choices: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Every choice of variants; those that give up least come first."""
    names = list(choices)
    ranked = sorted(
        itertools.product(*(range(len(choices[name])) for name in names)),
        key=lambda steps: (sum(steps), max(steps, default=0), steps),
    )
    for steps in ranked:
        yield {name: choices[name][step] for name, step in zip(names, steps, strict=True)}


def remarks(
    needs: Sequence[Need], placed: Sequence[Placed], host: Host, settings: Settings, knowledge: Knowledge
) -> Iterator[str]:
    """What is worth knowing of a plan that fits."""
    for need in needs:
        if need.variant != "bf16" and need.model.variant == "auto":
            yield f"{need.instance} runs as {need.variant}, since the models do not all fit in bf16"
        before = knowledge.measured.get(need.instance)
        if before and before.planned_overhead:
            off = before.overhead / before.planned_overhead - 1
            if abs(off) > MEASURED_TOLERANCE:
                yield (
                    f"{need.instance}: the plan was off by {off:+.0%}, it gave {gib(before.planned_overhead)} of "
                    f"overhead and {gib(before.overhead)} were measured; the measured figure counts from now on"
                )
    if settings.share_cores:
        yield "models share cores: fine for a lab, slow anywhere else"
    elif len(host.cpus) == sum(len(one.cpus) for one in placed):
        yield "no core is left for the gateway and the system: they compete with the models"
