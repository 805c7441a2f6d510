"""Requests that were in flight when an engine died.

One of them may be why. Nobody can tell which after one death, so each is remembered by its fingerprint, and those that
are sent again, to another replica or by their client, run one at a time: if a second engine dies, it is known on what.
That one is refused from then on. One that ends well is forgotten.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from citadel_gateway.errors import Refusal

if TYPE_CHECKING:
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Model, Replica

DEATHS = 2  # after which it is not tried again
_KEPT = 3600.0
_MOST = 1000


class Suspect:
    __slots__ = ("deaths", "last")

    def __init__(self) -> None:
        self.deaths: set[tuple[str, int]] = set()  # of which replica, and which of its deaths
        self.last = time.monotonic()


class Quarantine:
    def __init__(self) -> None:
        self._suspects: OrderedDict[bytes, Suspect] = OrderedDict()
        self._turns: dict[str, asyncio.Lock] = {}

    def __len__(self) -> int:
        return len(self._suspects)

    def died(self, exchange: Exchange, replica: Replica) -> tuple[int, bool]:
        """An engine died under it: how many have by now, and whether this death is news.

        All that were in flight report the same death; only what was sent after it can report another.
        """
        news = exchange.upstream_started > replica.died_at
        if news:
            replica.deaths += 1
            replica.died_at = time.monotonic()
        exchange.deaths += 1
        mark = fingerprint(exchange)
        suspect = self._suspects.pop(mark, None)
        if suspect is None:
            suspect = Suspect()
        suspect.deaths.add((replica.name, replica.deaths))
        suspect.last = time.monotonic()
        self._suspects[mark] = suspect
        if len(self._suspects) > _MOST:
            self._suspects.popitem(last=False)
        return len(suspect.deaths), news

    def cleared(self, exchange: Exchange) -> None:
        """It was answered: what died under it died of something else."""
        self._suspects.pop(fingerprint(exchange), None)

    def known(self, exchange: Exchange) -> bool:
        """Whether it has to wait for its turn; one that has broken enough is refused."""
        mark = fingerprint(exchange)
        suspect = self._suspects.get(mark)
        if suspect is None:
            return False
        if time.monotonic() - suspect.last > _KEPT:
            del self._suspects[mark]
            return False
        if len(suspect.deaths) >= DEATHS and exchange.model is not None:
            raise breaks(exchange.model)
        return True

    def turn(self, model: Model) -> asyncio.Lock:
        """One suspect of a model at a time."""
        lock = self._turns.get(model.name)
        if lock is None:
            lock = self._turns[model.name] = asyncio.Lock()
        return lock


def fingerprint(exchange: Exchange) -> bytes:
    return hashlib.blake2b(exchange.body, digest_size=16).digest()


def breaks(model: Model) -> Refusal:
    return Refusal(
        422,
        "request_breaks_model",
        f"{model.name} broke while it worked at this request, more than once, so it is not tried again. "
        "Leave out what is unusual in it (its schema, its probabilities, its length), or ask another model.",
    )
