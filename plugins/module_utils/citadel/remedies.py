"""The smallest changes that would make a catalogue fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from .catalogue import VARIANTS, CatalogueError, Model
from .choice import smallest
from .needs import Knowledge, Need, needs_of_model
from .placement import GB, excess, place
from .settings import Settings
from .topology import Host
from .variants import obstacle

SHOWN = 3
CHANGES_MOST = 12


@dataclass(frozen=True)
class Situation:
    """All that a plan depends on and a person can change."""

    models: tuple[Model, ...]
    host: Host
    settings: Settings

    def with_model(self, name: str, change: Callable[[Model], Model]) -> Situation:
        return replace(self, models=tuple(change(model) if model.name == name else model for model in self.models))


@dataclass(frozen=True)
class Change:
    """Something that can be given up; `cost` is how much that takes from the service."""

    text: str
    cost: int
    topic: str  # two changes of one topic exclude each other
    apply: Callable[[Situation], Situation]


def ways_out(situation: Situation, knowledge: Knowledge) -> list[str]:
    """Up to three sets of one or two changes, the gentlest first; where those do not do, one larger set."""
    changes = sorted(possible_changes(situation, knowledge), key=lambda change: change.cost)
    for count in (1, 2):
        found = [
            (sum(change.cost for change in several), "; ".join(change.text for change in several))
            for several in itertools.combinations(changes, count)
            if len({change.topic for change in several}) == count and fits(applied(several, situation), knowledge)
        ]
        if found:
            return [text for _, text in sorted(found)[:SHOWN]]
    several = larger_set(changes, situation, knowledge)
    return ["; ".join(change.text for change in several)] if several else []


def larger_set(changes: Sequence[Change], situation: Situation, knowledge: Knowledge) -> list[Change]:
    """Takes the change that helps most for its cost until all fits, then gives back what was not needed after all."""
    taken: list[Change] = []
    while len(taken) < CHANGES_MOST:
        now = applied(taken, situation)
        short = shortfall(now, knowledge)
        topics = {change.topic for change in taken}
        gains = [
            ((short - shortfall(change.apply(now), knowledge)) / (1 + change.cost), change)
            for change in changes
            if change.topic not in topics
        ]
        gain, best = max(gains, key=lambda pair: pair[0], default=(0.0, None))
        if best is None or gain <= 0:
            return []
        taken.append(best)
        if fits(applied(taken, situation), knowledge):
            break
    else:
        return []
    for change in sorted(taken, key=lambda change: -change.cost):
        fewer = [one for one in taken if one is not change]
        if fits(applied(fewer, situation), knowledge):
            taken = fewer
    return taken


def applied(changes: Sequence[Change], situation: Situation) -> Situation:
    for change in changes:
        situation = change.apply(situation)
    return situation


def needs_in(situation: Situation, knowledge: Knowledge) -> list[Need]:
    """Of the choice that asks for least."""
    models, host = situation.models, situation.host
    return smallest(models, host, knowledge).needs(models, host, situation.settings, knowledge)


def fits(situation: Situation, knowledge: Knowledge) -> bool:
    try:
        needs = needs_in(situation, knowledge)
        return bool(needs) and not place(needs, situation.host, situation.settings)[0]
    except CatalogueError:
        return False


def shortfall(situation: Situation, knowledge: Knowledge) -> float:
    """How far it is from fitting, each rule as a share of what the host has; only good for comparisons."""
    host, needs = situation.host, needs_in(situation, knowledge)
    memory = max(0, excess(needs, host, situation.settings))
    limits = sum(max(0.0, need.total - need.model.memory_gb * GB) for need in needs if need.model.memory_gb)
    cores = 0 if situation.settings.share_cores else sum(need.model.cores for need in needs) - len(host.cpus)
    room = max(node.memory for node in host.nodes) - situation.settings.fixed_on(host) / len(host.nodes)
    nodes = sum(max(0.0, need.total - room) for need in needs)
    return (memory + limits + nodes) / host.memory + max(0, cores) / len(host.cpus)


def possible_changes(situation: Situation, knowledge: Knowledge) -> Iterator[Change]:
    if situation.host.hugepages:
        yield Change(
            "reserve no hugepages", 0, "hugepages", lambda now: replace(now, host=replace(now.host, hugepages=0))
        )
    if situation.host.tmpfs:
        yield Change("mount no tmpfs caches", 1, "tmpfs", lambda now: replace(now, host=replace(now.host, tmpfs=0)))
    if situation.settings.revisions_kept > 1:
        yield Change(
            "keep one revision of each model",
            1,
            "revisions",
            lambda now: replace(now, settings=replace(now.settings, revisions_kept=1)),
        )
    for model in situation.models:
        yield from changes_of(model, situation.host, knowledge)


def changes_of(model: Model, host: Host, knowledge: Knowledge) -> Iterator[Change]:
    whole = needs_of_model(model, "bf16", knowledge)[0]
    if model.memory_gb:
        yield setting(model, "memory_gb", 0, 1, partial(replace, memory_gb=0.0))
    # What `auto` may choose was tried already; what a processor runs, but nobody can make here, may be found elsewhere.
    for step, variant in enumerate(VARIANTS[1:]):
        smaller = VARIANTS.index(model.variant) <= step if model.variant != "auto" else variant not in model.weights
        if smaller and not obstacle(variant, whole.architecture.moe, host.processor):
            yield setting(model, "variant", variant, 3 + step, partial(with_variant, variant=variant))
    if not model.accept_accuracy_loss and any(knowledge.objection(model, variant) for variant in model.weights):
        yield setting(model, "accept_accuracy_loss", "true", 6, partial(replace, accept_accuracy_loss=True))
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


def setting(model: Model, key: str, value: object, cost: int, change: Callable[[Model], Model]) -> Change:
    topic = f"citadel_models.{model.name}.{key}"
    return Change(f"set {topic}: {value}", cost, topic, lambda now: now.with_model(model.name, change))


def with_variant(model: Model, variant: str) -> Model:
    """The model as if someone had said where the weights of that variant are."""
    weights = dict(model.weights)
    weights.setdefault(variant, replace(model.weights["bf16"], variant=variant, repository=""))
    return replace(model, variant=variant, weights=weights)
