"""Limits that hold over several gateways: never too many, whoever dies, and never long in the way."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citadel_gateway import shared as module
from citadel_gateway.config import Limits as LimitSettings
from citadel_gateway.config import Rates, Redis, Tier
from citadel_gateway.limits import Exceeded, Limits, Reservation
from citadel_gateway.shared import SCRIPT, Shared
from tests.gateway.redis_server import RedisServer, redis, redis_server
from tests.gateway.simulator import until

__all__ = ["redis"]

pytestmark = pytest.mark.anyio

PATIENT = 1000.0  # ms; the machine may be busy with other tests
RATES = Rates(requests_per_minute=10, tokens_per_minute=1000, concurrent=4)


class Side:
    """One gateway's limits, without a gateway around them."""

    def __init__(self, server: RedisServer, timeout: float = PATIENT, **limits: Any) -> None:
        self.limits = Limits(LimitSettings(**{"overall": None, "tiers": {"default": Tier()}, **limits}))
        self.shared = self.limits.shared = Shared(self.limits, Redis(address=server.address, timeout_ms=timeout))

    async def take(self, tokens: int = 0, rates: Rates = RATES, who: str = "key:one") -> Reservation:
        held = self.limits.reserve([self.limits.meter(("principal", who), rates)], tokens)
        exceeded = await self.shared.agree(held)
        if exceeded is not None:
            held.cancel()
            raise exceeded
        return held

    async def takes(self, tokens: int = 0, rates: Rates = RATES) -> Reservation | None:
        with contextlib.suppress(Exceeded):
            return await self.take(tokens, rates)
        return None


@contextlib.asynccontextmanager
async def sides(server: RedisServer, count: int = 2, **options: Any) -> AsyncIterator[list[Side]]:
    found = [Side(server, **options) for _ in range(count)]
    for side in found:
        side.shared.start()
    try:
        await until(lambda: all(side.shared.redis.up for side in found))
        yield found
    finally:
        for side in found:
            await side.shared.close()


def kept(server: RedisServer, who: str = "key:one") -> dict[str, int]:
    """A principal's windows as Redis has them."""
    words = server.ask("HGETALL", f"llm:ratelimit:{who}:*").decode().split("\r\n")[2::2]
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def working(server: RedisServer, who: str = "key:one") -> int:
    """Who works for it, as the next to ask will count: what a lease held that is no more counts for nothing."""
    words = server.ask("HGETALL", f"llm:concurrent:{who}:*").decode().split("\r\n")[2::2]
    leases = zip(words[::2], words[1::2], strict=True)
    return sum(int(count) for lease, count in leases if server.ask("EXISTS", lease) == b":1\r\n")


async def test_a_limit_is_one_for_all_gateways(redis: RedisServer) -> None:
    async with sides(redis, 3) as found:
        rates = Rates(requests_per_minute=10)
        asked = await asyncio.gather(*(side.takes(rates=rates) for side in found * 20))
        assert sum(held is not None for held in asked) == 10
        with pytest.raises(Exceeded) as refused:
            await found[0].take(rates=rates)
        assert (refused.value.scope, refused.value.kind, refused.value.limit) == (
            "principal",
            "requests per minute",
            10,
        )
        assert 0 < refused.value.retry_after <= 61


async def test_concurrent_work_is_counted_over_all_and_given_back(redis: RedisServer) -> None:
    async with sides(redis) as (one, other):
        rates = Rates(concurrent=4)
        held = [await one.take(rates=rates) for _ in range(3)] + [await other.take(rates=rates)]
        with pytest.raises(Exceeded, match="concurrent"):
            await other.take(rates=rates)
        held[0].settle(0)
        await until(lambda: working(redis) == 3)
        held.append(await other.take(rates=rates))
        for each in held:
            each.settle(0)
            each.settle(0)
        await until(lambda: working(redis) == 0)


async def test_what_is_not_used_is_given_back(redis: RedisServer) -> None:
    async with sides(redis) as (one, other):
        (await one.take(600)).settle(100)
        await until(lambda: kept(redis)["tn"] == 100)
        (await other.take(800)).cancel()
        await until(lambda: kept(redis)["tn"] == 100)
        assert kept(redis)["mn"] == 1
        (await other.take(100)).settle(400)  # more than it had asked for
        await until(lambda: kept(redis)["tn"] == 500)
        with pytest.raises(Exceeded, match="tokens per minute"):
            await one.take(600)


async def test_all_meters_or_none(redis: RedisServer) -> None:
    async with sides(redis) as (one, other):
        tight, roomy = Rates(requests_per_minute=1), Rates(requests_per_minute=100, concurrent=9)

        async def both(side: Side) -> Exceeded | None:
            meters = [
                side.limits.meter(("principal", "key:one"), roomy),
                side.limits.meter(("class", "key:one", "m"), tight),
            ]
            held = side.limits.reserve(meters, 1)
            exceeded = await side.shared.agree(held)
            if exceeded is not None:
                held.cancel()
            return exceeded

        assert await both(one) is None
        refused = await both(other)
        assert refused is not None
        assert refused.scope == "class"
        assert (kept(redis)["mn"], working(redis)) == (1, 1)
        assert b"llm:ratelimit:key:one:m" in redis.ask("KEYS", "llm:ratelimit:*")


async def test_the_bucket_of_everybody_is_one(redis: RedisServer) -> None:
    async with sides(redis, overall={"requests_per_minute": 1, "burst": 7}) as found:
        rates = Rates()
        asked = await asyncio.gather(*(side.takes(rates=rates) for side in found * 10))
        assert sum(held is not None for held in asked) == 7


async def test_what_nobody_uses_goes_by_itself(redis: RedisServer) -> None:
    async with sides(redis) as (one, _):
        (await one.take(rates=Rates(requests_per_minute=5, concurrent=5), who="key:minute")).settle(0)
        await one.take(rates=Rates(requests_per_day=5, concurrent=5), who="key:day")

        def left(key: str) -> int:
            return int(redis.ask("TTL", key)[1:])

        assert 3590 <= left("llm:ratelimit:key:minute:*") <= 3600
        assert left("llm:ratelimit:key:day:*") > 86400 + 1440
        assert 0 < left("llm:concurrent:key:day:*") <= 86400
        await until(lambda: left("llm:concurrent:key:minute:*") == -2)
        keys = redis.ask("KEYS", "*").decode().split("\r\n")[2::2]
        assert all(left(key) > 0 for key in keys if key)


async def test_who_leaves_while_redis_is_asked_takes_nothing(redis: RedisServer) -> None:
    async with sides(redis) as (one, _):
        held = one.limits.reserve([one.limits.meter(("principal", "key:one"), RATES)], 10)
        asking = asyncio.ensure_future(one.shared.agree(held))
        await asyncio.sleep(0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        held.cancel()
        await until(lambda: kept(redis).get("mn") == 0)
        assert (kept(redis)["tn"], working(redis)) == (0, 0)


async def test_a_redis_that_stands_still_is_waited_for_once_and_told_afterwards(redis: RedisServer) -> None:
    async with sides(redis, timeout=300.0) as (one, other):
        await one.take(rates=RATES)
        redis.pause()
        begun = time.monotonic()
        await asyncio.gather(one.take(5), one.take(5))
        assert 0.3 <= time.monotonic() - begun < 1.5
        begun = time.monotonic()
        last = await one.take(5)  # its own limits go on
        assert time.monotonic() - begun < 0.3
        assert one.shared.decided_alone == 3
        with pytest.raises(Exceeded, match="concurrent"):
            await one.take()
        last.cancel()
        redis.resume()
        await until(lambda: one.shared.redis.up)
        await until(lambda: working(redis) == 3)
        # those that were under way when it stood still may have been heard, too: rather twice than never
        assert (kept(redis)["mn"], kept(redis)["tn"]) in ((3, 10), (4, 15), (5, 20))
        await other.take()
        with pytest.raises(Exceeded, match="concurrent"):
            await other.take()


async def test_what_was_taken_before_redis_was_away_is_given_back_once(redis: RedisServer) -> None:
    rates = Rates(requests_per_minute=10, tokens_per_minute=1000, concurrent=10)
    async with sides(redis, timeout=100.0) as (one, other):
        held = [await one.take(100, rates) for _ in range(8)]
        held[0].settle(0)
        await until(lambda: kept(redis)["tn"] == 700)
        redis.pause()
        held[1].settle(0)  # on its way; nobody knows whether it will be heard
        held[2].cancel()
        await until(lambda: not one.shared.redis.up)
        held[3].settle(40)
        redis.resume()
        await until(lambda: one.shared.redis.up and working(redis) == 4)
        held[4].settle(0)
        await until(lambda: (kept(redis)["tn"], kept(redis)["mn"], working(redis)) == (340, 7, 3))
        await other.take(660, rates)
        with pytest.raises(Exceeded, match="tokens"):
            await other.take(1, rates)


async def test_a_redis_that_forgot_everything_learns_who_works(redis: RedisServer) -> None:
    async with sides(redis) as (one, _):
        held = [await one.take() for _ in range(3)]
        redis.kill()
        await until(lambda: not one.shared.redis.up)
        redis.start()
        await until(lambda: one.shared.redis.up and working(redis) == 3)
        for each in held:
            each.settle(0)
        await until(lambda: working(redis) == 0)


async def test_scripts_that_redis_has_lost_are_given_to_it_again(redis: RedisServer) -> None:
    async with sides(redis) as (one, _):
        redis.ask("SCRIPT", "FLUSH")
        await one.take()  # decided here
        await until(lambda: one.shared.redis.up)
        await one.take()
        assert one.shared.decided_alone == 1


async def test_what_a_dead_gateway_held_is_free_again(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEASE", 0.3)
    monkeypatch.setattr(module, "_BEAT", 0.05)
    rates = Rates(concurrent=1)
    async with sides(redis) as (one, other):
        dead = Side(redis)
        dead.shared.redis.start()  # and no sign of life from then on
        await until(lambda: dead.shared.redis.up)
        await dead.take(rates=rates)
        with pytest.raises(Exceeded):
            await one.take(rates=rates)
        deadline = time.monotonic() + 5
        while (held := await one.takes(rates=rates)) is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        with pytest.raises(Exceeded):
            await other.take(rates=rates)
        held.settle(0)
        # it was not dead, only slow: it joins anew with what it holds
        await dead.take(rates=Rates(), who="key:other")
        await until(lambda: working(redis) == 1)
        await dead.shared.redis.close()


class ByHand:
    """The script with a clock that the test sets."""

    KEYS = ("lease", "bucket", "windows", "workers")

    def __init__(self, server: RedisServer) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server.address)
        self._reader = hiredis.Reader()
        assert "redis.call('TIME')" in SCRIPT
        self._script = SCRIPT.replace("redis.call('TIME')", "redis.call('HMGET', 'now', 's', 'u')")

    def ask(self, *words: Any) -> Any:
        self._connection.sendall(hiredis.pack_command(words))
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._connection.recv(1 << 16))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def begin(self) -> None:
        self.ask("FLUSHALL")
        self.ask("SET", "lease", 0)

    def at(self, now: float) -> None:
        self.ask("HSET", "now", "s", int(now), "u", int(now % 1 * 1e6))

    def do(self, mode: str, *words: Any) -> Any:
        return self.ask("EVAL", self._script, 4, *self.KEYS, mode, *words)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def by_hand() -> Iterator[ByHand]:
    with redis_server() as server:
        hand = ByHand(server)
        yield hand
        hand.close()


# a pause, tokens that are asked for, tokens that are used, and which of those at work ends now
STEPS = st.lists(
    st.tuples(st.floats(0, 40), st.integers(1, 5), st.integers(0, 5), st.none() | st.integers(0, 3)), max_size=40
)


@dataclass
class Taken:
    at: float
    second: int
    tokens: int
    used: int
    requests: int = 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), STEPS)
def test_no_stretch_of_time_holds_more_than_the_limit(by_hand: ByHand, limit: int, steps: Any) -> None:
    """As for the counters of one gateway, and what is refused would not have fitted into a sixtieth more."""
    by_hand.begin()
    now = 1_000_000.0
    figures = (-1, limit, -1, -1, limit)
    taken: list[Taken] = []
    working: list[Taken] = []
    for pause, tokens, used, ends in steps:
        now += pause
        by_hand.at(now)
        wanted = min(tokens, limit)
        reply = by_hand.do("take", wanted, 0, 0, *figures)
        if reply[0] == 0:
            taken.append(Taken(now, reply[1], wanted, min(used, wanted)))
            working.append(taken[-1])
        else:
            near = [each for each in taken if each.at > now - 62]
            requests, amount = sum(each.requests for each in near), sum(each.tokens for each in near)
            assert requests >= limit or amount + wanted > limit
            assert 0 < reply[3] <= 61_000
        if ends is not None and ends < len(working):
            one = working.pop(ends)
            back = 1 if one.used == 0 else 0
            by_hand.do("give", one.second, back, one.tokens - one.used, 0, 1, *figures)
            one.tokens, one.requests = one.used, one.requests - back
        for start in taken:
            within = [each for each in taken if start.at <= each.at < start.at + 60]
            assert sum(each.requests for each in within) <= limit
            assert sum(each.tokens for each in within) <= limit
    held = by_hand.ask("HGETALL", "windows")
    counts = {name.decode(): int(value) for name, value in zip(held[::2], held[1::2], strict=True)}
    for name in "mt":
        slots = [value for key, value in counts.items() if key[0] == name and key[1:].isdigit()]
        assert sum(slots) == counts.get(f"{name}n", 0)
        assert all(value >= 0 for value in slots)


def test_there_is_room_when_it_was_promised(by_hand: ByHand) -> None:
    for kind, step in ((1, 1), (2, 60), (3, 1440)):
        by_hand.begin()
        figures = [-1] * 5
        figures[kind] = 1
        by_hand.at(1_000_000.25)
        assert by_hand.do("take", 0, 0, 0, *figures)[0] == 0
        by_hand.at(1_000_000.5)
        _, _, which, wait = by_hand.do("take", 0, 0, 0, *figures)
        assert which == kind
        assert 60 * step <= wait / 1000 <= 61 * step
        by_hand.at(1_000_000.5 + wait / 1000 - 0.01)
        assert by_hand.do("take", 0, 0, 0, *figures)[0] == 1
        by_hand.at(1_000_000.5 + wait / 1000 + 0.01)
        assert by_hand.do("take", 0, 0, 0, *figures)[0] == 0


def test_a_clock_that_goes_back_gives_nobody_more(by_hand: ByHand) -> None:
    by_hand.begin()
    figures = (-1, 1, -1, -1, -1)
    by_hand.at(1_000_030)
    assert by_hand.do("take", 0, 60, 1, *figures)[0] == 0
    by_hand.at(1_000_000)
    assert by_hand.do("take", 0, 60, 1, *figures)[0] == 1
    by_hand.at(1_000_091)
    assert by_hand.do("take", 0, 60, 1, *figures)[0] == 0
    by_hand.at(900_000)  # set anew: it must not stand still for a day
    assert by_hand.do("take", 0, 0, 0, *figures)[0] == 0


def test_what_redis_has_lost_cannot_be_given_back(by_hand: ByHand) -> None:
    by_hand.begin()
    figures = (4, 10, -1, -1, 100)
    by_hand.at(1_000_000)
    second = by_hand.do("take", 50, 0, 0, *figures)[1]
    by_hand.ask("DEL", "windows", "workers")
    assert by_hand.do("give", second, 1, 50, 0, 1, *figures) == 1
    by_hand.do("take", 0, 0, 0, *figures)
    assert by_hand.do("give", second, 0, 50, 0, 1, *figures) == 1
    assert by_hand.ask("HMGET", "windows", "tn", "mn") == [b"0", b"1"]


async def test_a_redis_that_comes_and_goes_leaves_nothing_behind(redis: RedisServer) -> None:
    rates = Rates(tokens_per_minute=10**9, concurrent=50)
    async with sides(redis, timeout=30.0) as found:
        over = False

        async def client(side: Side) -> None:
            while not over:
                held = await side.takes(10, rates)
                await asyncio.sleep(random.uniform(0, 0.01))
                if held is not None:
                    random.choice((held.cancel, lambda held=held: held.settle(3)))()

        clients = [asyncio.ensure_future(client(side)) for side in found * 10]
        for _ in range(6):
            await asyncio.sleep(0.15)
            redis.pause()
            await asyncio.sleep(0.1)
            redis.resume()
        over = True
        await asyncio.gather(*clients)
        await until(lambda: all(side.shared.redis.up for side in found))
        await until(lambda: working(redis) == 0)
        for side in found:
            assert side.limits.open == side.limits.leaked() == 0
            assert not any(meter.claimed for meter in side.limits.meters())
        counts = kept(redis)
        assert counts["tn"] == sum(value for name, value in counts.items() if name[0] == "t" and name[1:].isdigit())
