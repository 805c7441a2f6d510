"""The breaker of a replica: when failures make it suspect, what opens it, and how it closes again."""

from __future__ import annotations

import pytest

from citadel_gateway import breaker as module
from citadel_gateway.breaker import Breaker
from citadel_gateway.config import Breaker as Settings
from tests.gateway.stations.parts import Clock

SETTINGS = Settings(window=30.0, minimum=4, clients=2, failure_ratio=0.5, recovery=60.0, half_open_calls=2)


def opened() -> Breaker:
    breaker = Breaker(SETTINGS)
    for name in ("a", "b", "a", "b"):
        breaker.failure(name)
    assert breaker.convict()
    return breaker


def half_open(clock: Clock) -> Breaker:
    breaker = opened()
    clock.now += 60.0
    assert breaker.allows(0)
    return breaker


def test_a_new_one_lets_everything_through() -> None:
    breaker = Breaker(SETTINGS)
    assert (breaker.state, breaker.suspect, breaker.allows(10**6), breaker.opens_in()) == ("closed", False, True, 0.0)


class TestSuspicion:
    def test_it_takes_the_minimum(self) -> None:
        breaker = Breaker(SETTINGS)
        for _ in range(3):
            breaker.failure("a")
            assert not breaker.suspect
        breaker.failure("a")
        assert breaker.suspect

    @pytest.mark.parametrize(("good", "bad", "suspect"), [(4, 4, True), (5, 4, False), (3, 4, True), (2, 2, True)])
    def test_it_takes_the_ratio(self, good: int, bad: int, suspect: bool) -> None:
        breaker = Breaker(SETTINGS)
        for _ in range(good):
            breaker.success()
        for _ in range(bad):
            breaker.failure("a")
        assert breaker.suspect is suspect

    def test_the_ratio_is_a_part_of_all(self) -> None:
        breaker = Breaker(SETTINGS.model_copy(update={"failure_ratio": 0.25}))
        for _ in range(7):
            breaker.success()
        breaker.failure("a")
        assert not breaker.suspect
        breaker.failure("a")
        breaker.failure("a")
        assert breaker.suspect

    def test_what_is_older_than_the_window_is_forgotten(self, clock: Clock) -> None:
        for later, suspect in ((30.0, True), (30.1, False)):
            breaker = Breaker(SETTINGS)
            for _ in range(3):
                breaker.failure("a")
            clock.now += later
            breaker.failure("a")
            assert (later, breaker.suspect) == (later, suspect)

    def test_successes_that_leave_the_window_take_no_failures_along(self, clock: Clock) -> None:
        breaker = Breaker(SETTINGS)
        for _ in range(10):
            breaker.success()
        clock.now += 31.0
        for _ in range(3):
            breaker.failure("a")
        breaker.success()
        assert not breaker.suspect
        breaker.failure("a")
        assert breaker.suspect

    def test_failures_that_leave_the_window_count_no_longer(self, clock: Clock) -> None:
        breaker = Breaker(SETTINGS)
        for _ in range(3):
            breaker.failure("a")
        clock.now += 31.0
        for _ in range(4):
            breaker.success()
        breaker.failure("a")
        assert not breaker.suspect  # one of five, not four

    def test_a_flood_is_remembered_only_so_far(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_MOST", 5)
        breaker = Breaker(SETTINGS)
        for _ in range(9):
            breaker.success()
        assert len(breaker._outcomes) == 5

    def test_a_probe_that_gets_its_token_clears_it(self) -> None:
        breaker = Breaker(SETTINGS)
        for name in ("a", "b", "a", "b"):
            breaker.failure(name)
        breaker.acquit()
        assert not breaker.suspect
        breaker.failure("a")
        assert not breaker.suspect  # what was before is forgotten


class TestOpening:
    def test_not_without_suspicion(self) -> None:
        breaker = Breaker(SETTINGS)
        for name in ("a", "b", "c"):
            breaker.failure(name)
        assert (breaker.convict(), breaker.state) == (False, "closed")

    def test_not_on_the_word_of_one_client(self) -> None:
        breaker = Breaker(SETTINGS)
        for _ in range(9):
            breaker.success()
        for _ in range(10):
            breaker.failure("a")
        assert (breaker.suspect, breaker.convict(), breaker.state) == (True, False, "closed")
        breaker.failure("b")
        assert (breaker.convict(), breaker.state) == (True, "open")

    def test_an_open_one_lets_nothing_through_until_it_has_recovered(self, clock: Clock) -> None:
        breaker = opened()
        assert (breaker.allows(0), breaker.opens_in(), breaker.suspect) == (False, 60.0, False)
        breaker.failure("a")  # of what was under way
        assert not breaker.suspect
        breaker.success()
        assert breaker.state == "open"
        clock.now += 59.0
        assert (breaker.allows(0), breaker.opens_in()) == (False, 1.0)
        clock.now += 1.0
        assert breaker.opens_in() == 0.0
        assert (breaker.allows(0), breaker.state) == (True, "half_open")
        clock.now += 1.0
        assert breaker.opens_in() == 0.0

    def test_an_open_one_whose_time_has_long_passed(self, clock: Clock) -> None:
        breaker = opened()
        clock.now += 100.0
        assert breaker.opens_in() == 0.0
        assert breaker.allows(0)

    def test_an_open_one_is_not_opened_again(self) -> None:
        """It would be counted and audited as one more, and the recovery would begin anew."""
        breaker = opened()
        breaker.suspect = True
        assert not breaker.convict()


class TestHalfOpen:
    def test_few_at_a_time(self, clock: Clock) -> None:
        breaker = half_open(clock)
        assert [breaker.allows(count) for count in (0, 1, 2, 3)] == [True, True, False, False]

    def test_it_closes_after_as_many_successes(self, clock: Clock) -> None:
        breaker = half_open(clock)
        breaker.success()
        assert breaker.state == "half_open"
        breaker.success()
        assert (breaker.state, breaker.allows(9)) == ("closed", True)

    def test_one_failure_is_enough_and_one_bad_probe_opens_it_again(self, clock: Clock) -> None:
        breaker = half_open(clock)
        breaker.success()
        breaker.failure("a")
        assert breaker.suspect
        assert (breaker.convict(), breaker.state, breaker.opens_in()) == (True, "open", 60.0)
        clock.now += 60.0
        assert breaker.allows(0)
        breaker.success()  # those before count no longer
        assert breaker.state == "half_open"

    def test_a_good_probe_leaves_it_on_trial(self, clock: Clock) -> None:
        breaker = half_open(clock)
        breaker.failure("a")
        breaker.acquit()
        assert (breaker.suspect, breaker.state) == (False, "half_open")
