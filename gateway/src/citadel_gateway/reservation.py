"""Station 3: what the request may use up, reserved before any work and settled after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from citadel_gateway.errors import Refusal
from citadel_gateway.limits import Exceeded, Limits

if TYPE_CHECKING:
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Model
    from citadel_gateway.shared import Shared


def reserve(exchange: Exchange, model: Model, limits: Limits) -> None:
    principal = exchange.principal
    settings = limits.settings
    meters = []
    if principal.anonymous:
        meters.append(limits.meter(("address", exchange.address), settings.address))
    limit_class = model.settings.limit_class
    if limit_class is not None:
        key = ("class", principal.id, model.name)
        meters.append(limits.meter(key, settings.classes[limit_class], principal.tier.class_factor))
    meters.append(limits.meter(("principal", principal.id), principal.tier))
    try:
        exchange.reservation = limits.reserve(meters, exchange.prompt_estimate + exchange.max_tokens)
    except Exceeded as exceeded:
        raise refused(exchange, exceeded) from None


async def reserve_for_all(exchange: Exchange, model: Model, limits: Limits, shared: Shared) -> None:
    """The same where other gateways count with this one."""
    reserve(exchange, model, limits)
    held = exchange.reservation
    if held is None:
        return
    exceeded = await shared.agree(held)
    if exceeded is not None:
        held.cancel()
        exchange.reservation = None
        raise refused(exchange, exceeded)


def refused(exchange: Exchange, exceeded: Exceeded) -> Refusal:
    scope = {
        "address": "this address",
        "class": f"this client on {exchange.model.name if exchange.model is not None else exchange.path}",
        "companion": "this client on the companion's paths",
        "principal": f"tier {exchange.principal.tier_name}",
    }.get(exceeded.scope, exceeded.scope)
    return Refusal(
        429,
        "rate_limit_exceeded" if exceeded.kind != "concurrent requests" else "concurrency_limit_exceeded",
        f"The limit of {exceeded.limit:g} {exceeded.kind} for {scope} is reached; "
        f"try again in {exceeded.retry_after:.1f} s.",
        retry_after=exceeded.retry_after,
    )


async def move(exchange: Exchange, model: Model, limits: Limits) -> bool:
    """The reservation goes to the model that stands in, `exchange.model`; False if there is no room, and all is as it
    was with `model`."""
    held = exchange.reservation
    other = exchange.model
    if held is None or other is None:
        return False
    held.cancel()
    if await _reserved(exchange, other, limits) is None:
        return True
    # others may have taken what was given back, where they count with this gateway
    refusal = await _reserved(exchange, model, limits)
    if refusal is not None:
        raise refusal
    return False


async def _reserved(exchange: Exchange, model: Model, limits: Limits) -> Refusal | None:
    """Why not, if not."""
    try:
        if limits.shared is None:
            reserve(exchange, model, limits)
        else:
            await reserve_for_all(exchange, model, limits, limits.shared)
    except Refusal as refusal:
        return refusal
    return None


def grow(exchange: Exchange, model: Model, tokens: int, limits: Limits) -> bool:
    """So many tokens more of the prompt; False if there is no room for them, and all is as it was."""
    held = exchange.reservation
    if held is None:
        return False
    held.cancel()
    exchange.prompt_estimate += tokens
    try:
        reserve(exchange, model, limits)
    except Refusal:
        exchange.prompt_estimate -= tokens
        reserve(exchange, model, limits)
        return False
    return True


def limit_lines(exchange: Exchange) -> bytes:
    """What is left, in the headers that OpenAI uses."""
    if exchange.reservation is None:
        return b""
    requests, tokens = exchange.reservation.remaining()
    claim = exchange.reservation.claim
    of_all = claim.left if claim is not None else (-1, -1)
    lines = b""
    if requests is not None:
        limit = requests.limit
        left = max(0, limit - requests.total) if of_all[0] < 0 else of_all[0]
        lines = b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\n" % (limit, left)
    if tokens is not None:
        limit = tokens.limit
        left = max(0, limit - tokens.total) if of_all[1] < 0 else of_all[1]
        lines += b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\n" % (limit, left)
    return lines
