"""Requests that engines may have died of: two deaths are enough, and what is harmless is forgotten."""

from __future__ import annotations

import pytest

from citadel_gateway import quarantine as module
from citadel_gateway.errors import Refusal
from citadel_gateway.exchange import Exchange
from citadel_gateway.quarantine import Quarantine, fingerprint
from tests.gateway.stations.parts import Clock, exchange_of, model_of, replicas_of


def sent(body: bytes = b"poison", at: float = 0.0) -> Exchange:
    exchange = exchange_of(body=body)
    exchange.model = model_of()
    exchange.upstream_started = at
    return exchange


def test_only_two_deaths_break_a_request(clock: Clock) -> None:
    quarantine = Quarantine()
    first, second = replicas_of({}, {})
    one = sent(at=clock.now)
    assert not quarantine.known(one)
    assert quarantine.died(one, first) == (1, True)
    assert (first.deaths, first.died_at, one.deaths) == (1, clock.now, 1)
    assert quarantine.known(one)
    clock.now += 1.0
    again = sent(at=clock.now)
    assert quarantine.died(again, second) == (2, True)
    with pytest.raises(Refusal) as caught:
        quarantine.known(sent())
    assert (caught.value.status, caught.value.code) == (422, "request_breaks_model")
    assert not quarantine.known(sent(b"harmless"))


def test_all_that_were_in_flight_report_one_death(clock: Clock) -> None:
    quarantine = Quarantine()
    (replica,) = replicas_of({})
    assert quarantine.died(sent(at=clock.now - 1.0), replica) == (1, True)
    assert quarantine.died(sent(at=clock.now - 2.0), replica) == (1, False)
    assert quarantine.died(sent(at=clock.now), replica) == (1, False)  # it began as the engine died
    assert replica.deaths == 1
    clock.now += 5.0
    assert quarantine.died(sent(at=clock.now - 1.0), replica) == (2, True)


def test_the_deaths_under_one_request_are_counted_on_it(clock: Clock) -> None:
    quarantine = Quarantine()
    first, second = replicas_of({}, {})
    exchange = sent(at=clock.now)
    quarantine.died(exchange, first)
    quarantine.died(exchange, second)
    assert exchange.deaths == 2


def test_what_is_answered_is_cleared(clock: Clock) -> None:
    quarantine = Quarantine()
    (replica,) = replicas_of({})
    exchange = sent(at=clock.now)
    quarantine.died(exchange, replica)
    assert len(quarantine) == 1
    quarantine.cleared(exchange)
    quarantine.cleared(exchange)
    assert (len(quarantine), quarantine.known(exchange)) == (0, False)


def test_suspicion_ends_after_an_hour(clock: Clock) -> None:
    quarantine = Quarantine()
    (replica,) = replicas_of({})
    exchange = sent(at=clock.now)
    quarantine.died(exchange, replica)
    clock.now += 3600.0
    assert quarantine.known(exchange)
    clock.now += 0.1
    assert not quarantine.known(exchange)
    assert len(quarantine) == 0


def test_the_oldest_is_forgotten_when_there_are_too_many(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    quarantine = Quarantine()
    (replica,) = replicas_of({})
    for body in (b"a", b"b", b"a", b"c"):
        quarantine.died(sent(body, at=clock.now), replica)
    assert [quarantine.known(sent(body)) for body in (b"a", b"b", b"c")] == [True, False, True]


def test_suspects_of_a_model_take_turns_and_those_of_another_do_not_wait() -> None:
    quarantine = Quarantine()
    one, other = model_of(), model_of()
    other.name = "other"
    assert quarantine.turn(one) is quarantine.turn(one)
    assert quarantine.turn(one) is not quarantine.turn(other)


def test_the_fingerprint_is_what_the_audit_log_shows() -> None:
    assert fingerprint(sent(b"x")) == fingerprint(sent(b"x")) != fingerprint(sent(b"y"))
    assert len(fingerprint(sent(b"x"))) == 16
