"""The counters: what is left, when there is room again, and that everything comes back exactly once."""

from __future__ import annotations

import pytest

from citadel_gateway import limits as module
from citadel_gateway.config import GlobalRate, Rates, Tier
from citadel_gateway.config import Limits as Settings
from citadel_gateway.limits import Bucket, Exceeded, Limits, Meter, Reservation, Window
from tests.gateway.stations.parts import Clock


def limits_of(per_minute: int | None = None, burst: int = 1) -> Limits:
    overall = None if per_minute is None else GlobalRate(requests_per_minute=per_minute, burst=burst)
    return Limits(Settings(overall=overall, tiers={"default": Tier()}))


def metered(limits: Limits, key: str = "a", factor: float = 1.0, **rates: int) -> Meter:
    return limits.meter((key,), Rates(**rates), factor)


def exceeded(limits: Limits, meter: Meter, tokens: int = 0) -> Exceeded:
    with pytest.raises(Exceeded) as caught:
        limits.reserve([meter], tokens)
    return caught.value


class TestWindow:
    def test_a_slice_leaves_when_the_whole_of_it_has_left(self) -> None:
        window = Window("x", 60.0, 10)
        window.take(3, 120.5)
        window.take(4, 121.5)
        assert (window.left(121.9), window.left(180.9)) == (3, 3)
        assert window.left(181.0) == 6  # the second from 120 to 121 is over by a minute
        assert window.left(182.0) == 10
        assert [item.count for item in window.slices if item.count] == []

    def test_its_slices_are_its_sixtieth(self) -> None:
        window = Window("x", 3600.0, 10)
        window.take(1, 7200.0)
        window.take(1, 7259.0)
        assert len(window.slices) == 1
        window.take(1, 7260.0)
        assert [item.index for item in window.slices] == [120, 121]
        assert window.until == 7320.0

    def test_it_begins_empty_even_as_the_clock_begins(self) -> None:
        """The first seconds after a boot, where the clock stands near nothing."""
        window = Window("x", 60.0, 10)
        assert window.take(2, 0.0).index == 0
        assert (window.total, len(window.slices)) == (2, 1)

    def test_what_is_given_back_late_is_not_given_twice(self) -> None:
        window = Window("x", 60.0, 10)
        taken = window.take(5, 100.0)
        window.give_back(2, taken)
        assert (window.total, taken.count) == (3, 3)
        assert window.left(200.0) == 10
        window.give_back(3, taken)
        assert window.left(200.0) == 10

    def test_when_there_is_room(self) -> None:
        window = Window("x", 60.0, 10)
        window.take(6, 100.5)
        window.take(4, 110.5)
        assert window.room_in(1, 111.0) == pytest.approx(101 + 60 - 111)
        assert window.room_in(6, 111.0) == pytest.approx(101 + 60 - 111)
        assert window.room_in(7, 111.0) == pytest.approx(111 + 60 - 111)
        assert window.room_in(11, 111.0) == 60.0  # more than the whole of it
        assert window.room_in(1, 161.0) == 0.001
        window.limit = 12
        assert window.room_in(3, 111.0) == pytest.approx(101 + 60 - 111)


class TestBucket:
    def test_it_fills_by_the_second_and_no_higher_than_its_burst(self, clock: Clock) -> None:
        bucket = Bucket(120, 10)
        assert (bucket.left(clock.now), bucket.rate, bucket.burst) == (10.0, 2.0, 10.0)
        bucket.level = 1.0
        assert bucket.left(clock.now + 2.0) == 5.0
        assert bucket.left(clock.now + 2.0) == 5.0
        assert bucket.left(clock.now + 99.0) == 10.0

    def test_everybody_together(self, clock: Clock) -> None:
        limits = limits_of(60, burst=2)
        meters = [metered(limits, name) for name in "abc"]
        limits.reserve([meters[0]], 0)
        limits.reserve([meters[1]], 0)
        refusal = exceeded(limits, meters[2])
        assert (refusal.scope, refusal.kind, refusal.limit) == ("all clients", "requests per minute", 60.0)
        assert refusal.retry_after == 1.0
        clock.now += 0.5
        assert exceeded(limits, meters[2]).retry_after == 0.5
        clock.now += 0.5
        limits.reserve([meters[2]], 0)

    def test_its_wait_is_by_its_rate(self, clock: Clock) -> None:
        limits = limits_of(120, burst=1)
        meter = metered(limits)
        limits.reserve([meter], 0)
        refusal = exceeded(limits, meter)
        assert (refusal.limit, refusal.retry_after) == (120.0, 0.5)

    def test_a_reload_changes_its_figures_and_gives_no_burst_away(self, clock: Clock) -> None:
        limits = limits_of(60, burst=10)
        assert limits.bucket is not None
        limits.bucket.level = 4.0
        limits.apply(Settings(overall=GlobalRate(requests_per_minute=240, burst=8), tiers={}))
        assert (limits.bucket.rate, limits.bucket.burst, limits.bucket.level) == (4.0, 8.0, 4.0)
        limits.apply(Settings(overall=GlobalRate(requests_per_minute=240, burst=3), tiers={}))
        assert limits.bucket.level == 3.0
        limits.apply(Settings(overall=None, tiers={}))
        assert limits.bucket is None


class TestMeter:
    def test_a_reload_keeps_what_is_counted(self, clock: Clock) -> None:
        limits = limits_of()
        meter = metered(limits, requests_per_minute=10, tokens_per_minute=100)
        limits.reserve([meter], 30).settle(30)
        again = metered(limits, requests_per_minute=20, requests_per_hour=5, tokens_per_minute=200)
        assert again is meter
        assert [(window.limit, window.total) for window in meter.windows()] == [(20, 1), (5, 0), (200, 30)]
        metered(limits)
        assert meter.windows() == []
        assert meter.tokens is None

    def test_the_factor_of_a_tier(self) -> None:
        limits = limits_of()
        rates = Rates(
            requests_per_minute=10, requests_per_hour=20, requests_per_day=30, tokens_per_minute=50, concurrent=3
        )
        meter = limits.meter(("a",), rates, 2.5)
        assert [(window.limit, window.span) for window in meter.windows()] == [
            (25, 60.0),
            (50, 3600.0),
            (75, 86400.0),
            (125, 60.0),
        ]
        assert meter.concurrent == 7
        limits.meter(("a",), rates, 4.0)
        assert meter.concurrent == 12
        assert limits.meter(("a",), rates).concurrent == 3

    def test_a_meter_of_its_own_has_no_factor(self) -> None:
        meter = Meter("x")
        assert (meter.factor, meter.touched, meter.active) == (1.0, 0.0, 0)
        meter.apply(Rates(concurrent=3))
        assert (meter.factor, meter.concurrent) == (1.0, 3)

    def test_concurrency_to_the_unit(self, clock: Clock) -> None:
        limits = limits_of()
        meter = metered(limits, concurrent=2)
        first = limits.reserve([meter], 0)
        limits.reserve([meter], 0)
        refusal = exceeded(limits, meter)
        assert (refusal.scope, refusal.kind, refusal.limit, refusal.retry_after) == ("a", "concurrent requests", 2, 1.0)
        first.settle(0)
        limits.reserve([meter], 0)

    def test_requests_to_the_unit(self, clock: Clock) -> None:
        clock.now = 120_000.5
        limits = limits_of()
        meter = metered(limits, requests_per_minute=2)
        for _ in range(2):
            limits.reserve([meter], 0).settle(0)
        refusal = exceeded(limits, meter)
        assert (refusal.kind, refusal.limit, refusal.retry_after) == ("requests per minute", 2, 60.5)
        clock.now += 60.5
        limits.reserve([meter], 0)

    def test_tokens_to_the_unit(self, clock: Clock) -> None:
        clock.now = 120_000.5
        limits = limits_of()
        meter = metered(limits, tokens_per_minute=100)
        limits.reserve([meter], 60)
        limits.reserve([meter], 40).settle(30)
        refusal = exceeded(limits, meter, 11)
        assert (refusal.kind, refusal.limit, refusal.retry_after) == ("tokens per minute", 100, 60.5)
        limits.reserve([meter], 10)

    def test_a_request_larger_than_the_window_may_go_only_when_it_is_empty(self, clock: Clock) -> None:
        limits = limits_of()
        meter = metered(limits, tokens_per_minute=100)
        limits.reserve([meter], 1)
        clock.now += 5.0
        limits.reserve([meter], 1)
        # there is room for it when the last has left, and no sooner
        assert exceeded(limits, meter, 5000).retry_after == 61.0
        clock.now += 61.0
        limits.reserve([meter], 5000)

    def test_idle_is_who_has_used_nothing_and_runs_nothing(self, clock: Clock) -> None:
        limits = limits_of()
        meter = metered(limits, requests_per_minute=2, tokens_per_minute=5)
        assert meter.idle(clock.now)
        held = limits.reserve([meter], 0)
        assert not meter.idle(clock.now)
        held.settle(0)
        assert not meter.idle(clock.now)
        assert meter.idle(clock.now + 62.0)
        limits.reserve([meter], 0)
        assert not meter.idle(clock.now + 62.0)  # it runs still


class TestReservation:
    def held(self, limits: Limits, meter: Meter, tokens: int = 50) -> Reservation:
        return limits.reserve([meter], tokens)

    def test_refused_work_costs_nothing(self, clock: Clock) -> None:
        limits = limits_of(60, burst=5)
        meter = metered(limits, requests_per_minute=10, tokens_per_minute=100, concurrent=3)
        held = self.held(limits, meter)
        assert limits.bucket is not None
        assert meter.tokens is not None
        assert (limits.open, meter.active, meter.requests[0].total, meter.tokens.total) == (1, 1, 1, 50)
        assert (limits.bucket.level, held.reserved) == (4.0, 50)
        held.cancel()
        held.cancel()
        held.settle(20)
        assert (limits.open, meter.active, meter.requests[0].total, meter.tokens.total) == (0, 0, 0, 0)
        assert limits.bucket.level == 5.0

    def test_a_full_bucket_is_not_filled_beyond_its_burst(self, clock: Clock) -> None:
        limits = limits_of(60, burst=5)
        held = self.held(limits, metered(limits))
        assert limits.bucket is not None
        limits.bucket.level = 4.5
        held.cancel()
        assert limits.bucket.level == 5.0

    def test_work_that_took_more_than_was_reserved_is_counted_whole(self, clock: Clock) -> None:
        limits = limits_of()
        meter = metered(limits, tokens_per_minute=100)
        self.held(limits, meter).settle(80)
        assert meter.tokens is not None
        assert meter.tokens.total == 80

    def test_the_client_is_told_of_its_own_first_window(self, clock: Clock) -> None:
        limits = limits_of()
        address = metered(limits, "address", requests_per_minute=1)
        own = metered(limits, "own", requests_per_minute=7, requests_per_hour=9, tokens_per_minute=100)
        requests, tokens = limits.reserve([address, own], 1).remaining()
        assert (requests, tokens) == (own.requests[0], own.tokens)
        assert limits.reserve([metered(limits, "free")], 1).remaining() == (None, None)

    def test_leaks_are_told_only_when_nothing_is_open(self, clock: Clock) -> None:
        limits = limits_of()
        meter = metered(limits)
        held = self.held(limits, meter)
        assert limits.leaked() == 0
        held.settle(0)
        assert limits.leaked() == 0
        meter.active = 2
        assert limits.leaked() == 2


class TestMemory:
    def test_idle_meters_go_first_and_then_those_that_rest_longest(
        self, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_ENTRIES", 20)
        limits = limits_of()
        busy = limits.reserve([metered(limits, "busy", requests_per_day=9)], 0)
        for number in range(19):
            clock.now += 1.0
            limits.reserve([metered(limits, f"{number}", requests_per_day=9)], 0).settle(0)
        assert len(limits) == 20
        metered(limits, "new", requests_per_day=9)
        assert {key for (key,) in limits._meters} == {"busy", "new", *(f"{number}" for number in range(2, 19))}
        busy.settle(0)
        clock.now += 1.0
        metered(limits, "newer")
        metered(limits, "newest")
        assert {key for (key,) in limits._meters} == {"busy", "newest", *(f"{number}" for number in range(2, 19))}
