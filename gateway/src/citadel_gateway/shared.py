"""Limits that hold over several gateways: each request takes them in Redis, in one call, all of them or none.

What this gateway does is counted here as well, in the same windows. So a limit that is reached here needs no question,
and while Redis is away the gateway goes on with what it counts itself; when Redis is back it is told of that.
Concurrent work is counted under a lease, one of each connection: what a gateway held ends with its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
import uuid
from collections import deque
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis

from citadel_gateway.limits import Exceeded
from citadel_gateway.redis_client import Away, Redis

if TYPE_CHECKING:
    from citadel_gateway.config import Redis as Settings
    from citadel_gateway.limits import Limits, Meter, Reservation, Slice
    from citadel_gateway.redis_client import Connection, Part

logger = logging.getLogger("citadel_gateway")

SCRIPT = Path(__file__).with_name("shared.lua").read_text(encoding="utf-8")
_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
_LEASE = 15.0  # seconds without a sign after which a gateway holds nothing any more
_BEAT = 5.0
_UNSETTLED = 4096  # what is kept for a Redis that is away
_PORTION = 64  # so that the last of them does not come late
_KINDS = ("concurrent requests", "requests per minute", "requests per hour", "requests per day", "tokens per minute")
_BUCKET = "llm:ratelimit:overall"
_GRANTED, _REFUSED = 0, 1
_RAN_OUT = "its lease ran out"


@functools.lru_cache(maxsize=10_000)
def names(key: tuple[str, ...]) -> tuple[str, str]:
    """Where a meter's windows are, and who works now. A user's name begins with `key:` or `address:`."""
    kind, who, *model = key
    tail = {"principal": f"{who}:*", "address": f"unknown:{who}", "class": ":".join((who, *model))}[kind]
    return f"llm:ratelimit:{tail}", f"llm:concurrent:{tail}"


class Gift(NamedTuple):
    """What goes back to Redis: it is sent once, or again if Redis has not heard it."""

    claim: Claim
    tokens: int
    requests: int


class News(NamedTuple):
    """What was counted here alone, of one meter."""

    meter: Meter
    counts: list[tuple[Slice, int]]
    command: tuple[Part, ...]


class Claim:
    """What one reservation holds with all gateways."""

    __slots__ = (
        "_burst",
        "_ended",
        "_figures",
        "_future",
        "_keys",
        "_reservation",
        "_shared",
        "_turn",
        "at",
        "exceeded",
        "left",
    )

    def __init__(self, shared: Shared, reservation: Reservation) -> None:
        self._shared = shared
        self._reservation = reservation
        self._keys: list[Part] = []
        self._figures: list[int] = []
        self._ended: tuple[int, int] | None = None  # tokens and requests that came back before the answer
        self._future: asyncio.Future[None] | None = None
        self._turn = 0  # of the telling, if it was counted here only
        self.at = 0  # Redis' second in which it was taken
        self.exceeded: Exceeded | None = None
        self.left = (-1, -1)  # requests and tokens
        for meter in reservation.meters:
            self._keys += names(meter.key)
            self._figures += meter.figures
            if meter.figures[0] >= 0:
                meter.claimed += 1
        bucket = shared.limits.bucket
        self._burst = 0.0 if bucket is None else bucket.burst
        rate = 0.0 if bucket is None else bucket.rate * 60
        try:
            shared.redis.send(self._command("take", reservation.reserved, rate, self._burst), self._answered)
        except Away:
            self._count_here()
        else:
            self._future = asyncio.get_running_loop().create_future()

    async def answer(self) -> Exceeded | None:
        if self._future is not None:
            await self._future
        return self.exceeded

    def end(self, tokens: int, requests: int) -> None:
        """Give so much back, once; what is not yet decided is given back when it is."""
        if self.exceeded is not None:
            return
        if self._future is not None and not self.at and not self._turn:
            self._ended = (tokens, requests)
            return
        self._release()
        if self._turn:
            self._give_back_here(tokens, requests)
        self._shared.give(Gift(self, tokens, requests))

    def giving(self, gift: Gift, *, working: bool) -> tuple[Part, ...]:
        return self._command("give", self.at, gift.requests, gift.tokens, self._burst, int(working))

    def _command(self, *words: Part) -> tuple[Part, ...]:
        keys = self._keys
        return ("EVALSHA", _SHA, 2 + len(keys), self._shared.lease, _BUCKET, *keys, *words, *self._figures)

    def _answered(self, reply: Any) -> None:
        if isinstance(reply, list) and reply[0] == _GRANTED:
            self.at = reply[1]
            self.left = (reply[2], reply[3])
            if self._ended is not None:
                self._release()
                self._shared.give(Gift(self, *self._ended))
        elif isinstance(reply, list) and reply[0] == _REFUSED:
            self._release()
            self.exceeded = self._refusal(*reply[1:])
        else:
            if self._ended is None:
                self._count_here()
            else:
                self._release()
            if not isinstance(reply, Away):
                self._shared.redis.drop(_RAN_OUT if isinstance(reply, list) else str(reply))
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def _refusal(self, place: int, kind: int, milliseconds: int) -> Exceeded:
        if place < 0:
            bucket = self._shared.limits.bucket
            return Exceeded("all clients", _KINDS[1], bucket.rate * 60 if bucket else 0.0, milliseconds / 1000)
        meter = self._reservation.meters[place]
        return Exceeded(meter.scope, _KINDS[kind], float(self._figures[5 * place + kind]), milliseconds / 1000)

    def _release(self) -> None:
        for place, meter in enumerate(self._reservation.meters):
            if self._figures[5 * place] >= 0:
                meter.claimed -= 1

    def _count_here(self) -> None:
        """The others are told of it when Redis is back."""
        self._turn = self._shared.turn
        self._shared.alone()
        for _, taken in self._reservation.of_requests:
            taken.untold += 1
        for _, taken in self._reservation.of_tokens:
            taken.untold += self._reservation.reserved
        self._shared.untold.update(dict.fromkeys(self._reservation.meters))

    def _give_back_here(self, tokens: int, requests: int) -> None:
        if self._turn != self._shared.turn:
            return  # they have been told already, and keep it
        for _, taken in self._reservation.of_requests:
            taken.untold -= requests
        for _, taken in self._reservation.of_tokens:
            taken.untold -= tokens


class Shared:
    def __init__(self, limits: Limits, settings: Settings) -> None:
        self.limits = limits
        self.redis = Redis(settings, prepare=self._prepare, joined=self._joined)
        self.lease = ""
        self.turn = 1  # counts what was told
        self.decided_alone = 0  # requests
        self.untold: dict[Meter, None] = {}  # with counts that the others do not know
        self._gifts: deque[Gift] = deque()  # not known to have arrived, the oldest first
        self._heard = 0  # of this lease
        self._beating: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.redis.start()
        self._beating = asyncio.create_task(self._beat(), name="lease")

    async def close(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
        with contextlib.suppress(Away, hiredis.HiredisError):
            await self.redis.call("DEL", self.lease)
        await self.redis.close()

    async def agree(self, reservation: Reservation) -> Exceeded | None:
        """What the limits of all gateways have against it; in no case does it take longer than Redis' timeout."""
        claim = reservation.claim = Claim(self, reservation)
        return await claim.answer()

    def alone(self) -> None:
        self.decided_alone += 1

    def give(self, gift: Gift) -> None:
        if self.redis.up:
            self._gifts.append(gift)
            self.redis.send(gift.claim.giving(gift, working=True), self._given)
        elif gift.claim.at and len(self._gifts) < _UNSETTLED:
            self._gifts.append(gift)

    def counted(self) -> str:
        return "shared" if self.redis.up else "local"

    def _given(self, reply: Any) -> None:
        if reply == 1:
            self._gifts.popleft()
            self._heard += 1
        elif not isinstance(reply, Away):
            self.redis.drop(_RAN_OUT if reply == 0 else str(reply))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            with contextlib.suppress(Away, hiredis.HiredisError):
                if not await self.redis.call("PEXPIRE", self.lease, int(_LEASE * 1000)):
                    self.redis.drop(_RAN_OUT)

    async def _prepare(self, connection: Connection) -> None:
        """End the lease of the connection before, and tell what happened since."""
        await connection.call("SCRIPT", "LOAD", SCRIPT)
        if self.lease:
            # from here on nothing that is still on its way counts
            heard = await connection.call("GETDEL", self.lease)
            if heard is None:
                self._gifts.clear()  # nobody knows which of them arrived: they stay taken
            else:
                for _ in range(int(heard) - self._heard):
                    self._gifts.popleft()
        self.lease, self._heard = "", 0
        lease = f"llm:gateway:{uuid.uuid4().hex}"
        await connection.call("SET", lease, 0, "PX", int(_LEASE * 1000))
        self.lease = lease
        while self._gifts:
            again = list(islice(self._gifts, _PORTION))
            calls = [connection.call(*gift.claim.giving(gift, working=False)) for gift in again]
            for reply in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(reply, hiredis.ReplyError):
                    logger.error("limits in Redis: %s", reply)  # to send it again would be of no use
                elif reply != 1:
                    raise reply if isinstance(reply, Away) else Away(_RAN_OUT)
                self._gifts.popleft()
                self._heard += 1
        while len(self.untold) > _PORTION:
            news = self._news(_PORTION)
            calls = [connection.call(*each.command) for each in news]
            for each, reply in zip(news, await asyncio.gather(*calls, return_exceptions=True), strict=True):
                self._told(each, reply)

    def _joined(self, connection: Connection) -> None:
        """In one turn with the first request that counts with the others again."""
        for gift in self._gifts:
            connection.send(gift.claim.giving(gift, working=False), self._given)
        for news in self._news(len(self.untold)):
            connection.send(news.command, functools.partial(self._told, news))
        for meter in self.limits.meters():
            if meter.claimed:
                connection.send(("HSET", names(meter.key)[1], self.lease, meter.claimed), self._noted)

    def _noted(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self.redis.drop(str(reply))

    def _told(self, news: News, reply: Any) -> None:
        if isinstance(reply, Exception):
            self.untold[news.meter] = None  # it may have been heard all the same: rather twice than never
            for each, count in news.counts:
                each.untold += count
        self._noted(reply)

    def _news(self, most: int) -> list[News]:
        """What was counted here alone, of so many meters."""
        self.turn += 1
        now = time.monotonic()
        found = []
        for meter in list(islice(self.untold, most)):
            del self.untold[meter]
            told: list[Part] = []
            counts = []
            for window in meter.windows():
                window.left(now)
                for each in window.slices:
                    if each.untold:
                        age = max(0.0, now - (each.index + 1) * window.step)
                        told += (_KINDS.index(window.name), age, each.untold)
                        counts.append((each, each.untold))
                        each.untold = 0
            if told:
                found.append(News(meter, counts, ("EVALSHA", _SHA, 1, names(meter.key)[0], "tell", *told)))
        return found
