"""The gateway's configuration file, as it follows from planned models and from what the deployer says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .catalogue import Model, merged

HEAVY_CORES = 8
CONCURRENT = 4  # of a model without objectives
# Twice what all objectives ask for at once is the most in flight; beyond that, waiting in turn is faster.
OVERLOAD = 2
# sections that are the role's to tell, whole
_WHERE_TOLD = ("cache", "tracing", "usage", "redis", "companion", "knowledge")


def configuration(
    models: Sequence[Model],
    instances: Sequence[Mapping[str, Any]],
    told: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """`told` is what the role knows (profile, ports, places); `settings` is any section and has the last word."""
    development = told["profile"] == "development"
    ports = told["ports"]
    names = known_names(models)
    derived = {
        "profile": told["profile"],
        # used when the gateway is started by hand; as a unit it gets its sockets from systemd
        "listen": {
            **{name: f"0.0.0.0:{ports[name]}" for name in ("api", "export")},
            **{name: f"{told['side_address'] or '0.0.0.0'}:{ports[name]}" for name in ("management", "health")},
        },
        "server": {
            "drain": drain(models),
            "cors": {"origins": list(told["cors_origins"])},
            **({"tls": dict(told["tls"])} if told["tls"] else {}),
        },
        "auth": {"keys_file": told["keys_file"], "anonymous": {"enabled": development, "tier": "basic"}},
        "logs": {"access": f"{told['logs']}/access.log", "audit": f"{told['logs']}/audit.log"},
        "limits": told["limits"],
        "admission": {"budget": budget(models)},
        "health": {"load_times": told["load_times"]},
        **{name: dict(told[name]) for name in _WHERE_TOLD if told.get(name)},
        "models": {model.name: of_model(model, instances, names[model.name]) for model in models},
    }
    return merged(derived, settings)


def digest(source: Mapping[str, str], *parts: Any) -> str:
    """Names all that a gateway is made of: another digest than that of the running process means a replacement."""
    whole = "\n".join([json.dumps(source, sort_keys=True), *map(str, parts)])
    return hashlib.sha256(whole.encode()).hexdigest()


def drain(models: Sequence[Model]) -> float:
    """The longest stream may take as long as the slowest model is allowed to."""
    return float(max(model.timeout for model in models))


def budget(models: Sequence[Model]) -> float:
    """A request costs the cores of its model."""
    return float(sum(OVERLOAD * model.cores * int(model.objectives.get("concurrent", CONCURRENT)) for model in models))


def known_names(models: Sequence[Model]) -> dict[str, list[str]]:
    """What clients may say instead of a model's name: its aliases, and its repository if it is the only one of it."""
    taken = {name for model in models for name in (model.name, *model.aliases)}
    names = {}
    for model in models:
        repository = model.weights["bf16"].repository
        names[model.name] = list(model.aliases)
        if repository and repository not in taken:
            names[model.name].append(repository)
            taken.add(repository)
    return names


def of_model(model: Model, instances: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    own = [one for one in instances if one["model"] == model.name]
    embeddings = model.kind == "embeddings"
    return {
        "replicas": [
            {"name": one["name"], "url": one["url"], "unit": f"citadel-llm@{one['name']}.service"} for one in own
        ],
        "context": model.context,
        "endpoints": model.endpoints,
        "aliases": list(names),
        "description": model.description,
        "capabilities": model.capabilities,
        "specialisation": list(model.strengths),
        "vector_size": (model.vector_size or own[0]["hidden_size"]) if embeddings else None,
        "defaults": {
            "max_tokens": model.generation["max_tokens"],
            "temperature": float(model.generation["temperature"]),
            "top_p": float(model.generation["top_p"]),
        },
        "bounds": dict(model.generation["bounds"]),
        "timeout": float(model.timeout),
        "concurrency": model.concurrent,
        "cost": float(model.cores),
        "limit_class": "heavy" if model.cores >= HEAVY_CORES else "light",
        "fallback": list(model.fallback),
        "revision": own[0]["revision"],
    }
