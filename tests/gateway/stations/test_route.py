"""Station 5: which model, which replica of it, and who stands in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from citadel_gateway.config import Policy
from citadel_gateway.envelope import open_envelope
from citadel_gateway.errors import Refusal
from citadel_gateway.exchange import Exchange
from citadel_gateway.fleet import Fleet, Model, Replica
from citadel_gateway.route import Wish, choose_model, choose_replica, fallbacks, settle_model
from tests.gateway.stations.parts import config_of, exchange_of, fleet_of, principal_of, replicas_of


def idle(_: Model) -> float:
    return 0.0


def settled(
    body: bytes,
    models: dict[str, dict[str, Any]] | None = None,
    *,
    headers: dict[bytes, bytes] | None = None,
    endpoint: str = "chat",
    allowed: tuple[str, ...] = (),
    load: Callable[[Model], float] = idle,
    **routing: Any,
) -> Exchange:
    config = config_of(models or {"one": {"fallback": ["two"]}, "two": {}}, routing=routing)
    exchange = exchange_of(endpoint, headers, body, principal_of(models=allowed))
    envelope = open_envelope(exchange, config)
    model = settle_model(exchange, envelope, config.routing, fleet_of(config), load)
    assert exchange.model is model
    return exchange


def model_name(*arguments: Any, **options: Any) -> str:
    model = settled(*arguments, **options).model
    assert model is not None
    return model.name


def said(name: str | None = None, more: str = "", content: str = "x" * 1000) -> bytes:
    named = "" if name is None else f'"model":"{name}",'
    return f'{{{named}{more}"messages":[{{"role":"user","content":"{content}"}}]}}'.encode()


class TestNamed:
    def test_by_name_and_by_alias(self) -> None:
        models: dict[str, dict[str, Any]] = {"one": {}, "two": {"aliases": ["second"]}}
        assert model_name(said("two"), models) == model_name(said("second"), models) == "two"

    @pytest.mark.parametrize(
        ("body", "endpoint", "allowed", "status", "code"),
        [
            (b'{"model":5,"messages":[{"role":"user","content":"x"}]}', "chat", (), 400, "invalid_type"),
            (said("three"), "chat", (), 404, "model_not_found"),
            (b'{"model":"one","input":"x"}', "embeddings", (), 404, "endpoint_not_supported"),
            (b'{"input":"x"}', "embeddings", (), 404, "no_suitable_model"),
            (said("one"), "chat", ("two",), 403, "model_not_allowed"),
        ],
    )
    def test_what_cannot_be(self, body: bytes, endpoint: str, allowed: tuple[str, ...], status: int, code: str) -> None:
        with pytest.raises(Refusal) as caught:
            settled(body, endpoint=endpoint, allowed=allowed)
        assert (caught.value.status, caught.value.code) == (status, code)

    def test_a_key_for_some_models_gets_those(self) -> None:
        assert model_name(said("two"), allowed=("two",)) == "two"
        for nothing in (said(), said(""), said("auto")):
            assert model_name(nothing, allowed=("two",)) == "two"
            assert model_name(nothing) == "one"

    @pytest.mark.parametrize(
        ("mode", "header", "named", "unnamed"),
        [
            ("never", b"true", False, False),
            ("on_request", None, False, True),
            ("on_request", b"true", True, True),
            ("on_request", b"YES", True, True),
            ("on_request", b"1", True, True),
            ("on_request", b"false", False, True),
            ("always", None, True, True),
            ("always", b"false", True, True),
        ],
    )
    def test_another_model_answers_only_where_that_is_wanted(
        self, mode: str, header: bytes | None, named: bool, unnamed: bool
    ) -> None:
        headers = {} if header is None else {b"x-allow-fallback": header}
        for body, allowed in ((said("one"), named), (said(), unnamed)):
            exchange = settled(body, headers=headers, fallback=mode)
            assert (exchange.fallback_allowed, exchange.original) == (allowed, body if allowed else b"")

    def test_a_model_without_a_list_has_no_stand_in(self) -> None:
        exchange = settled(said("two"), fallback="always")
        assert (exchange.fallback_allowed, exchange.original) == (False, b"")


def wish(prompt: int = 500, answer: int = 500, endpoint: str = "chat", **body: Any) -> Wish:
    return Wish(body, endpoint, prompt, answer)


class TestChosen:
    """A request that names no model; against a model that weighs a known load."""

    def best(
        self,
        wanted: Wish,
        models: dict[str, dict[str, Any]],
        loads: dict[str, float] | None = None,
        default: str | None = None,
        states: dict[str, Any] | None = None,
    ) -> str | None:
        fleet = fleet_of(config_of(models))
        for name, state in (states or {}).items():
            fleet.models[name].replicas[0].state = state
        model = choose_model(fleet.models.values(), wanted, default, lambda model: (loads or {}).get(model.name, 0.0))
        return None if model is None else model.name

    def worth(self, word: str, wanted: Wish, **settings: Any) -> float:
        """How much load a speciality makes up for, to a quarter of a unit."""
        plain = {"context": 10**6, **settings}
        models = {"plain": plain, "special": {**plain, "specialisation": [word]}}
        worth = 0.0
        for quarter in range(17):
            load = quarter / 8  # a whole load is two units
            if self.best(wanted, models, {"special": load}) == "special":
                worth = 2 * load + 0.25
        return worth

    @pytest.mark.parametrize(
        ("word", "wanted", "worth"),
        [
            ("long-form", wish(prompt=1501), 2.0),
            ("long-form", wish(answer=1501), 2.0),
            ("long-form", wish(prompt=1500, answer=1500), 0.0),
            ("reasoning", wish(prompt=1501), 2.0),
            ("fast", wish(200, 200), 1.5),
            ("fast", wish(201, 200), 0.0),
            ("fast", wish(200, 201), 0.0),
            ("cheap", wish(200, 200), 0.5),
            ("conversation", wish(messages=[{}] * 4), 1.5),
            ("conversation", wish(messages=[{}] * 3), 0.0),
            ("conversation", wish(messages="text"), 0.0),
            ("interactive", wish(stream=True), 1.0),
            ("interactive", wish(), 0.0),
            ("streaming", wish(stream=True), 0.5),
            ("embeddings", wish(endpoint="embeddings"), 1.0),
            ("embeddings", wish(), 0.0),
        ],
    )
    def test_what_a_word_weighs(self, word: str, wanted: Wish, worth: float) -> None:
        assert self.worth(word, wanted, endpoints=["chat", "embeddings"]) == worth

    def test_tools_weigh_most_and_need_a_model_that_has_them(self) -> None:
        wanted = wish(tools=[{}])
        # more than the greatest load takes away, and exactly as much
        assert self.worth("tools", wanted, capabilities=["tools"]) == 4.0
        both: dict[str, dict[str, Any]] = {"without": {}, "with": {"capabilities": ["tools"]}}
        assert self.best(wanted, both, {"with": 2.0}) == "with"
        assert self.best(wish(tools=[]), both) == "without"
        assert self.best(wanted, {"without": {}}) is None

    def test_the_tie_is_the_first_ones_and_the_default_breaks_it(self) -> None:
        models: dict[str, dict[str, Any]] = {"one": {}, "two": {}}
        assert self.best(wish(), models) == "one"
        assert self.best(wish(), models, default="two") == "two"
        assert self.best(wish(), models, {"two": 0.1}, default="two") == "two"
        assert self.best(wish(), models, {"two": 0.2}, default="two") == "one"

    def test_a_load_counts_up_to_twice_what_it_can_have(self) -> None:
        models: dict[str, dict[str, Any]] = {"one": {}, "two": {"specialisation": ["fast"]}}
        assert self.best(wish(1, 1), models, {"one": 1.0, "two": 1.7}) == "two"
        assert self.best(wish(1, 1), models, {"one": 1.0, "two": 1.8}) == "one"
        assert self.best(wish(1, 1), models, {"one": 2.0, "two": 9.0}) == "two"
        assert self.best(wish(), models, {"one": 2.0, "two": 9.0}) == "one"

    def test_too_long_by_estimate_only_if_there_is_no_other(self) -> None:
        models: dict[str, dict[str, Any]] = {
            "small": {"context": 1000, "specialisation": ["tools", "long-form", "interactive"]},
            "large": {"context": 1001},
        }
        assert self.best(wish(500, 500), models) == "small"
        assert self.best(wish(501, 500), models) == "large"
        assert self.best(wish(501, 500), models, {"large": 2.0}) == "large"
        # ... or the other is away
        assert self.best(wish(501, 500), models, states={"large": "loading"}) == "small"
        assert self.best(wish(9000, 9000), {"small": {"context": 1000}}) == "small"

    def test_one_that_restarts_is_better_than_one_that_has_failed_and_worse_than_any_other(self) -> None:
        models: dict[str, dict[str, Any]] = {"one": {}, "two": {}}
        assert self.best(wish(), models, states={"one": "loading"}) == "two"
        assert self.best(wish(), models, states={"one": "failed", "two": "loading"}) == "two"
        assert self.best(wish(), models, states={"one": "failed"}) == "two"
        small: dict[str, dict[str, Any]] = {"small": {"context": 1}, "large": {}}
        assert self.best(wish(), small, states={"small": "failed", "large": "loading"}) == "large"
        assert self.best(wish(), small, states={"small": "loading", "large": "failed"}) == "small"

    @pytest.mark.parametrize(
        ("more", "fast"),
        [('"max_tokens":200,', True), ('"max_tokens":201,', False), ("", False), ('"max_tokens":0,', True)],
    )
    def test_an_answer_of_unsaid_length_is_no_short_one(self, more: str, fast: bool) -> None:
        models: dict[str, dict[str, Any]] = {"plain": {}, "quick": {"specialisation": ["fast"]}}
        assert model_name(said(None, more, "hi"), models) == ("quick" if fast else "plain")

    def test_an_answer_of_unsaid_length_is_taken_for_256_tokens(self) -> None:
        for context, name in ((251 + 256, "small"), (250 + 256, "large")):
            models: dict[str, dict[str, Any]] = {"small": {"context": context}, "large": {"context": 9999}}
            assert model_name(said(content="x" * 1000), models) == name

    def test_of_several_prompts_the_longest_counts(self) -> None:
        models: dict[str, dict[str, Any]] = {"plain": {}, "long": {"specialisation": ["long-form"]}}
        for body in ({"prompt": ["x" * 8000, "x"]}, {"prompt": ["x", "x" * 8000]}):
            assert model_name(json.dumps(body).encode(), models, endpoint="completions") == "long"

    def test_an_embedding_has_no_answer(self) -> None:
        models: dict[str, dict[str, Any]] = {
            "plain": {"endpoints": ["embeddings"]},
            "quick": {"endpoints": ["embeddings"], "specialisation": ["fast"]},
        }
        assert model_name(b'{"input":"hi"}', models, endpoint="embeddings") == "quick"
        models = {
            "exact": {"endpoints": ["embeddings"], "context": 251},
            "large": {"endpoints": ["embeddings"], "context": 999},
        }
        body = json.dumps({"input": "x" * 1000}).encode()
        assert model_name(body, models, endpoint="embeddings") == "exact"


def replica_for(replicas: list[Replica], policy: Policy, session: str | None = None, tried: str = "") -> str | None:
    model = replicas[0].model
    chosen = choose_replica(model, policy, session, {replica for replica in replicas if replica.name in tried})
    return None if chosen is None else chosen.name


class TestReplica:
    def test_only_one_that_can_take_it(self) -> None:
        replicas = replicas_of({}, {}, concurrency=2)
        a, b = replicas
        a.in_flight = 2
        assert replica_for(replicas, "least_in_flight") == "b"
        b.in_flight = 1
        assert replica_for(replicas, "least_in_flight") == "b"
        b.in_flight = 2
        assert replica_for(replicas, "least_in_flight") is None
        a.in_flight = b.in_flight = 0
        b.state = "loading"
        a.breaker.state = "open"
        a.breaker._opened = 1e12
        assert replica_for(replicas, "least_in_flight") is None

    def test_those_that_were_tried_only_if_there_is_no_other(self) -> None:
        replicas = replicas_of({}, {}, {})
        assert replica_for(replicas, "least_in_flight", tried="a") == "b"
        assert replica_for(replicas, "least_in_flight", tried="ab") == "c"
        assert replica_for(replicas, "least_in_flight", tried="bc") == "a"
        assert replica_for(replicas, "least_in_flight", tried="abc") == "a"

    def test_round_robin_by_weight_and_evenly_spread(self) -> None:
        replicas = replicas_of({"weight": 3}, {"weight": 1})
        order = [replica_for(replicas, "weighted_round_robin") for _ in range(8)]
        assert order == ["a", "a", "b", "a"] * 2
        assert sum(replica.current_weight for replica in replicas) == 0

    def test_least_in_flight_by_weight(self) -> None:
        replicas = replicas_of({"weight": 2}, {"weight": 1})
        replicas[0].in_flight = 2
        assert replica_for(replicas, "least_in_flight") == "b"  # 3/2 against 1
        replicas[1].in_flight = 1
        assert replica_for(replicas, "least_in_flight") == "a"  # 3/2 against 2
        replicas[0].in_flight, replicas[1].in_flight = 4, 2
        assert replica_for(replicas, "least_in_flight") == "a"  # 5/2 against 3

    def test_response_time_by_what_is_in_flight_and_weight(self) -> None:
        replicas = replicas_of({}, {})
        a, b = replicas
        a.first_byte.add(0.2)
        b.first_byte.add(0.1)
        assert replica_for(replicas, "response_time") == "b"
        b.in_flight = 2
        assert replica_for(replicas, "response_time") == "a"
        a.in_flight = 1
        assert replica_for(replicas, "response_time") == "b"
        a.settings = a.settings.model_copy(update={"weight": 4})
        assert replica_for(replicas, "response_time") == "a"

    def test_response_time_counts_the_request_itself(self) -> None:
        replicas = replicas_of({}, {})
        a, b = replicas
        a.first_byte.add(0.1)
        b.first_byte.add(0.06)
        b.in_flight = 1
        assert replica_for(replicas, "response_time") == "a"  # 0.1 against twice 0.06

    def test_response_time_of_one_that_nobody_has_asked_yet(self) -> None:
        """All is nothing times nothing; without a little added, one would get everything."""
        replicas = replicas_of({}, {})
        replicas[0].in_flight = 1
        assert replica_for(replicas, "response_time") == "b"
        replicas[1].first_byte.add(0.0005)
        assert replica_for(replicas, "response_time") == "a"

    def test_resource_by_what_the_engine_says(self) -> None:
        replicas = replicas_of({}, {})
        a, b = replicas
        a.cache_used = 0.5
        b.waiting = 4
        assert replica_for(replicas, "resource") == "b"
        b.in_flight = 2
        assert replica_for(replicas, "resource") == "a"
        b.settings = b.settings.model_copy(update={"weight": 2})
        assert replica_for(replicas, "resource") == "b"
        a.cache_used, a.in_flight, b.in_flight, b.waiting = 0.0, 3, 2, 5
        assert replica_for(replicas, "resource") == "a"  # 3 against 7/2

    def test_a_session_stays_and_only_those_of_a_lost_replica_move(self) -> None:
        replicas = replicas_of({"weight": 1}, {"weight": 1}, {"weight": 2})
        sessions = [f"{number}" for number in range(400)]
        homes = {session: replica_for(replicas, "least_in_flight", session) for session in sessions}
        shares = Counter(homes.values())
        assert 170 <= shares["c"] <= 230
        assert 70 <= shares["a"] <= 130
        replicas[0].state = "loading"
        for session, home in homes.items():
            now = replica_for(replicas, "least_in_flight", session)
            assert now == home or home == "a"

    def test_where_a_session_is_does_not_change_with_a_release(self) -> None:
        """Two gateways side by side, or an old and a new one, send a session to the same replica."""
        replicas = replicas_of({}, {}, {})
        homes = "".join(str(replica_for(replicas, "least_in_flight", f"s{number}")) for number in range(12))
        assert homes == "bcbacbbbaccb"


class TestFallbacks:
    def fleet(self) -> Fleet:
        return fleet_of(
            config_of(
                {
                    "one": {"fallback": ["two", "three"]},
                    "two": {"fallback": ["four", "one", "three"]},
                    "three": {},
                    "four": {},
                }
            )
        )

    def test_the_list_of_the_model_and_then_those_of_its_members(self) -> None:
        fleet = self.fleet()
        assert [model.name for model in fallbacks(fleet.models["one"], fleet)] == ["two", "three", "four"]
        assert list(fallbacks(fleet.models["three"], fleet)) == []

    def test_one_that_is_away_is_passed_over_and_its_list_is_not(self) -> None:
        fleet = self.fleet()
        fleet.models["two"].replicas[0].state = "loading"
        assert [model.name for model in fallbacks(fleet.models["one"], fleet)] == ["three", "four"]
