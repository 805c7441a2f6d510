"""The catalogue: what the stanzas of `citadel_models` say, checked and typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .recipes import RECIPES, revision_of

KINDS = ("chat", "embeddings")
VARIANTS = ("bf16", "int8", "int4")  # from the most faithful to the smallest
SOURCES = ("hub", "mirror", "directory", "archive")
TAKEN = ("gateway", "companion")  # names that a model cannot have
REPLICA_PORT_STEP = 100
# option of the unit -> what decides it
PLANNED = {
    "MemoryMax": "memory_gb",
    "CPUAffinity": "cpus",
    "AllowedCPUs": "cpus",
    "TimeoutStartSec": "the measured start",
}
# systemd would escape anything else in an instance name, and file names and metric labels carry it too.
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._]|-(?!-)){0,47}")
# what clients may call it by besides; repositories have a slash
ALIAS = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]){0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CatalogueError(ValueError):
    """A stanza that cannot be meant: which one, which key, which value, and the way out."""

    def __init__(self, model: str, key: str, value: object, problem: str) -> None:
        super().__init__(f"citadel_models.{model}.{key} = {value!r}: {problem}")


@dataclass(frozen=True)
class Weights:
    """Where the weights of one variant come from."""

    variant: str
    repository: str
    revision: str
    source: Mapping[str, str] = field(default_factory=dict)
    made_from: str = ""  # the revision of which this host makes it; empty: it is fetched as it is


@dataclass(frozen=True)
class Model:
    """One stanza."""

    name: str
    kind: str
    port: int
    replicas: int
    cores: int
    cpus: tuple[int, ...]
    context: int
    batched_tokens: int
    sequences: int
    concurrent: int
    timeout: int
    kv_cache_gib: float
    memory_gb: float
    variant: str
    weights: Mapping[str, Weights]
    tool_parser: str
    structured_output: bool
    engine: Mapping[str, Any]
    generation: Mapping[str, Any]
    unit: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    strengths: tuple[str, ...] = ()
    description: str = ""
    fallback: tuple[str, ...] = ()
    objectives: Mapping[str, Any] = field(default_factory=dict)
    vector_size: int = 0
    accuracy: Mapping[str, float] = field(default_factory=dict)  # variant -> most perplexity, as a share of bf16's
    accept_accuracy_loss: bool = False

    @property
    def endpoints(self) -> list[str]:
        return ["embeddings"] if self.kind == "embeddings" else ["chat", "completions"]

    @property
    def capabilities(self) -> list[str]:
        has = {
            "streaming": self.kind == "chat",
            "tools": bool(self.tool_parser),
            "structured_output": self.structured_output and self.kind == "chat",
        }
        return [name for name, there in has.items() if there]

    def instances(self) -> list[tuple[str, int]]:
        """The names and ports of its replicas; a single one bears the model's own name."""
        if self.replicas == 1:
            return [(self.name, self.port)]
        return [
            (f"{self.name}-{number}", self.port + REPLICA_PORT_STEP * (number - 1))
            for number in range(1, self.replicas + 1)
        ]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` upon `base`, mapping by mapping; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def complete(
    models: Mapping[str, Any], defaults: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Every enabled stanza with its defaults and overrides applied, still as plain data."""
    overrides = overrides or {}
    for name in overrides:
        if name not in models:
            known = ", ".join(models)
            raise CatalogueError(name, "*", overrides[name], f"citadel_models has no such model; it has {known}")
    stanzas = {}
    for name, stanza in models.items():
        if not isinstance(stanza, Mapping):
            raise CatalogueError(str(name), "*", stanza, "a model is a mapping of keys, see docs/models.md")
        if name in TAKEN:
            raise CatalogueError(str(name), "*", name, "that is a path of the metrics export; give another name")
        whole = merged(merged(defaults, stanza), overrides.get(name, {}))
        if whole.get("enabled", True):
            stanzas[str(name)] = whole
    if not stanzas:
        raise CatalogueError("*", "enabled", False, "no model is left; enable at least one")
    for name, stanza in stanzas.items():
        _reduce_fallback(name, stanza, models, stanzas)
    return stanzas


def _reduce_fallback(name: str, stanza: dict[str, Any], known: Mapping[str, Any], enabled: Mapping[str, Any]) -> None:
    """A model that is not enabled stands in for nobody; one that is not there at all is a slip of the pen."""
    for other in Stanza(name, stanza).texts("fallback"):
        if other not in known or other == name:
            others = ", ".join(one for one in known if one != name) or "none"
            raise CatalogueError(name, "fallback", stanza["fallback"], f"{other} is no other model; there are {others}")
    stanza["fallback"] = [other for other in stanza.get("fallback") or [] if other in enabled]


def parse_cpus(text: str) -> tuple[int, ...]:
    """ "0-2,8" as (0, 1, 2, 8)."""
    cpus: set[int] = set()
    for part in filter(None, (piece.strip() for piece in str(text).split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ValueError(f"{part!r} is no CPU or range of CPUs such as 3 or 0-7")
        cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))


def format_cpus(cpus: tuple[int, ...]) -> str:
    """(0, 1, 2, 8) as "0-2,8"."""
    parts: list[str] = []
    run: list[int] = []
    for cpu in [*sorted(cpus), None]:
        if cpu is not None and (not run or cpu == run[-1] + 1):
            run.append(cpu)
            continue
        if run:
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
        run = [] if cpu is None else [cpu]
    return ",".join(parts)


class Stanza:
    """Reads the keys of one stanza; every complaint names the stanza, the key and the value."""

    def __init__(self, model: str, keys: Mapping[str, Any]) -> None:
        self.model = model
        self.keys = keys

    def refuse(self, key: str, problem: str) -> CatalogueError:
        return CatalogueError(self.model, key, self.keys.get(key), problem)

    def number(self, key: str, low: int, high: int) -> int:
        value = self.keys.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"give a whole number from {low} to {high}")
        return value

    def amount(self, key: str, problem: str) -> float:
        value = self.keys.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise self.refuse(key, problem)
        return float(value)

    def text(self, key: str) -> str:
        value = self.keys.get(key, "")
        if not isinstance(value, str):
            raise self.refuse(key, "give a text")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.keys.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.refuse(key, "give a mapping of keys and values")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.keys.get(key) or []
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            raise self.refuse(key, "give a list of texts")
        return tuple(value)

    def aliases(self) -> tuple[str, ...]:
        for alias in self.texts("aliases"):
            if not ALIAS.fullmatch(alias):
                raise self.refuse(
                    "aliases", f"{alias!r} is no name; use up to 96 letters, digits, '.', '_', '/' and '-'"
                )
        return self.texts("aliases")

    def unit(self) -> Mapping[str, Any]:
        """Options of systemd for this model alone; what the plan decides is not among them."""
        for option in self.mapping("unit"):
            if option in PLANNED:
                raise self.refuse("unit", f"{option} follows from {PLANNED[option]}; change that")
            if not re.fullmatch(r"[A-Z][A-Za-z]+", str(option)):
                raise self.refuse("unit", f"{option!r} is no option of [Service]; see systemd.exec(5)")
        return self.mapping("unit")

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.keys.get(key)
        if value not in choices:
            raise self.refuse(key, f"choose one of {', '.join(choices)}")
        return str(value)

    def flag(self, key: str) -> bool:
        value = self.keys.get(key, False)
        if not isinstance(value, bool):
            raise self.refuse(key, "give true or false")
        return value

    def accuracy(self) -> dict[str, float]:
        """How much more perplexity a variant may have, where it was measured."""
        for variant, most in self.mapping("accuracy").items():
            if variant not in VARIANTS[1:]:
                raise self.refuse("accuracy", f"{variant!r} is none of {', '.join(VARIANTS[1:])}")
            if isinstance(most, bool) or not isinstance(most, int | float) or most < 1:
                raise self.refuse(
                    "accuracy", f"{variant}: give the most perplexity as a share of bf16's, such as 1.01 for 1 % more"
                )
        return {variant: float(most) for variant, most in self.mapping("accuracy").items()}

    def weights(self) -> dict[str, Weights]:
        found: dict[str, Weights] = {}
        places = {"bf16": dict(self.keys), **self.mapping("variants")}
        for variant, place in places.items():
            if variant not in VARIANTS:
                raise self.refuse("variants", f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
            source = place.get("source") or {}
            if source and source.get("kind") not in SOURCES:
                raise self.refuse("source", f"source.kind is one of {', '.join(SOURCES)}")
            revision = str(place.get("revision", ""))
            if not REVISION.fullmatch(revision):
                raise self.refuse("revision", "give a commit, a tag or a name of letters, digits, '.', '_' and '-'")
            repository = str(place.get("repository", ""))
            if not repository and source.get("kind", "hub") in ("hub", "mirror"):
                raise self.refuse("repository", f"give owner/name for the {variant} weights")
            found[variant] = Weights(variant, repository, revision, {k: str(v) for k, v in source.items()})
        if self.keys.get("kind") == "chat":
            base = found["bf16"]
            for variant in RECIPES:
                made = revision_of(variant, base.repository, base.revision)
                found.setdefault(variant, Weights(variant, base.repository, made, base.source, base.revision))
        return found

    def parse(self) -> Model:
        if not NAME.fullmatch(self.model) or self.model.endswith("-"):
            raise CatalogueError(
                self.model,
                "(name)",
                self.model,
                "systemd cannot take this as an instance; use up to 48 of a-z, 0-9, '.', '_' and single '-'",
            )
        variant = self.choice("variant", ("auto", *VARIANTS))
        weights = self.weights()
        if variant != "auto" and variant not in weights:
            raise self.refuse("variant", f"citadel_models.{self.model}.variants does not say where it comes from")
        try:
            cpus = parse_cpus(self.text("cpus"))
        except ValueError as error:
            raise self.refuse("cpus", str(error)) from None
        cores = self.number("cores", 1, 1024)
        if cpus and len(cpus) != cores:
            raise self.refuse("cpus", f"these are {len(cpus)} CPUs, but cores is {cores}; make them agree")
        return Model(
            name=self.model,
            kind=self.choice("kind", KINDS),
            port=self.number("port", 1024, 65535),
            replicas=self.number("replicas", 1, 9),
            cores=cores,
            cpus=cpus,
            context=self.number("context", 16, 10_000_000),
            batched_tokens=self.number("batched_tokens", 16, 1_000_000),
            sequences=self.number("sequences", 1, 10_000),
            concurrent=self.number("concurrent", 1, 100_000),
            timeout=self.number("timeout", 1, 86_400),
            kv_cache_gib=self.amount("kv_cache_gib", "give GiB as a number, or 0 for one full context"),
            memory_gb=self.amount("memory_gb", "give GB as a number, or 0 for what the plan finds"),
            variant=variant,
            weights=weights,
            tool_parser=self.text("tool_parser"),
            structured_output=bool(self.keys.get("structured_output", True)),
            engine=self.mapping("engine"),
            generation=self.mapping("generation"),
            unit=self.unit(),
            aliases=self.aliases(),
            strengths=self.texts("strengths"),
            description=self.text("description"),
            fallback=self.texts("fallback"),
            objectives=self.mapping("objectives"),
            vector_size=self.number("vector_size", 0, 100_000) if "vector_size" in self.keys else 0,
            accuracy=self.accuracy(),
            accept_accuracy_loss=self.flag("accept_accuracy_loss"),
        )


def parse(stanzas: Mapping[str, Mapping[str, Any]], taken_ports: Mapping[int, str] | None = None) -> list[Model]:
    """The models of completed stanzas, or one sentence about the first thing that is wrong."""
    models = [Stanza(name, stanza).parse() for name, stanza in stanzas.items()]
    owners = dict(taken_ports or {})
    names: set[str] = set()
    for model in models:
        for instance, port in model.instances():
            if port in owners:
                raise CatalogueError(
                    model.name, "port", model.port, f"{instance} and {owners[port]} both want port {port}; change one"
                )
            owners[port] = instance
            if instance in names:
                raise CatalogueError(
                    model.name, "replicas", model.replicas, f"two instances would be called {instance}; rename a model"
                )
            names.add(instance)
    called = {model.name: model.name for model in models}
    for model in models:
        for alias in model.aliases:
            if called.setdefault(alias, model.name) != model.name or alias == model.name:
                raise CatalogueError(
                    model.name, "aliases", list(model.aliases), f"{alias} names {called[alias]} already; drop it"
                )
    return models


DOCUMENTED = {"mixtral-8x7b": "mixtral", "hermes-2": "hermes", "openchat-3.5": "openchat", "phi-3-mini": "phi3"}


def schemas(models: Sequence[Model]) -> dict[str, str]:
    """Of each model in a database: as the documents call it, and any other by its name."""
    found: dict[str, str] = {}
    for model in models:
        name = DOCUMENTED.get(model.name) or re.sub("[^a-z0-9]", "_", model.name.lower())[:50]
        schema = name if name[:1].isalpha() else f"model_{name}"
        if schema in found.values():
            schema += f"_{len(found)}"
        found[model.name] = schema
    return found


# what their makers want before a text that is stored, and before one that is looked for
TASKS = {"nomic-ai/nomic-embed-text-v1.5": ("search_document: ", "search_query: ")}


def vectors(models: Sequence[Model], told: Mapping[str, Any]) -> dict[str, Any]:
    """The companion's section of that name: `told` with a collection for each model that talks, as the documents call
    it, and of the size that the embeddings model makes."""
    if not told:
        return {}
    found: dict[str, Any] = {}
    maker = next((model for model in models if model.kind == "embeddings" and model.vector_size), None)
    if maker is not None:
        document, query = TASKS.get(maker.weights["bf16"].repository, ("", ""))
        found["embeddings"] = {"model": maker.name, "document_prefix": document, "query_prefix": query}
        names = schemas(models)
        found["collections"] = {
            model.name: {"name": f"{names[model.name]}_embeddings", "size": maker.vector_size}
            for model in models
            if model.kind == "chat"
        }
    whole = merged(found, told)
    if not whole.get("collections"):
        raise CatalogueError(
            "*",
            "kind",
            "embeddings",
            "citadel_vectors needs such a model, which says how large vectors are; enable one, name collections with "
            "their sizes in citadel_vectors, or leave it empty",
        )
    return whole
