"""Station 5: which model, where the client leaves it open, and which replica of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from citadel_gateway.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from citadel_gateway.config import Endpoint, Policy
    from citadel_gateway.fleet import Fleet, Model, Replica

_LONG_PROMPT = 1500  # tokens
_LONG_ANSWER = 1500
_SHORT = 200


def named_model(fleet: Fleet, name: str, endpoint: Endpoint) -> Model:
    model = fleet.names.get(name)
    if model is None:
        raise Refusal(
            404,
            "model_not_found",
            f"The model {name[:100]!r} does not exist; there are {', '.join(fleet.models)}.",
            param="model",
        )
    if endpoint not in model.settings.endpoints:
        raise Refusal(
            404,
            "endpoint_not_supported",
            f"{model.name} does not serve {endpoint}; it serves {', '.join(model.settings.endpoints)}.",
            param="model",
        )
    return model


class Wish(NamedTuple):
    """What is known of a request that names no model."""

    body: dict[str, Any]
    endpoint: Endpoint
    prompt: int
    answer: int


def _words(wish: Wish) -> dict[str, float]:
    """What the request's features ask of a model, by the words that models are specialised in."""
    body, endpoint, prompt, answer = wish
    wanted: dict[str, float] = {}
    if body.get("tools"):
        wanted["tools"] = 4.0
    if prompt > _LONG_PROMPT or answer > _LONG_ANSWER:
        wanted["long-form"] = 2.0
        wanted["reasoning"] = 2.0
    elif prompt <= _SHORT and answer <= _SHORT:
        wanted["fast"] = 1.5
        wanted["cheap"] = 0.5
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > 3:
        wanted["conversation"] = 1.5
    if body.get("stream"):
        wanted["interactive"] = 1.0
        wanted["streaming"] = 0.5
    if endpoint == "embeddings":
        wanted["embeddings"] = 1.0
    return wanted


def choose_model(
    candidates: Iterable[Model], wish: Wish, default: str | None, load: Callable[[Model], float]
) -> Model | None:
    """The best fit among those that can serve it at all; ties go to the less loaded one."""
    wanted = _words(wish)
    best: Model | None = None
    best_score = 0.0
    for model in candidates:
        settings = model.settings
        if wish.endpoint not in settings.endpoints:
            continue
        if wish.body.get("tools") and "tools" not in settings.capabilities:
            continue
        score = sum(wanted.get(word, 0.0) for word in settings.specialisation)
        score += 0.25 if model.name == default else 0.0
        score -= 2.0 * min(load(model), 2.0)
        if wish.prompt + wish.answer > settings.context:
            score -= 50.0  # an estimate may send it elsewhere, but never refuse it
        if not model.capacity():
            score -= 100.0 if model.comes_back() else 1000.0
        if best is None or score > best_score:
            best, best_score = model, score
    return best


def choose_replica(model: Model, policy: Policy, session: str | None, tried: set[Replica]) -> Replica | None:
    """A replica that may take one more request; those that were tried already only if there is no other."""
    usable = [
        replica for replica in model.replicas if replica.usable and replica.in_flight < model.settings.concurrency
    ]
    if tried:
        usable = [replica for replica in usable if replica not in tried] or usable
    if len(usable) <= 1:
        return usable[0] if usable else None
    if session is not None:
        return max(usable, key=lambda replica: _affinity(session, replica))
    match policy:
        case "weighted_round_robin":
            return _round_robin(usable)
        case "least_in_flight":
            return min(usable, key=lambda replica: (replica.in_flight + 1) / replica.settings.weight)
        case "response_time":
            return min(
                usable,
                key=lambda replica: (
                    (replica.first_byte.value + 1e-4) * (replica.in_flight + 1) / replica.settings.weight
                ),
            )
        case "resource":
            return min(
                usable,
                key=lambda replica: (
                    (replica.waiting + replica.in_flight + 10.0 * replica.cache_used) / replica.settings.weight
                ),
            )


def _round_robin(replicas: list[Replica]) -> Replica:
    """Smooth weighted round robin: everyone gains its weight, the richest goes and pays the sum."""
    for replica in replicas:
        replica.current_weight += replica.settings.weight
    chosen = max(replicas, key=lambda replica: replica.current_weight)
    chosen.current_weight -= sum(replica.settings.weight for replica in replicas)
    return chosen


def _affinity(session: str, replica: Replica) -> float:
    """Rendezvous hashing: when a replica goes, only its own sessions move."""
    digest = hashlib.blake2b(f"{session}\0{replica.name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * replica.settings.weight


def fallbacks(model: Model, fleet: Fleet) -> list[Model]:
    names = model.settings.fallback
    return [fleet.models[name] for name in names if fleet.models[name].capacity()]
