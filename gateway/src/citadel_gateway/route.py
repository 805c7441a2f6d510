"""Station 5: which model, which replica of it, and who stands in for it. Nothing else chooses one."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from citadel_gateway.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from citadel_gateway.config import Endpoint, Policy, Routing
    from citadel_gateway.envelope import Envelope
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Fleet, Model, Replica

_LONG_PROMPT = 1500  # tokens
_LONG_ANSWER = 1500
_SHORT = 200
_GUESS = 256  # tokens of an answer whose length is not said


def settle_model(
    exchange: Exchange, envelope: Envelope, routing: Routing, fleet: Fleet, load: Callable[[Model], float]
) -> Model:
    """The model that the client names, or the one that fits it best."""
    data = envelope.data
    name = data.get("model")
    if name is not None and not isinstance(name, str):
        raise Refusal(400, "invalid_type", "model must be a string.", param="model")
    allowed = exchange.principal.models
    endpoint: Endpoint = exchange.endpoint
    if name in (None, "", "auto"):
        candidates = [model for model in fleet.models.values() if not allowed or model.name in allowed]
        answer = 0 if endpoint == "embeddings" else envelope.asked if envelope.asked is not None else _GUESS
        wish = Wish(data, endpoint, max(envelope.prompts), answer)
        chosen = choose_model(candidates, wish, routing.default_model, load)
        if chosen is None:
            raise Refusal(404, "no_suitable_model", "No model here can serve this request; name one.", param="model")
        model = chosen
        exchange.fallback_allowed = routing.fallback != "never"
    else:
        model = named_model(fleet, str(name), endpoint)
        exchange.fallback_allowed = routing.fallback == "always" or (
            routing.fallback == "on_request"
            and exchange.headers.get(b"x-allow-fallback", b"").lower() in (b"true", b"1", b"yes")
        )
    if allowed and model.name not in allowed:
        raise Refusal(403, "model_not_allowed", f"This key may not use {model.name}.", param="model")
    exchange.model = model
    if exchange.fallback_allowed and model.settings.fallback:
        exchange.original = exchange.body
    else:
        exchange.fallback_allowed = False
    return model


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
    """Weighted rendezvous hashing: when a replica goes, only its own sessions move, and a weight of two gets twice as
    many as a weight of one."""
    digest = hashlib.blake2b(f"{session}\0{replica.name}".encode(), digest_size=8).digest()
    share = (int.from_bytes(digest, "big") + 1) / 2**64
    return replica.settings.weight / -math.log(share) if share < 1.0 else math.inf


def fallbacks(model: Model, fleet: Fleet) -> Iterator[Model]:
    """Who may answer instead: the model's own list in its order, then the lists of those on it."""
    seen = {model.name}
    names = list(model.settings.fallback)
    while names:
        name = names.pop(0)
        if name in seen:
            continue
        seen.add(name)
        other = fleet.models[name]
        names.extend(other.settings.fallback)
        if other.capacity():
            yield other
