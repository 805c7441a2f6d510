"""Station 7: everything that was taken is given back, whatever happened. Exactly once, never awaiting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from citadel_gateway.exchange import Exchange


def leave_replica(exchange: Exchange) -> None:
    replica = exchange.replica
    if replica is not None and exchange.on_replica:
        exchange.on_replica = False
        replica.in_flight -= 1
        if not replica.in_flight:
            replica.idle.set()


def release_permit(exchange: Exchange) -> None:
    leave_replica(exchange)
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
    if exchange.upstream_started:
        reservation.settle(exchange.prompt_tokens + exchange.completion_tokens)
    else:
        reservation.cancel()
