"""Stations 3 and 7: what a request holds while it runs, and what it is charged in the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from citadel_gateway import settlement
from citadel_gateway.admission import Admission
from citadel_gateway.config import GlobalRate, Rates, Tier
from citadel_gateway.config import Limits as Settings
from citadel_gateway.errors import Refusal
from citadel_gateway.exchange import Exchange
from citadel_gateway.fleet import Fleet, Model
from citadel_gateway.limits import Limits, Meter
from citadel_gateway.reservation import limit_lines, move, reserve
from tests.gateway.stations.parts import Clock, config_of, exchange_of, fleet_of, model_of, principal_of

HEAVY: dict[str, dict[str, Any]] = {"heavy": {"limit_class": "heavy"}, "light": {"limit_class": "light"}}


def fleet_with_classes() -> Fleet:
    return fleet_of(config_of(HEAVY, limits={"classes": {"heavy": {}, "light": {}}}))


def limits_of(**settings: Any) -> Limits:
    return Limits(Settings(**{"overall": None, "address": Rates(), "tiers": {"default": Tier()}, **settings}))


def holding(limits: Limits, model: Model, tier: Tier | None = None, **principal: Any) -> Exchange:
    exchange = exchange_of(principal=principal_of(tier=tier, **principal))
    exchange.model = model
    exchange.prompt_estimate, exchange.max_tokens = 20, 30
    reserve(exchange, model, limits)
    return exchange


def meter(limits: Limits, *key: str) -> Meter:
    return limits._meters[key]


def used(limits: Limits) -> int:
    window = meter(limits, "principal", "me").tokens
    assert window is not None
    return window.total


TOKENS = Tier(tokens_per_minute=1000)


class TestReserve:
    def test_of_every_meter_that_it_touches(self) -> None:
        fleet = fleet_with_classes()
        limits = limits_of(classes={"heavy": Rates(concurrent=3), "light": Rates()})
        holding(limits, fleet.models["heavy"], Tier(class_factor=2.0), anonymous=True)
        holding(limits, model_of())
        assert {key: found.active for key, found in limits._meters.items()} == {
            ("address", "192.0.2.1"): 1,
            ("class", "me", "heavy"): 1,
            ("principal", "me"): 2,
        }
        assert meter(limits, "class", "me", "heavy").concurrent == 6

    def test_prompt_and_answer(self) -> None:
        limits = limits_of()
        exchange = holding(limits, model_of(), TOKENS)
        assert exchange.reservation is not None
        assert (exchange.reservation.reserved, used(limits)) == (50, 50)

    @pytest.mark.parametrize(
        ("tier", "settings", "code", "words"),
        [
            (Tier(requests_per_minute=1), {}, "rate_limit_exceeded", "1 requests per minute for tier default"),
            (Tier(concurrent=1), {}, "concurrency_limit_exceeded", "1 concurrent requests for tier default"),
            (Tier(), {"address": Rates(concurrent=1)}, "concurrency_limit_exceeded", "for this address"),
            (Tier(), {"overall": GlobalRate(burst=1)}, "rate_limit_exceeded", "for all clients"),
        ],
    )
    def test_the_client_is_told_which_limit_it_was(
        self, clock: Clock, tier: Tier, settings: dict[str, Any], code: str, words: str
    ) -> None:
        limits = limits_of(**settings)
        holding(limits, model_of(), tier, anonymous=True)
        with pytest.raises(Refusal) as caught:
            holding(limits, model_of(), tier, anonymous=True)
        assert (caught.value.status, caught.value.code) == (429, code)
        assert words in caught.value.message
        assert caught.value.retry_after


class TestMove:
    """A stand-in answers: its own limits count, and the first model's no longer do."""

    def moved(self, limits: Limits) -> tuple[Exchange, bool]:
        fleet = fleet_with_classes()
        exchange = holding(limits, fleet.models["heavy"], TOKENS)
        exchange.model = fleet.models["light"]
        return exchange, asyncio.run(move(exchange, fleet.models["heavy"], limits))

    def test_to_one_that_has_room(self) -> None:
        limits = limits_of(classes={"heavy": Rates(), "light": Rates()})
        assert self.moved(limits)[1] is True
        assert (meter(limits, "class", "me", "heavy").active, meter(limits, "class", "me", "light").active) == (0, 1)
        assert (meter(limits, "principal", "me").active, limits.open, used(limits)) == (1, 1, 50)

    def test_to_one_that_has_none(self) -> None:
        limits = limits_of(classes={"heavy": Rates(), "light": Rates(concurrent=1)})
        limits.reserve([limits.meter(("class", "me", "light"), limits.settings.classes["light"])], 0)
        assert self.moved(limits)[1] is False
        assert (meter(limits, "class", "me", "heavy").active, meter(limits, "class", "me", "light").active) == (1, 1)
        assert used(limits) == 50

    def test_of_what_is_not_held(self) -> None:
        limits = limits_of()
        exchange = exchange_of()
        exchange.model = model_of()
        assert asyncio.run(move(exchange, exchange.model, limits)) is False
        held = holding(limits, exchange.model)
        held.model = None
        assert asyncio.run(move(held, exchange.model, limits)) is False
        assert limits.open == 1


class TestHeaders:
    @pytest.mark.parametrize(
        ("tier", "lines"),
        [
            (Tier(), b""),
            (
                Tier(requests_per_minute=5),
                b"x-ratelimit-limit-requests: 5\r\nx-ratelimit-remaining-requests: 4\r\n",
            ),
            (TOKENS, b"x-ratelimit-limit-tokens: 1000\r\nx-ratelimit-remaining-tokens: 950\r\n"),
            (
                Tier(requests_per_minute=1, tokens_per_minute=40),
                b"x-ratelimit-limit-requests: 1\r\nx-ratelimit-remaining-requests: 0\r\n"
                b"x-ratelimit-limit-tokens: 40\r\nx-ratelimit-remaining-tokens: 0\r\n",
            ),
        ],
    )
    def test_what_is_left(self, tier: Tier, lines: bytes) -> None:
        assert limit_lines(holding(limits_of(), model_of(), tier)) == lines

    def test_never_less_than_nothing(self) -> None:
        limits = limits_of()
        exchange = holding(limits, model_of(), Tier(requests_per_minute=5))
        meter(limits, "principal", "me").requests[0].limit = 0  # a reload with a lower figure
        assert limit_lines(exchange).endswith(b"remaining-requests: 0\r\n")

    def test_nothing_of_what_is_not_held(self) -> None:
        assert limit_lines(exchange_of()) == b""


class TestCharge:
    """Fifty tokens are reserved."""

    @pytest.mark.parametrize(
        ("known", "charged"),
        [
            ({"status": 200, "usage_exact": True, "prompt_tokens": 7, "completion_tokens": 5}, 12),
            ({"status": 200}, 50),  # an answer without figures
            ({"status": 200, "outcome": 499}, 50),  # the client left in mid-stream
            ({"status": 0}, 50),  # ... or before
            ({"status": 400, "outcome": 499}, 50),
            ({"status": 504}, 50),
            ({"status": 400, "outcome": 504}, 50),
            ({"status": 503, "cut": (503, "x", "y")}, 50),  # the gateway cut it short
            ({"status": 400}, 0),  # the model refused it
            ({"status": 503}, 0),
            ({"status": 503, "outcome": 503}, 0),
        ],
    )
    def test_what_it_comes_to(self, known: dict[str, Any], charged: int) -> None:
        limits = limits_of()
        exchange = holding(limits, model_of(), TOKENS)
        exchange.upstream_started = 1.0
        for name, value in known.items():
            setattr(exchange, name, value)
        settlement.settle(exchange)
        assert (exchange.charged, used(limits), limits.open, limits.leaked()) == (charged, charged, 0, 0)
        settlement.settle(exchange)
        assert (used(limits), limits.open) == (charged, 0)

    def test_what_no_model_saw_does_not_count_as_a_request(self) -> None:
        tier = Tier(tokens_per_minute=1000, requests_per_minute=5)
        limits = limits_of()
        exchange = holding(limits, model_of(), tier)
        settlement.settle(exchange)
        assert (used(limits), meter(limits, "principal", "me").requests[0].total, exchange.charged) == (0, 0, 0)
        # an answer of the step before the model does
        exchange = holding(limits, model_of(), tier)
        exchange.usage_exact, exchange.prompt_tokens = True, 3
        settlement.settle(exchange)
        assert (used(limits), meter(limits, "principal", "me").requests[0].total, exchange.charged) == (3, 1, 3)


class TestSettle:
    async def started(self, clock: Clock, **known: Any) -> tuple[Exchange, Model, Admission]:
        config = config_of()
        fleet = fleet_of(config)
        admission = Admission(config.admission, fleet)
        exchange = exchange_of()
        model = exchange.model = fleet.models["phi"]
        exchange.permit = await admission.enter(exchange, model)
        exchange.replica = model.replicas[0]
        exchange.on_replica = True
        exchange.replica.in_flight = 1
        clock.now += 7.0
        for name, value in known.items():
            setattr(exchange, name, value)
        return exchange, model, admission

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        ("known", "samples"),
        [({"status": 200}, 1), ({"status": 200, "outcome": 499}, 0), ({"status": 400}, 0), ({}, 0)],
    )
    async def test_whole_answers_tell_how_long_the_model_takes(
        self, clock: Clock, known: dict[str, Any], samples: int
    ) -> None:
        exchange, model, admission = await self.started(clock, **known)
        settlement.settle(exchange)
        assert (model.service.count, model.service.value) == (samples, 7.0 * samples)
        assert (admission.in_flight, model.replicas[0].in_flight) == (0, 0)

    @pytest.mark.anyio
    async def test_the_place_on_the_replica_is_given_back_once(self, clock: Clock) -> None:
        exchange, model, admission = await self.started(clock)
        replica = model.replicas[0]
        replica.in_flight = 2
        settlement.release_permit(exchange)
        settlement.release_permit(exchange)
        assert (replica.in_flight, replica.idle.is_set(), exchange.permit, admission.in_flight) == (1, False, None, 0)
        exchange.on_replica = True
        settlement.release_permit(exchange)
        assert (replica.in_flight, replica.idle.is_set()) == (0, True)  # a drain may go on
