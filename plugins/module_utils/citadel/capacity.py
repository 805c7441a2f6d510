"""The capacity plan: does the catalogue fit a host, and what does each model get?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from . import asking, catalogue, remedies, tables
from .accuracy import way_out
from .catalogue import CatalogueError, Model
from .choice import choices, may_be_wide, smallest, wide
from .needs import TOLERANCE, Knowledge, Measured, Need, deviation, needs_of
from .placement import Placed, gib, place
from .settings import Settings
from .topology import GIB, Host
from .variants import hindrance

RECOMMENDED = 32, 256  # cores and GiB


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

    def placed_below_wish(self, models: Sequence[Model]) -> bool:
        """Did anybody get less than its stanza wishes?"""
        asked = {model.name: model for model in models}
        return any(
            one.need.model.cores < asked[one.need.model.name].cores
            or (one.need.variant != "bf16" and one.need.model.variant == "auto")
            or one.need.cache < asked[one.need.model.name].kv_cache_gib * GIB
            for one in self.placed
        )


def plan(
    models: Sequence[Model], host: Host, settings: Settings | None = None, knowledge: Knowledge | None = None
) -> Plan:
    """The plan that gives up least of what the stanzas wish, or DoesNotFit with the sums and the way out."""
    settings, knowledge = settings or Settings(), knowledge or Knowledge()
    if not models:
        raise CatalogueError("*", "enabled", False, "no model is left to plan")
    wished = next(choices(models, host, knowledge)).needs(models, host, settings, knowledge)
    for choice in choices(models, host, knowledge):
        needs = partial(choice.needs, host=host, settings=settings, knowledge=knowledge)
        problems, placed = place(needs(models), host, settings)
        if not problems:
            models, placed = in_32_bits(needs, models, placed, host, settings)
            found = (
                *differences(models, choice.variants, knowledge),
                *explained(placed, models, wished, host, settings),
                *weighed(models, knowledge, choice.variants),
                *widened(placed, wished, host),
                *remarks(placed, host, settings),
            )
            return Plan(host, settings, tuple(placed), found)
    least = smallest(models, host, knowledge).needs(models, host, settings, knowledge)
    problems, _ = place(least, host, settings)
    ways = remedies.ways_out(remedies.Situation(tuple(models), host, settings), knowledge)
    full = gib(sum(need.total for need in wished))
    in_full = " and ".join(sorted({need.variant for need in wished}))
    notes = [
        f"this is the least that the plan may choose; in {in_full}, with the caches that the stanzas wish, the models "
        f"need {full} and {cores_of(models)} cores",
        *weighed(models, knowledge),
    ]
    raise DoesNotFit(tables.of_refusal((problems, least), host, settings, notes, ways))


def in_32_bits(
    needs: Callable[[Sequence[Model]], list[Need]],
    models: Sequence[Model],
    placed: list[Placed],
    host: Host,
    settings: Settings,
) -> tuple[Sequence[Model], list[Placed]]:
    """With what the plan leaves, the models that compute slowly in 16 bits here compute in 32: the smaller ones first,
    so that the most of them do."""
    slow = {one.need.model.name: one.need.total for one in placed if may_be_wide(one.need, host)}
    for name in sorted(slow, key=lambda name: (slow[name], name)):
        wider = [wide(model) if model.name == name else model for model in models]
        problems, found = place(needs(wider), host, settings)
        if not problems:
            models, placed = wider, found
    return models, placed


def widened(placed: Sequence[Placed], wished: Sequence[Need], host: Host) -> Iterator[str]:
    """Which models compute in 32 bits though their stanzas do not say so, and which do not get to."""
    could = {need.instance for need in wished if may_be_wide(need, host)}
    done = [one.need for one in placed if one.need.instance in could and one.need.model.engine.get("dtype")]
    left = [one.need for one in placed if may_be_wide(one.need, host)]
    if done:
        told = ", ".join(f"{need.instance} ({gib(need.total)})" for need in done)
        yield f"in 32 bits, since this processor has no AVX512 and computes 16 several times as slowly: {told}"
    if left:
        told = ", ".join(need.instance for need in left)
        yield f"in 16 bits, which is slow without AVX512, as 32 would not fit: {told}"


def plan_beside_hugepages(
    models: Sequence[Model], host: Host, settings: Settings, knowledge: Knowledge | None = None
) -> Plan:
    """The plan, with the spare hugepages that are wished if the models get the same with them as without."""
    if host.hugepages or settings.hugepages >= 0 or settings.asks_no_hugepages:
        return plan(models, host, settings, knowledge)
    without = plan(models, host, settings, knowledge)
    taken = settings.spare_hugepages * host.hugepage
    try:
        found = plan(models, replace(host, hugepages=taken), settings, knowledge)
    except DoesNotFit:
        found = None
    if found and found.placed == without.placed:
        return found
    note = (
        f"no hugepages are reserved: {settings.spare_hugepages} of them ({gib(taken)}) would take memory from the "
        "models, which use none"
    )
    return replace(without, notes=(*without.notes, note))


def cores_of(models: Sequence[Model]) -> int:
    return sum(model.cores * model.replicas for model in models)


def explained(
    placed: Sequence[Placed], models: Sequence[Model], wished: Sequence[Need], host: Host, settings: Settings
) -> Iterator[str]:
    """Why the plan is not what the stanzas wish."""
    room = gib(host.memory - settings.fixed_on(host))
    now = {one.need.instance: one.need for one in placed}
    smaller = [need for need in wished if now[need.instance].variant != need.variant]
    if smaller:
        chosen = ", ".join(f"{need.instance} as {now[need.instance].variant}" for need in smaller)
        in_full = ", ".join(sorted({need.variant for need in wished}))
        yield (
            f"{chosen}: in {in_full} the models need {gib(sum(need.total for need in wished))} and {room} are theirs; "
            "of what fits, this is the most faithful"
        )
    for need in wished:
        quantised = hindrance(need.model, "int8", need.architecture, host.processor)
        # a model that makes vectors is not quantised, and small anyway
        may = need.model.variant == "auto" and not need.architecture.encoder
        if smaller and need not in smaller and may and quantised:
            yield f"{need.instance} stays {now[need.instance].variant}: {quantised}"
    caches = [need for need in wished if now[need.instance].cache < need.cache]
    if caches:
        told = ", ".join(f"{n.instance} {gib(now[n.instance].cache)} of {gib(n.cache)}" for n in caches)
        yield f"caches are smaller than wished, but hold one full context: {told}"
    asked = {model.name: model.cores for model in models}
    fewer = [one for one in placed if one.need.model.cores < asked[one.need.model.name]]
    if fewer:
        told = ", ".join(f"{one.need.instance} {len(one.cpus)} of {asked[one.need.model.name]}" for one in fewer)
        yield (
            f"cores: {cores_of(models)} are wished and {len(host.cpus)} there; they were taken from whom it slows "
            f"least against its time per token: {told}"
        )


def weighed(models: Sequence[Model], knowledge: Knowledge, chosen: Mapping[str, str] | None = None) -> Iterator[str]:
    """What was measured of the variants and lies beyond its bound."""
    for model in models:
        for variant in model.weights if model.variant == "auto" else [model.variant]:
            said = knowledge.objection(model, variant)
            if said and not model.accept_accuracy_loss:
                yield f"{said}, so the plan does not choose it; {way_out(model.name)}"
            elif said and chosen and chosen[model.name] == variant:
                yield f"{said}; it is served all the same, as accept_accuracy_loss says"


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
        if not one.need.architecture.known:
            yield (
                f"{one.need.instance}: {one.need.architecture.name} is no architecture that the plan knows; its "
                "weights are the sum of its files, its cache is the most that it can take, its first start measures it"
            )
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


def on_recommended(smaller: Plan, models: Sequence[Model], knowledge: Knowledge) -> str:
    """What the same catalogue gets on the host that is recommended, with this processor."""
    larger = replace(Host.sketched(RECOMMENDED[0], RECOMMENDED[1] * GIB), processor=smaller.host.processor)
    try:
        found = plan(models, larger, smaller.settings, knowledge)
    except DoesNotFit:
        return "it does not fit either"
    return ", ".join(
        f"{one.need.instance} {one.need.variant} on {len(one.cpus)} cores, {tables.speed(one, larger)} tokens/s"
        for one in found.placed
    )


def read_planned(path: Path) -> tuple[list[Model], Settings, Mapping[str, str]]:
    """Complete stanzas, settings and source, as the verb `capacity` takes them from an inventory."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return catalogue.parse(found["stanzas"]), Settings.of(found["settings"]), found.get("source", {})
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no stanzas and settings: {error}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--planned", type=Path, required=True, help="{stanzas: ..., settings: ...} as JSON")
    parser.add_argument("--host", default="cores=16,ram=128", help="cores=24,ram=128,nodes=2,isa=amx; or `here`")


def run(arguments: argparse.Namespace) -> int:
    try:
        host = Host.here(Path("/")) if arguments.host == "here" else sketch(arguments.host)
        models, settings, source = read_planned(arguments.planned)
        knowledge = Knowledge(asking.ask(models, source, {}))
        found = plan_beside_hugepages(models, host, settings, knowledge)
        print(found.report())
        if found.placed_below_wish(models):
            print(f"On {RECOMMENDED[0]} cores and {RECOMMENDED[1]} GiB: {on_recommended(found, models, knowledge)}")
    except (DoesNotFit, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0
