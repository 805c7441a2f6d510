"""A step before the model that gives the answer which it has given before to the same request of the same client.

Only what is asked for and deterministic is kept. Equal requests of one client that come together ask the model once:
the first leads, the others wait for its answer. What ends without one that can be kept lets them go on by themselves.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

from citadel_gateway.answers import Answers, Entry, packed_of
from citadel_gateway.compression import chosen
from citadel_gateway.sameness import key_of
from citadel_gateway.step import Answer

if TYPE_CHECKING:
    from citadel_gateway.behind import Behind
    from citadel_gateway.config import Cache as Settings
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.fleet import Model
    from citadel_gateway.metrics import Metrics

_YES = (b"true", b"1", b"yes")
_SLOW = 1.0  # seconds that a leader's own client may hold up those who wait
_THREAD = 64 * 1024  # longer ones are compressed where nobody waits for it
_MAX_AGE = re.compile(rb"max-age=(\d{1,9})").search
_REASONS = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]+)"').findall
_WHOLE = frozenset((b"stop", b"length", b"tool_calls", b"function_call"))
_EVENTS = b"text/event-stream; charset=utf-8"
_EVENT_LINES = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
_PACKED = b"content-encoding: zstd\r\n"


class Flight:
    """A request that others wait for."""

    __slots__ = ("again", "entry", "landed", "leader")

    def __init__(self, leader: Exchange) -> None:
        self.leader = leader
        self.landed = asyncio.Event()
        self.entry: Entry | None = None
        self.again = False  # it ended by its own client's doing: somebody else may lead

    def land(self, entry: Entry | None, *, again: bool = False) -> None:
        self.entry = entry
        self.again = again
        self.landed.set()


class Lookup:
    """What was looked for in vain, and may be kept when it is there."""

    __slots__ = ("flight", "generation", "key", "model", "starts")

    def __init__(self, key: bytes, model: Model, generation: int) -> None:
        self.key = key
        self.model = model
        self.generation = generation
        self.starts = _starts(model)
        self.flight: Flight | None = None


class Cache:
    def __init__(self, settings: Settings, metrics: Metrics, behind: Behind | None = None) -> None:
        self.deadline: float | None = None  # who waits for another does so until its own
        self.settings = settings
        self.behind = behind
        self._metrics = metrics
        self.answers = Answers(settings.memory_bytes, self._evicted)
        self._flights: dict[bytes, Flight] = {}
        self._generation = 0
        self._awaited = 0  # answers that are on their way here
        self._packing: set[asyncio.Task[None]] = set()

    def apply(self, settings: Settings) -> None:
        self.settings = settings
        self.answers.shrink(settings.memory_bytes)

    def start(self) -> None:
        if self.behind is not None:
            self.behind.redis.start()

    async def close(self) -> None:
        if self.behind is not None:
            await self.behind.redis.close()

    async def clear(self, model: str | None = None) -> int:
        """How many answers there were; also what is on its way now is not kept. What Redis fails at is raised, when the
        memory is empty."""
        self._generation += 1
        cleared = self.answers.clear(model)
        return cleared if self.behind is None else max(cleared, await self.behind.clear(model))

    async def before(self, exchange: Exchange) -> Answer | bytes | None:
        model = exchange.model
        if model is None or not self._wanted(exchange, model):
            return None
        control = exchange.headers.get(b"cache-control", b"").lower()
        key = None if b"no-store" in control else key_of(exchange, model)
        if key is None:
            exchange.cache = "bypass"
            return None
        oldest = _oldest(control)
        entry = self._fresh(key, oldest)
        if entry is None:
            entry = await self._joined(exchange, key, model, oldest)
        if entry is not None:
            return self._hit(exchange, entry)
        self._metrics.cache_misses.labels(model.name).inc()
        exchange.cache = "miss"
        return None

    def wants(self, exchange: Exchange) -> int:
        lookup = exchange.lookup
        if lookup is None:
            return 0
        longest = self.settings.answer_bytes
        if (self._awaited + 1) * longest > self.settings.memory_bytes:
            # what is on its way takes memory, too: as much again, and no more
            exchange.lookup = None
            self._land(lookup, None, exchange)
            return 0
        self._awaited += 1
        return longest

    def finished(self, exchange: Exchange, answer: bytes | None) -> None:
        lookup = exchange.lookup
        if lookup is None:
            return
        exchange.lookup = None
        self._awaited -= 1
        entry: Entry | None = None
        try:
            if answer is not None and self._is_of(exchange, lookup):
                entry = self._kept(exchange, lookup, answer)
        finally:
            self._land(lookup, entry, exchange)

    def let_go(self) -> None:
        """Nobody waits for a leader whose own client does not read."""
        now = time.monotonic()
        for key, flight in list(self._flights.items()):
            blocked = flight.leader.write_blocked
            if blocked and now - blocked > _SLOW:
                del self._flights[key]
                flight.land(None)

    def _wanted(self, exchange: Exchange, model: Model) -> bool:
        policy = model.settings.cache or self.settings.policy
        if policy == "on_request":
            return exchange.headers.get(b"x-allow-cache", b"").lower() in _YES
        return policy == "always"

    def _fresh(self, key: bytes, oldest: float) -> Entry | None:
        entry = self.answers.get(key)
        return entry if entry is not None and time.monotonic() - entry.stored < oldest else None

    async def _joined(self, exchange: Exchange, key: bytes, model: Model, oldest: float) -> Entry | None:
        """The answer of an equal request that is under way; else this one goes, and leads if none does."""
        lookup = Lookup(key, model, self._generation)
        while oldest > 0:
            flight = self._flights.get(key)
            # whoever is more urgent does not wait behind the others
            if flight is None or flight.leader.priority < exchange.priority:
                break
            self._metrics.cache_waits.labels(model.name).inc()
            if not await _landed(flight, exchange.deadline):
                break
            if flight.entry is not None:
                return flight.entry
            if not flight.again:
                break
        exchange.lookup = lookup
        if key in self._flights:
            return None
        self._flights[key] = lookup.flight = Flight(exchange)
        if self.behind is None or oldest <= 0:
            return None
        try:
            entry = await self.behind.get(key, exchange.principal.id, model.name, self.settings.answer_bytes)
        except asyncio.CancelledError:
            exchange.lookup = None
            self._land(lookup, None, exchange)
            raise
        if entry is None or time.monotonic() - entry.stored >= oldest or lookup.generation != self._generation:
            return None
        self.answers.put(entry)
        exchange.lookup = None
        self._land(lookup, entry, exchange)
        return entry

    def _hit(self, exchange: Exchange, entry: Entry) -> Answer:
        self._metrics.cache_hits.labels(entry.model).inc()
        exchange.cache = "hit"
        lines = b"age: %d\r\n" % int(time.monotonic() - entry.stored)
        if entry.stream:
            return Answer(entry.whole(), _EVENTS, lines=lines + _EVENT_LINES, as_it_is=True)
        if not entry.packed:
            return Answer(entry.body, lines=lines, as_it_is=True)
        lines += b"vary: accept-encoding\r\n"
        accepted = exchange.headers.get(b"accept-encoding")
        if accepted is not None and chosen(accepted) == "zstd":
            return Answer(entry.body, lines=lines + _PACKED, as_it_is=True)
        return Answer(entry.whole(), lines=lines, as_it_is=True)

    def _kept(self, exchange: Exchange, lookup: Lookup, answer: bytes) -> Entry | None:
        if exchange.endpoint != "embeddings":
            reasons = _REASONS(answer)
            if not reasons or not _WHOLE.issuperset(reasons):
                return None
        model = lookup.model.name
        ttl: float = getattr(self.settings.ttl, exchange.endpoint)
        owner = exchange.principal.id
        entry = Entry(lookup.key, owner, model, answer, stream=exchange.stream, ttl=ttl, age=0.0)
        if len(answer) < _THREAD:
            entry.shrink(packed_of(answer))
            self._put(entry)
        else:
            task = asyncio.create_task(self._pack(entry, answer, self._generation))
            self._packing.add(task)
            task.add_done_callback(self._packing.discard)
        return entry

    async def _pack(self, entry: Entry, answer: bytes, generation: int) -> None:
        entry.shrink(await asyncio.to_thread(packed_of, answer))
        if generation == self._generation:
            self._put(entry)

    def _put(self, entry: Entry) -> None:
        self.answers.put(entry)
        if self.behind is not None:
            self.behind.put(entry)

    def _is_of(self, exchange: Exchange, lookup: Lookup) -> bool:
        """Whether the answer is that of the model that was asked: neither another one's, nor that of what has been
        started in its place meanwhile, which may have other files."""
        same = lookup.generation == self._generation and lookup.starts == _starts(lookup.model)
        return same and not exchange.passed

    def _land(self, lookup: Lookup, entry: Entry | None, exchange: Exchange) -> None:
        flight = lookup.flight
        if flight is None:
            return
        if self._flights.get(lookup.key) is flight:
            del self._flights[lookup.key]
        late = time.monotonic() >= exchange.deadline
        flight.land(entry, again=exchange.client.gone or exchange.cut is not None or late)

    def _evicted(self, model: str) -> None:
        self._metrics.cache_evictions.labels(model).inc()


def _starts(model: Model) -> int:
    return sum([replica.restarts for replica in model.replicas])


async def _landed(flight: Flight, deadline: float) -> bool:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            await flight.landed.wait()
    except TimeoutError:
        return False
    return True


def _oldest(control: bytes) -> float:
    """How old an answer the client takes, in seconds."""
    if b"no-cache" in control:
        return 0.0
    found = _MAX_AGE(control)
    return float(found[1]) if found is not None else float("inf")
