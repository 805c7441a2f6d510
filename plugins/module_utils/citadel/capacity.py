"""The capacity plan: does the catalogue fit the host, and what does each model get?

need = weights + cache of keys and values + largest repacked tensor + overhead
sum(need) + reserve + hugepages + tmpfs <= memory, on the host and on each NUMA node
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .architecture import Architecture, ArchitectureError
from .catalogue import VARIANTS, CatalogueError, Model, Weights, format_cpus
from .known_models import KNOWN_MODELS
from .topology import GIB, Host
from .variants import obstacle, runnable

MEMORY_MAX_FACTOR = 1.1
RESERVE_BYTES, RESERVE_SHARE = 8 * GIB, 0.08  # for the system, the gateway and the page cache: whichever is more
PROCESSES_BYTES = 2 * GIB  # API process, engine and worker, measured without weights and cache
ACTIVATIONS_MOST = GIB
LOAD_BYTES_PER_SECOND = 150e6  # a slow disk, cold cache
START_SECONDS, START_FACTOR, START_LEAST = 240, 3, 180  # imports and compilation; slack upon a measured load
MEASURED_TOLERANCE = 0.10
CORE_BYTES_PER_SECOND = 12e9


class DoesNotFit(ValueError):
    """The catalogue asks for more than the host has; the message is the whole report."""


@dataclass(frozen=True)
class Measured:
    """What the last deployment of an instance really took."""

    overhead: int
    load_seconds: float
    planned_overhead: int = 0


@dataclass(frozen=True)
class Need:
    """One instance and the memory it takes, piece by piece."""

    instance: str
    model: Model
    port: int
    variant: str
    architecture: Architecture
    weights: int
    cache: int
    repack: int
    overhead: int
    context_cache: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.repack + self.overhead


@dataclass(frozen=True)
class Placed:
    """An instance with its limits."""

    need: Need
    node: int
    cpus: tuple[int, ...]
    start_seconds: int

    @property
    def threads(self) -> tuple[int, ...]:
        """One core stays free of compute: the processes that read the queues spin there."""
        return self.cpus[:-1] or self.cpus

    @property
    def memory_max(self) -> int:
        return round(self.need.total * MEMORY_MAX_FACTOR)


@dataclass(frozen=True)
class Settings:
    """What the deployer decides beside the catalogue."""

    share_cores: bool = False  # several models on the same cores: for a lab
    reserve: int = 0  # bytes; 0 is the rule above
    revisions_kept: int = 2

    def reserve_of(self, memory: int) -> int:
        return self.reserve or max(RESERVE_BYTES, round(memory * RESERVE_SHARE))


@dataclass(frozen=True)
class Plan:
    host: Host
    settings: Settings
    placed: tuple[Placed, ...]
    notes: tuple[str, ...]

    @property
    def used(self) -> int:
        return sum(place.need.total for place in self.placed)


Details = Mapping[str, Mapping[str, Any]]  # <model>/<revision> -> config, weight_bytes, largest_tensor_bytes


def need_of(
    model: Model, instance: str, port: int, variant: str, details: Details, measured: Measured | None = None
) -> Need:
    weights = model.weights[variant]
    known = described(model, weights, details) or shape_of_base(model, variant, details)
    if known is None:
        raise CatalogueError(
            model.name,
            "repository",
            weights.repository,
            "its config.json is not recorded; fetch the model first (make fetch) or record it in known_models.py",
        )
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
    context_cache = architecture.kv_bytes_of_context(model.context, model.batched_tokens)
    cache = 0 if architecture.encoder else max(round(model.kv_cache_gib * GIB), context_cache)
    return Need(
        instance=instance,
        model=model,
        port=port,
        variant=variant,
        architecture=architecture,
        weights=int(known.get("weight_bytes") or architecture.weight_bytes(variant)),
        cache=cache,
        repack=int(known.get("largest_tensor_bytes") or 0) or architecture.largest_repack(variant),
        overhead=measured.overhead if measured else PROCESSES_BYTES + activations(model, architecture),
        context_cache=context_cache,
    )


def described(model: Model, weights: Weights, details: Details) -> Mapping[str, Any] | None:
    """What is known of these weights: read from their files if they are at hand, else recorded."""
    return details.get(f"{model.name}/{weights.revision}") or KNOWN_MODELS.get(weights.repository)


def shape_of_base(model: Model, variant: str, details: Details) -> Mapping[str, Any] | None:
    """A quantised variant has the shape of the model that it was made from, but not its size."""
    base = model.weights.get("bf16")
    known = described(model, base, details) if base and variant != "bf16" else None
    return {"config": known["config"]} if known else None


def activations(model: Model, architecture: Architecture) -> int:
    """The largest batch between two layers, and the logits of all sequences."""
    width = 4 * architecture.hidden + 3 * architecture.intermediate * architecture.experts_per_token
    batch = model.batched_tokens * width * 2
    logits = model.sequences * architecture.vocabulary * 4
    return min(batch + logits, ACTIVATIONS_MOST)


def variants_of(model: Model, host: Host, details: Details) -> list[str]:
    """What may be chosen for this model here, the most faithful first."""
    instance, port = model.instances()[0]
    moe = need_of(model, instance, port, "bf16", details).architecture.moe
    if model.variant != "auto":
        problem = obstacle(model.variant, moe, host.processor)
        if problem:
            raise CatalogueError(
                model.name, "variant", model.variant, f"{problem}; {host.name} has {host.processor}. Use bf16"
            )
        return [model.variant]
    found = runnable(model.weights, moe, host.processor)
    if not found:
        raise CatalogueError(model.name, "variant", "auto", f"{obstacle('bf16', moe, host.processor)}: {host.name}")
    return found


def needs_of(
    models: Sequence[Model], chosen: Mapping[str, str], details: Details, measured: Mapping[str, Measured]
) -> list[Need]:
    return [
        need_of(model, instance, port, chosen[model.name], details, measured.get(instance))
        for model in models
        for instance, port in model.instances()
    ]


def plan(
    models: Sequence[Model],
    host: Host,
    settings: Settings | None = None,
    details: Details | None = None,
    measured: Mapping[str, Measured] | None = None,
) -> Plan:
    """The plan with the most faithful variants that fit, or DoesNotFit with the sums and the way out."""
    settings, details, measured = settings or Settings(), details or {}, measured or {}
    choices = {model.name: variants_of(model, host, details) for model in models}
    first: list[str] | None = None
    for chosen in combinations(choices):
        needs = needs_of(models, chosen, details, measured)
        problems, placed = place(needs, host, settings, measured)
        if not problems:
            return Plan(host, settings, tuple(placed), tuple(remarks(needs, placed, host, settings, measured)))
        first = first if first is not None else problems
    raise DoesNotFit(refusal(host, settings, first or [], choices, models, details, measured))


def combinations(choices: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Every choice of variants, those with the fewest and smallest steps down first."""
    names = list(choices)
    ranked = sorted(
        itertools.product(*(range(len(choices[name])) for name in names)),
        key=lambda steps: (sum(steps), max(steps, default=0), steps),
    )
    for steps in ranked:
        yield {name: choices[name][step] for name, step in zip(names, steps, strict=True)}


def gib(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB"


def place(
    needs: Sequence[Need], host: Host, settings: Settings, measured: Mapping[str, Measured]
) -> tuple[list[str], list[Placed]]:
    """Gives each instance a node and cores of its own; what cannot be is said, not raised."""
    problems = [*memory_problem(needs, host, settings), *disk_problem(needs, host, settings)]
    wanted = sum(need.model.cores for need in needs)
    if wanted > len(host.cpus) and not settings.share_cores:
        problems.append(
            f"cores: the models ask for {wanted}, {host.name} has {len(host.cpus)}; "
            f"lower `cores` by {wanted - len(host.cpus)} in all"
        )
    if problems:
        return problems, []
    free = {node.number: list(node.cpus) for node in host.nodes}
    room = {node.number: node.memory - share_of(node.memory, host, settings) for node in host.nodes}
    placed: dict[str, Placed] = {}
    # Those that are told their cores come first, then the large ones, for which it is hardest to find a place.
    for need in sorted(needs, key=lambda n: (not n.model.cpus, -n.total, n.instance)):
        cpus, node = cores_for(need, free, room, host, settings, len(placed))
        if not cpus:
            largest = max(room.values())
            problems.append(
                f"nodes: {need.instance} needs {gib(need.total)} and {need.model.cores} cores on one NUMA node; what is "
                f"left is at most {gib(largest)} and {max(map(len, free.values()))} cores"
            )
            continue
        room[node] -= need.total
        if not settings.share_cores:
            for cpu in cpus:
                free[node_of(host, cpu)].remove(cpu)
        placed[need.instance] = Placed(need, node, cpus, start_seconds(need, measured.get(need.instance)))
    return problems, [placed[need.instance] for need in needs if need.instance in placed]


def share_of(memory: int, host: Host, settings: Settings) -> int:
    """A node's share of what is not for models."""
    total = settings.reserve_of(host.memory) + host.hugepages + host.tmpfs
    return round(total * memory / max(host.memory, 1))


def node_of(host: Host, cpu: int) -> int:
    return next(node.number for node in host.nodes if cpu in node.cpus)


def cores_for(
    need: Need, free: Mapping[int, list[int]], room: Mapping[int, int], host: Host, settings: Settings, turn: int
) -> tuple[tuple[int, ...], int]:
    model = need.model
    if model.cpus:
        missing = [cpu for cpu in model.cpus if not any(cpu in node.cpus for node in host.nodes)]
        if missing:
            raise CatalogueError(
                model.name,
                "cpus",
                format_cpus(model.cpus),
                f"{host.name} has no core {missing[0]}; it has {format_cpus(host.cpus)}",
            )
        taken = [cpu for cpu in model.cpus if not any(cpu in cpus for cpus in free.values())]
        if taken:
            raise CatalogueError(
                model.name,
                "cpus",
                format_cpus(model.cpus),
                f"core {taken[0]} belongs to another instance too; give disjoint sets, or leave cpus empty",
            )
        node = node_of(host, model.cpus[0])
        return (model.cpus, node) if room[node] >= need.total else ((), node)
    if settings.share_cores:
        return shared_cores(model, free, turn)
    count = model.cores
    fitting = [number for number in free if len(free[number]) >= count and room[number] >= need.total]
    if not fitting:
        return (), next(iter(free))
    # The fullest node that still fits keeps the emptier ones whole for others.
    node = min(fitting, key=lambda number: (len(free[number]), number))
    return tuple(free[node][:count]), node


def shared_cores(model: Model, free: Mapping[int, list[int]], turn: int) -> tuple[tuple[int, ...], int]:
    """Where cores are shared, each instance starts one further on, so that none is everybody's first."""
    node = max(free, key=lambda number: (len(free[number]), -number))
    cpus = free[node]
    start = turn * model.cores
    count = min(model.cores, len(cpus))
    return tuple(sorted(cpus[(start + offset) % len(cpus)] for offset in range(count))), node


def memory_problem(needs: Sequence[Need], host: Host, settings: Settings) -> list[str]:
    over = excess(needs, host, settings)
    if over <= 0:
        return []
    return [
        f"memory: the models need {gib(sum(need.total for need in needs))}, the reserve is "
        f"{gib(settings.reserve_of(host.memory))}, hugepages {gib(host.hugepages)}, tmpfs {gib(host.tmpfs)}; "
        f"together {gib(over)} more than the {gib(host.memory)} of {host.name}"
    ]


def excess(needs: Sequence[Need], host: Host, settings: Settings) -> int:
    fixed = settings.reserve_of(host.memory) + host.hugepages + host.tmpfs
    return sum(need.total for need in needs) + fixed - host.memory


def disk_problem(needs: Sequence[Need], host: Host, settings: Settings) -> list[str]:
    """This revision and the one before it, for a rollback; what is there already counts as paid."""
    wanted = 0
    for model in {need.model.name: need for need in needs}.values():
        revision = model.model.weights[model.variant].revision
        there = host.installed.get(f"{model.model.name}/{revision}", 0)
        others = sum(1 for key in host.installed if key.startswith(f"{model.model.name}/")) - (1 if there else 0)
        wanted += max(0, model.weights - there)
        wanted += model.weights * max(0, settings.revisions_kept - 1 - others)
    if wanted <= host.disk_free:
        return []
    return [
        f"disk: {settings.revisions_kept} revisions of each model need {gib(wanted)} more, {gib(host.disk_free)} are free; "
        f"free {gib(wanted - host.disk_free)}, or keep fewer revisions"
    ]


def start_seconds(need: Need, measured: Measured | None) -> int:
    if measured:
        return max(START_LEAST, round(measured.load_seconds * START_FACTOR))
    return START_SECONDS + round(need.weights / LOAD_BYTES_PER_SECOND)


def remarks(
    needs: Sequence[Need], placed: Sequence[Placed], host: Host, settings: Settings, measured: Mapping[str, Measured]
) -> Iterator[str]:
    for need in needs:
        if need.variant != "bf16" and need.model.variant == "auto":
            yield f"{need.instance} runs as {need.variant}, since bf16 does not fit here"
        before = measured.get(need.instance)
        if before and before.planned_overhead:
            off = before.overhead / before.planned_overhead - 1
            if abs(off) > MEASURED_TOLERANCE:
                yield (
                    f"{need.instance}: the plan was off by {off:+.0%}: it gave {gib(before.planned_overhead)} of overhead, "
                    f"measured were {gib(before.overhead)}, which counts from now on"
                )
    if not settings.share_cores:
        left = len(host.cpus) - sum(len(place.cpus) for place in placed)
        if left < 1:
            yield "no core is left for the gateway and the system: they compete with the models"
    else:
        yield "models share cores: fine for a lab, slow anywhere else"


def refusal(
    host: Host,
    settings: Settings,
    problems: Sequence[str],
    choices: Mapping[str, list[str]],
    models: Sequence[Model],
    details: Details,
    measured: Mapping[str, Measured],
) -> str:
    """The failed rules, the sums of the most faithful choice, and what would make it fit."""
    faithful = needs_of(models, {name: found[0] for name, found in choices.items()}, details, measured)
    lines = [f"The catalogue does not fit {host.name}.", *(f"  rule {problem}" for problem in problems), ""]
    lines += table(faithful, host, settings)
    lines += ["", "Smallest changes that make it fit:"]
    ways = ways_out(Situation(tuple(models), host, settings), details, measured)
    lines += [f"  - {way}" for way in ways] or ["  - none with up to three changes; use a larger host or fewer models"]
    return "\n".join(lines)


@dataclass(frozen=True)
class Change:
    """Something that can be given up; `cost` is how much that takes from the service."""

    text: str
    cost: int
    topic: str  # two changes of one topic exclude each other
    apply: Callable[[Situation], Situation]


@dataclass(frozen=True)
class Situation:
    """All that a plan depends on and a person can change."""

    models: tuple[Model, ...]
    host: Host
    settings: Settings

    def with_model(self, name: str, change: Callable[[Model], Model]) -> Situation:
        return replace(self, models=tuple(change(model) if model.name == name else model for model in self.models))


def setting(model: Model, key: str, value: object, cost: int, change: Callable[[Model], Model]) -> Change:
    topic = f"citadel_models.{model.name}.{key}"
    return Change(f"set {topic}: {value}", cost, topic, lambda now: now.with_model(model.name, change))


def possible_changes(situation: Situation, details: Details) -> Iterator[Change]:
    host = situation.host
    if host.hugepages:
        yield Change(
            "reserve no hugepages", 0, "hugepages", lambda now: replace(now, host=replace(now.host, hugepages=0))
        )
    if host.tmpfs:
        yield Change("mount no tmpfs caches", 1, "tmpfs", lambda now: replace(now, host=replace(now.host, tmpfs=0)))
    if situation.settings.revisions_kept > 1:
        yield Change(
            "keep one revision of each model",
            1,
            "revisions",
            lambda now: replace(now, settings=replace(now.settings, revisions_kept=1)),
        )
    for model in situation.models:
        yield from changes_of(model, host, details)


def changes_of(model: Model, host: Host, details: Details) -> Iterator[Change]:
    instance, port = model.instances()[0]
    whole = need_of(model, instance, port, "bf16", details)
    if round(model.kv_cache_gib * GIB) > whole.context_cache:
        yield setting(model, "kv_cache_gib", 0, 2, lambda one: replace(one, kv_cache_gib=0.0))
    for step, variant in enumerate(VARIANTS[1:]):
        if model.variant in ("bf16", "auto") and not obstacle(variant, whole.architecture.moe, host.processor):
            yield setting(model, "variant", variant, 3 + step, partial(with_variant, variant=variant))
    if model.replicas > 1:
        fewer = model.replicas - 1
        yield setting(model, "replicas", fewer, 5, partial(replace, replicas=fewer))
    for cores in range(model.cores - 1, 0, -1):
        cost = 2 * (model.cores - cores)
        yield setting(model, "cores", cores, cost, partial(replace, cores=cores, cpus=()))
    yield Change(
        f"leave out {model.name}",
        20,
        f"citadel_models.{model.name}",
        lambda now: replace(now, models=tuple(one for one in now.models if one.name != model.name)),
    )


def ways_out(situation: Situation, details: Details, measured: Mapping[str, Measured]) -> list[str]:
    """Up to three sets of changes: as few as possible, and of those the gentlest."""
    changes = sorted(possible_changes(situation, details), key=lambda change: change.cost)
    for count in (1, 2, 3):
        found: list[tuple[int, str]] = []
        for several in itertools.combinations(changes, count):
            cost = sum(change.cost for change in several)
            if len({change.topic for change in several}) < count or (len(found) == 3 and cost >= found[-1][0]):
                continue
            if fits(several, situation, details, measured):
                found = sorted([*found, (cost, "; ".join(change.text for change in several))])[:3]
        if found:
            return [text for _, text in found]
    return []


def fits(changes: Sequence[Change], situation: Situation, details: Details, measured: Mapping[str, Measured]) -> bool:
    for change in changes:
        situation = change.apply(situation)
    chosen = {model.name: "bf16" if model.variant == "auto" else model.variant for model in situation.models}
    try:
        needs = needs_of(situation.models, chosen, details, measured)
        return bool(needs) and not place(needs, situation.host, situation.settings, measured)[0]
    except CatalogueError:
        return False


def with_variant(model: Model, variant: str) -> Model:
    """The model as if someone had said where the weights of that variant are."""
    base = model.weights["bf16"]
    weights = {**model.weights}
    weights.setdefault(variant, replace(base, variant=variant, repository=""))
    return replace(model, variant=variant, weights=weights)


BAR = 24


def table(needs: Sequence[Need], host: Host, settings: Settings) -> list[str]:
    """The sum, with a bar for each model in proportion to the host's memory."""
    rows = [
        f"{'model':<16} {'variant':<7} {'weights':>8} {'cache':>7} {'repack':>7} {'other':>6} {'need':>7}  of {gib(host.memory)}"
    ]
    for need in needs:
        cells = [need.weights, need.cache, need.repack, need.overhead, need.total]
        w, c, r, o, t = (f"{cell / GIB:.1f}" for cell in cells)
        rows.append(
            f"{need.instance:<16} {need.variant:<7} {w:>8} {c:>7} {r:>7} {o:>6} {t:>7}  {bar(need.total, host.memory)}"
        )
    for name, amount in (
        ("reserve", settings.reserve_of(host.memory)),
        ("hugepages", host.hugepages),
        ("tmpfs", host.tmpfs),
    ):
        if amount:
            rows.append(
                f"{name:<16} {'':<7} {'':>8} {'':>7} {'':>7} {'':>6} {amount / GIB:>7.1f}  {bar(amount, host.memory)}"
            )
    total = host.memory + excess(needs, host, settings)
    verdict = f"{gib(abs(host.memory - total))} {'too much' if total > host.memory else 'free'}"
    rows.append(f"{'sum':<16} {'':<7} {'':>8} {'':>7} {'':>7} {'':>6} {total / GIB:>7.1f}  {verdict}")
    return rows


def bar(amount: float, whole: float) -> str:
    filled = min(BAR, max(1, round(BAR * amount / max(whole, 1))))
    return "█" * filled + "·" * (BAR - filled)


def report(plan: Plan) -> str:
    """What `make capacity` prints of a plan that fits."""
    lines = [f"The catalogue fits {plan.host.name} ({plan.host.processor}).", ""]
    lines += table([place.need for place in plan.placed], plan.host, plan.settings)
    lines += [
        "",
        f"{'model':<16} {'node':>4} {'cores':<12} {'compute':<12} {'MemoryMax':>10} {'cache':>9} {'start':>6} {'tokens/s':>9}",
    ]
    for place in plan.placed:
        lines.append(
            f"{place.need.instance:<16} {place.node:>4} {format_cpus(place.cpus):<12} {format_cpus(place.threads):<12} "
            f"{gib(place.memory_max):>10} {gib(place.need.cache):>9} {place.start_seconds:>5}s {ceiling(place):>9.1f}"
        )
    lines += ["", "tokens/s: the most that the cores can read of the weights, for one sequence"]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def ceiling(place: Placed) -> float:
    return len(place.threads) * CORE_BYTES_PER_SECOND / place.need.architecture.active_bytes(place.need.variant)
