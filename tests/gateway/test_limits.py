"""The counters by themselves: whatever comes, no window ever holds more than its limit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citadel_gateway.config import Limits as LimitSettings
from citadel_gateway.config import Rates, Tier
from citadel_gateway.limits import Exceeded, Limits, Meter, Window


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(st.floats(0, 40), st.integers(1, 5)), max_size=80))
def test_no_stretch_of_time_holds_more_than_the_limit(limit: int, arrivals: list[tuple[float, int]]) -> None:
    window = Window("requests per minute", 60.0, limit)
    now = 1000.0
    taken: list[tuple[float, int]] = []
    for pause, amount in arrivals:
        now += pause
        if window.left(now) >= amount:
            window.take(amount, now)
            taken.append((now, amount))
    for start, _ in taken:
        assert sum(amount for moment, amount in taken if start <= moment < start + 60.0) <= limit


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 90), st.integers(0, 50), st.integers(0, 50)), max_size=50))
def test_what_is_given_back_is_what_was_taken(steps: list[tuple[float, int, int]]) -> None:
    window = Window("tokens per minute", 60.0, 10**9)
    now = 1000.0
    for pause, reserved, used in steps:
        now += pause
        window.left(now)
        taken = window.take(reserved, now)
        now += pause
        window.left(now)
        window.give_back(reserved - used, taken)
        assert window.total == sum(item.count for item in window.slices)
    window.left(now + 200)
    assert window.total == 0


def test_room_is_there_when_it_was_promised() -> None:
    window = Window("requests per minute", 60.0, 2)
    window.take(1, 1000.0)
    window.take(1, 1030.0)
    wait = window.room_in(1, 1031.0)
    assert window.left(1031.0 + wait - 0.01) == 0
    assert window.left(1031.0 + wait + 0.01) == 1
    assert wait < 61


def test_everything_is_reserved_or_nothing() -> None:
    limits = Limits(LimitSettings(overall=None, tiers={"default": Tier()}))
    roomy = limits.meter(("a",), Rates(requests_per_minute=10))
    tight = limits.meter(("b",), Rates(requests_per_minute=1))
    limits.reserve([roomy, tight], 1)
    with pytest.raises(Exceeded):
        limits.reserve([roomy, tight], 1)
    assert roomy.requests[0].total == 1
    assert limits.open == 1


def test_settling_counts_once() -> None:
    limits = Limits(LimitSettings(tiers={"default": Tier()}))
    meter = limits.meter(("a",), Rates(requests_per_minute=10, tokens_per_minute=100, concurrent=3))
    reservation = limits.reserve([meter], 50)
    reservation.settle(20)
    reservation.settle(0)
    reservation.cancel()
    assert (meter.active, meter.requests[0].total, meter.tokens and meter.tokens.total) == (0, 1, 20)


def test_who_is_idle_is_forgotten() -> None:
    limits = Limits(LimitSettings(tiers={"default": Tier()}))
    busy = limits.meter(("busy",), Rates(concurrent=1))
    limits.meter(("idle",), Rates(requests_per_minute=1))
    limits.reserve([busy], 0)
    limits.sweep()
    assert len(limits) == 1


def test_a_request_larger_than_the_window_may_go_when_it_is_empty() -> None:
    meter = Meter("x")
    meter.apply(Rates(tokens_per_minute=100))
    meter.check(5000, 1000.0)
