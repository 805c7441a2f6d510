"""The capacity plan: does the catalogue fit a host, and what does each model get?"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import catalogue, remedies, tables
from .catalogue import CatalogueError, Model
from .needs import TOLERANCE, Knowledge, Measured, Need, deviation, needs_of, needs_of_model
from .placement import Placed, gib, place
from .settings import Settings
from .topology import GIB, Host
from .variants import obstacle, runnable


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
        problems, placed = place(needs, host, settings)
        if not problems:
            notes = [*differences(models, chosen, knowledge), *remarks(placed, host, settings)]
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


def differences(models: Sequence[Model], chosen: Mapping[str, str], knowledge: Knowledge) -> Iterator[str]:
    """Where the estimate was wrong."""
    for need in needs_of(models, chosen, replace(knowledge, measured={})):
        memory = knowledge.measured.get(need.instance, Measured()).memory
        off = deviation(memory, need.running, need.cache)
        if abs(off) > TOLERANCE:
            consequence = "the measured figure counts from now on" if off > 0 else "the limit stays as it is"
            yield (
                f"{need.instance}: the plan was off by {off:+.0%}, it expected {gib(need.running)} and {gib(memory)} "
                f"are in use; {consequence}"
            )


def remarks(placed: Sequence[Placed], host: Host, settings: Settings) -> Iterator[str]:
    """What is worth knowing of a plan that fits."""
    for one in placed:
        if one.need.variant != "bf16" and one.need.model.variant == "auto":
            yield f"{one.need.instance} runs as {one.need.variant}, since the models do not all fit in bf16"
    if settings.share_cores:
        yield "models share cores: fine for a lab, slow anywhere else"
    elif len(host.cpus) == sum(len(one.cpus) for one in placed):
        yield "no core is left for the gateway and the system: they compete with the models"


def sketch(text: str) -> Host:
    """A host in words: cores=24,ram=128,nodes=2,isa=amx,hugepages=2,disk=4000 (sizes in GiB)."""
    given = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    unknown = set(given) - {"cores", "ram", "nodes", "isa", "hugepages", "disk"}
    if unknown or not {"cores", "ram"} <= set(given):
        raise ValueError(
            f"--host {text}: say cores=<count>,ram=<GiB> and, if you like, nodes, isa (avx2, avx512, amx), "
            "hugepages and disk in GiB"
        )
    try:
        return Host.sketched(
            int(given["cores"]),
            round(float(given["ram"]) * GIB),
            nodes=int(given.get("nodes", 1)),
            isa=given.get("isa", "avx512"),
            hugepages=round(float(given.get("hugepages", 0)) * GIB),
            disk=round(float(given.get("disk", 4000)) * GIB),
        )
    except ValueError as error:
        raise ValueError(f"--host {text}: {error}") from None


def read_planned(path: Path) -> tuple[list[Model], Settings]:
    """Complete stanzas and settings, as the verb `capacity` takes them from an inventory."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return catalogue.parse(found["stanzas"]), Settings.of(found["settings"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no stanzas and settings: {error}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--planned", type=Path, required=True, help="{stanzas: ..., settings: ...} as JSON")
    parser.add_argument("--host", default="cores=16,ram=128", help="cores=24,ram=128,nodes=2,isa=amx; or `here`")


def run(arguments: argparse.Namespace) -> int:
    try:
        host = Host.here(Path("/")) if arguments.host == "here" else sketch(arguments.host)
        models, settings = read_planned(arguments.planned)
        print(plan(models, host, settings).report())
    except (DoesNotFit, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0
