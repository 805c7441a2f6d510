"""What a plan may choose: the variant of each model, the room of its cache, how many cores it gets.

A stanza's `variant: auto`, `kv_cache_gib` and `cores` are wishes. Whatever gives up least comes first: smaller caches
before smaller weights, int8 of several before int4 of one. A core is taken from the model that it slows least against
what was promised.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .accuracy import way_out
from .catalogue import CatalogueError, Model
from .needs import Knowledge, Need, needs_of, needs_of_model
from .placement import tokens_per_second
from .settings import Settings
from .topology import Host
from .variants import hindrance, servable

USUAL_MS_PER_TOKEN = 200.0  # for a model that promises none


@dataclass(frozen=True)
class Choice:
    """One way to serve the catalogue."""

    variants: Mapping[str, str]
    small_caches: bool

    def needs(self, models: Sequence[Model], host: Host, settings: Settings, knowledge: Knowledge) -> list[Need]:
        asked = [replace(model, kv_cache_gib=0.0) for model in models] if self.small_caches else models
        return with_cores(needs_of(asked, self.variants, knowledge), host, settings)


def choices(models: Sequence[Model], host: Host, knowledge: Knowledge) -> Iterator[Choice]:
    """Every one there is, those that give up least first."""
    possible = {model.name: variants_of(model, host, knowledge) for model in models}
    for variants in combinations(possible):
        yield Choice(variants, small_caches=False)
        yield Choice(variants, small_caches=True)


def smallest(models: Sequence[Model], host: Host, knowledge: Knowledge) -> Choice:
    """The one that asks for least: if it does not fit, none does."""
    return Choice({model.name: variants_of(model, host, knowledge)[-1] for model in models}, small_caches=True)


def variants_of(model: Model, host: Host, knowledge: Knowledge) -> list[str]:
    """What may be chosen for this model here, the most faithful first."""
    architecture = needs_of_model(model, "bf16", knowledge)[0].architecture
    wanted = [model.variant] if model.variant != "auto" else list(model.weights)
    found = servable(model, wanted, architecture, host.processor)
    if not found:
        problems = (hindrance(model, variant, architecture, host.processor) for variant in wanted)
        problem = "; ".join(filter(None, problems))
        raise CatalogueError(
            model.name, "variant", model.variant, f"{problem}, and {host.name} has {host.processor}; choose another"
        )
    if model.accept_accuracy_loss:
        return found
    faithful = [variant for variant in found if not knowledge.objection(model, variant)]
    if not faithful:
        problems = (knowledge.objection(model, variant) for variant in found)
        raise CatalogueError(model.name, "variant", model.variant, f"{'; '.join(problems)}; {way_out(model.name)}")
    return faithful


def combinations(possible: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """int4 only where nothing else fits: it loses more than int8, and without AMX it is the slower one too."""
    names = list(possible)

    def chosen(steps: Sequence[int]) -> dict[str, str]:
        return {name: possible[name][step] for name, step in zip(names, steps, strict=True)}

    ranked = sorted(
        itertools.product(*(range(len(possible[name])) for name in names)),
        key=lambda steps: (list(chosen(steps).values()).count("int4"), sum(steps), max(steps, default=0), steps),
    )
    yield from map(chosen, ranked)


def wide(model: Model) -> Model:
    """As 16 bits in the files, and 32 in memory and in the engine."""
    return replace(model, engine={**model.engine, "dtype": "float32"})


def may_be_wide(need: Need, host: Host) -> bool:
    """Without AVX512 there are no kernels for 16 bits: 32 of them compute three to five times as fast. A stanza that
    names its dtype has decided."""
    return not host.processor.avx512 and need.variant == "bf16" and "dtype" not in need.model.engine


def least_cores(model: Model) -> int:
    """Half of what its stanza asks for; cores that it names stay its own."""
    return model.cores if model.cpus else -(-model.cores // 2)


def with_cores(needs: Sequence[Need], host: Host, settings: Settings) -> list[Need]:
    """As many as the host has: one after the other is taken from the model that stays nearest to its promise."""
    cores = {need.model.name: need.model.cores for need in needs}
    over = sum(need.model.cores for need in needs) - len(host.cpus)
    while over > 0 and not settings.share_cores:
        left = {
            need.model.name: tokens_per_second(need, cores[need.model.name] - 1, host) * promised_ms(need.model)
            for need in needs
            if cores[need.model.name] > least_cores(need.model)
        }
        if not left:
            break
        name = max(left, key=lambda name: left[name])
        cores[name] -= 1
        over -= sum(need.model.name == name for need in needs)
    return [replace(need, model=replace(need.model, cores=cores[need.model.name])) for need in needs]


def promised_ms(model: Model) -> float:
    return float(model.objectives.get("per_token_ms", USUAL_MS_PER_TOKEN))
