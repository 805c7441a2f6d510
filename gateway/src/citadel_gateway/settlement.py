"""Station 7: everything that was taken is given back, whatever happened. Exactly once, never awaiting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from citadel_gateway.exchange import Exchange

_LEFT = 499


def release_permit(exchange: Exchange) -> None:
    replica = exchange.replica
    if replica is not None and exchange.on_replica:
        exchange.on_replica = False
        replica.in_flight -= 1
        if not replica.in_flight:
            replica.idle.set()
    permit = exchange.permit
    if permit is not None:
        exchange.permit = None
        permit.release()


def settle(exchange: Exchange) -> None:
    permit = exchange.permit
    if permit is not None and exchange.model is not None and exchange.status == 200 and not exchange.outcome:
        exchange.model.service.add(time.monotonic() - permit.started)
    release_permit(exchange)
    reservation = exchange.reservation
    if reservation is None:
        return
    if not exchange.upstream_started and not exchange.usage_exact:
        reservation.cancel()
    else:
        exchange.charged = _charge(exchange, reservation.reserved)
        reservation.settle(exchange.charged)


def _charge(exchange: Exchange, reserved: int) -> int:
    """What the model says that it used. Where it did not come to that, what was reserved: leaving early saves nothing.

    Only what the model refused, or failed at before it answered, costs no tokens.
    """
    if exchange.usage_exact:
        return exchange.prompt_tokens + exchange.completion_tokens
    left = not exchange.status or exchange.outcome == _LEFT
    if exchange.status == 200 or left or 504 in (exchange.status, exchange.outcome) or exchange.cut is not None:
        return reserved
    return 0
