"""Limits, admission and deadlines when many come at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial
from typing import Any

import httpx
import pytest

from citadel_gateway.exchange import Exchange
from tests.gateway.harness import Lab, code_of, nobody, running
from tests.gateway.simulator import Act, eventually, until

pytestmark = pytest.mark.anyio


def tier(**rates: Any) -> dict[str, Any]:
    return {"limits": {"tiers": {"default": rates}}}


async def at_once(lab: Lab, count: int, **options: Any) -> Counter[int]:
    answers = await asyncio.gather(*(lab.chat(**options) for _ in range(count)))
    return Counter(answer.status_code for answer in answers)


def _waiting(lab: Lab, count: int) -> bool:
    return lab.gateway.admission.waiting == count


class TestRaces:
    async def test_200_at_once_get_exactly_what_is_there(self) -> None:
        async with running(tier(requests_per_minute=37), models={"phi": {"concurrency": 300, "queue": 300}}) as lab:
            assert await at_once(lab, 200) == {200: 37, 429: 163}
            await lab.settled()

    async def test_concurrency_is_exact_too(self) -> None:
        async with running(tier(concurrent=9), models={"phi": {"concurrency": 300}}) as lab:
            lab.simulators["phi"].gate.clear()
            asking = asyncio.create_task(at_once(lab, 200))
            await until(
                lambda: (
                    lab.metric(
                        "llm_requests_total", model="phi", endpoint="chat_completions", status="error", code="429"
                    )
                    == 191
                ),
                10,
            )
            lab.simulators["phi"].gate.set()
            assert await asking == {200: 9, 429: 191}
            await lab.settled()
            assert await at_once(lab, 9) == {200: 9}

    async def test_the_model_never_gets_more_than_it_may_have(self) -> None:
        async with running(models={"phi": {"concurrency": 7, "queue": 300}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(delay=0.01)
            most = 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, simulator.running)
                    await asyncio.sleep(0.001)

            watcher = asyncio.create_task(watch())
            assert await at_once(lab, 200) == {200: 200}
            watcher.cancel()
            assert most == 7
            await lab.settled()

    async def test_everybodys_burst(self) -> None:
        async with running({"limits": {"overall": {"requests_per_minute": 60, "burst": 20}}}) as lab:
            assert await at_once(lab, 100) == {200: 20, 429: 80}

    async def test_limits_of_a_class_are_per_model_and_scaled_by_the_tier(self) -> None:
        over = {
            "limits": {
                "classes": {"heavy": {"requests_per_minute": 3}},
                "tiers": {"default": {}, "premium": {"class_factor": 2.0}},
            }
        }
        models = {"one": {"limit_class": "heavy"}, "two": {"limit_class": "heavy"}, "free": {}}
        async with running(over, models=models) as lab:
            assert await at_once(lab, 10, model="one") == {200: 3, 429: 7}
            assert await at_once(lab, 10, model="two") == {200: 3, 429: 7}
            assert await at_once(lab, 10, model="free") == {200: 10}
            _, headers = lab.key(tier="premium")
            assert await at_once(lab, 10, model="one", headers=headers) == {200: 6, 429: 4}

    async def test_addresses_without_a_key(self) -> None:
        async with running({"limits": {"address": {"requests_per_minute": 4}}}) as lab:
            assert await at_once(lab, 10) == {200: 4, 429: 6}
            _, headers = lab.key()
            assert await at_once(lab, 10, headers=headers) == {200: 10}


class TestSettlement:
    async def test_a_refused_request_uses_nothing_up(self) -> None:
        async with running(tier(requests_per_minute=3)) as lab:
            for _ in range(5):
                assert (await lab.chat(model="nope")).status_code == 404
            assert await at_once(lab, 3) == {200: 3}
            answer = await lab.chat()
            assert (answer.status_code, code_of(answer)) == (429, "rate_limit_exceeded")
            assert 55 <= int(answer.headers["retry-after"]) <= 61
            assert int((await lab.chat()).headers["retry-after-ms"]) <= 61_000

    async def test_tokens_are_reserved_and_then_settled(self) -> None:
        async with running(tier(tokens_per_minute=1000)) as lab:
            lab.simulators["phi"].default = Act(tokens=10)
            answer = await lab.chat(max_tokens=900)
            assert answer.status_code == 200
            # 900 were reserved, 17 were used: there is room for 900 again
            assert int((await lab.chat(max_tokens=900)).headers["x-ratelimit-limit-tokens"]) == 1000
            await lab.settled()
            window = lab.gateway.limits._meters["principal", "address:127.0.0.1"].tokens
            assert window is not None
            assert window.total == 2 * 17

    async def test_tokens_that_are_reserved_keep_others_out(self) -> None:
        async with running(tier(tokens_per_minute=1000)) as lab:
            lab.simulators["phi"].gate.clear()
            asking = asyncio.create_task(at_once(lab, 5, max_tokens=400))
            await until(
                lambda: (
                    lab.metric(
                        "llm_requests_total", model="phi", endpoint="chat_completions", status="error", code="429"
                    )
                    == 3
                )
            )
            lab.simulators["phi"].gate.set()
            assert await asking == {200: 2, 429: 3}

    async def test_a_stream_that_is_left_costs_what_was_reserved(self) -> None:
        async with running(tier(tokens_per_minute=10_000)) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(tokens=1000, gap=0.005)
            async with lab.raw() as client:
                await client.post({"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 3000})
                await until(lambda: simulator.seen and simulator.seen[0].sent > 10)
                client.abort()
            await lab.settled()
            window = lab.gateway.limits._meters["principal", "address:127.0.0.1"].tokens
            assert window is not None
            assert window.total == 3000 + 1

    async def test_a_request_that_never_reached_a_model_costs_nothing(self) -> None:
        async with running(tier(requests_per_minute=2)) as lab:
            await lab.simulators["phi"].stop()
            next(lab.gateway.fleet.replicas()).refused()
            for _ in range(4):
                assert (await lab.chat(headers={"x-request-timeout": "0.05"})).status_code == 503
            await lab.simulators["phi"].start()
            assert (await lab.chat()).status_code == 200


class TestClockJumps:
    async def test_limits_do_not_see_the_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with running(tier(requests_per_minute=2)) as lab:
            now = time.time()
            assert await at_once(lab, 2) == {200: 2}
            for jump in (86_400.0, -86_400.0):
                monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
                assert (await lab.chat()).status_code == 429
            await lab.settled()

    async def test_keys_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with running() as lab:
            now = time.time()
            _, headers = lab.key(expires=now + 3600)
            assert (await lab.chat(headers=headers)).status_code == 200
            monkeypatch.setattr(time, "time", lambda: now + 7200)
            answer = await lab.chat(headers=headers)
            assert (answer.status_code, code_of(answer)) == (401, "expired_api_key")


class TestKeys:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_key_that_is_revoked_ends_what_it_runs(self, lab: Lab, stream: bool) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(tokens=1000, gap=0.01)
        key_id, headers = lab.key()
        running_request = asyncio.create_task(lab.stream(headers=headers) if stream else lab.chat(headers=headers))
        await until(lambda: simulator.running == 1 and (not stream or simulator.seen[0].sent > 3))
        lab.gateway.keys.revoke(key_id)
        lab.gateway.keys._seen = None  # as if another process had written the file
        result: Any = await asyncio.wait_for(running_request, 3.0)
        if stream:
            assert result[-1]["error"]["code"] == "revoked_api_key"
            assert len(result) > 3
        else:
            assert (result.status_code, code_of(result)) == (401, "revoked_api_key")
        await until(lambda: simulator.seen[0].state == "aborted", 1.0)
        assert (await lab.chat(headers=headers)).status_code == 401
        await lab.settled()

    async def test_a_key_file_that_is_broken_changes_nothing(self, lab: Lab) -> None:
        _, headers = lab.key()
        lab.gateway.keys.path.write_text("{")
        await asyncio.sleep(0.7)  # the gateway looks twice a second
        assert (await lab.chat(headers=headers)).status_code == 200


class TestAdmission:
    async def test_a_full_queue_is_refused_with_the_real_waiting_time(self) -> None:
        async with running(models={"phi": {"concurrency": 2, "queue": 3}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(delay=0.2)
            await at_once(lab, 5)  # to learn how long a request takes
            tasks = [asyncio.create_task(lab.chat()) for _ in range(5)]
            await until(lambda: lab.gateway.admission.waiting == 3)
            answer = await lab.chat()
            assert (answer.status_code, code_of(answer)) == (503, "queue_full")
            assert 200 <= int(answer.headers["retry-after-ms"]) <= 800  # four before it, two at a time, 0.2 s each
            assert [(await task).status_code for task in tasks] == [200] * 5
            await lab.settled()

    async def test_a_deadline_that_cannot_be_met_is_refused_at_once(self) -> None:
        async with running(models={"phi": {"concurrency": 1}}) as lab:
            lab.simulators["phi"].default = Act(delay=0.1)
            for _ in range(5):
                await lab.chat()
            tasks = [asyncio.create_task(lab.chat()) for _ in range(8)]
            await until(lambda: lab.gateway.admission.waiting == 7)
            started = time.monotonic()
            answer = await lab.chat(headers={"x-stainless-read-timeout": "0.3"})
            assert time.monotonic() - started < 0.1
            assert (answer.status_code, code_of(answer)) == (503, "deadline_unreachable")
            assert "7 requests waiting" in answer.json()["error"]["message"]
            # a patient client is let in
            assert (await lab.chat(headers={"x-stainless-read-timeout": "30"})).status_code == 200
            assert {(await task).status_code for task in tasks} == {200}
            await lab.settled()

    async def test_waiting_ends_with_the_deadline(self) -> None:
        async with running(models={"phi": {"concurrency": 1}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(delay=5)
            async with lab.raw() as client:
                await client.post({"messages": [{"role": "user", "content": "x"}]})
                await until(lambda: simulator.running == 1)
                answer = await lab.chat(headers={"x-request-timeout": "0.2"})
                assert (answer.status_code, code_of(answer)) == (503, "queue_timeout")
                client.abort()
            await lab.settled()

    async def test_a_permit_that_comes_just_as_the_client_leaves_goes_back(self) -> None:
        async with running(models={"phi": {"concurrency": 1}}) as lab:
            admission = lab.gateway.admission
            model = lab.gateway.fleet.models["phi"]
            first, second = (Exchange(nobody(), "chat", "x") for _ in range(2))
            first.deadline = second.deadline = time.monotonic() + 5
            permit = await admission.enter(first, model)
            waiting = asyncio.create_task(admission.enter(second, model))
            await until(partial(_waiting, lab, 1))
            permit.release()  # calls the second one in ...
            waiting.cancel()  # ... which is gone before it hears it
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert admission.in_flight == admission.waiting == 0

    async def test_a_flood_on_one_model_leaves_the_others_room(self) -> None:
        models = {name: {"concurrency": 100, "queue": 200} for name in ("flooded", "quiet")}
        async with running({"admission": {"budget": 8.0, "reserved": 0.5}}, models=models) as lab:
            for simulator in lab.simulators.values():
                simulator.default = Act(delay=0.1)
            flood = [asyncio.create_task(lab.chat(model="flooded")) for _ in range(100)]
            await until(lambda: lab.simulators["flooded"].running == 6)  # its own two units and the four shared ones
            started = time.monotonic()
            answers = await asyncio.gather(*(lab.chat(model="quiet") for _ in range(2)))
            assert time.monotonic() - started < 0.3
            assert {answer.status_code for answer in answers} == {200}
            assert all(float(answer.headers["x-citadel-queue-ms"]) < 50 for answer in answers)
            assert lab.simulators["flooded"].running <= 6
            assert {(await task).status_code for task in flood} == {200}
            await lab.settled()

    async def test_priorities_and_turns(self) -> None:
        async with running(models={"phi": {"concurrency": 1}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.gate.clear()
            _, greedy = lab.key()
            _, modest = lab.key()
            tasks = [asyncio.create_task(lab.chat(user="first"))]
            await until(lambda: simulator.running == 1)
            for name, headers in (
                ("greedy-1", greedy),
                ("greedy-2", greedy),
                ("greedy-3", greedy),
                ("modest", modest),
                ("low", {**modest, "x-priority": "low"}),
                ("high", {**modest, "x-priority": "high"}),
            ):
                waiting = lab.gateway.admission.waiting
                tasks.append(asyncio.create_task(lab.chat(user=name, headers=headers)))
                await until(partial(_waiting, lab, waiting + 1))
            simulator.gate.set()
            await asyncio.gather(*tasks)
            order = [seen.body["user"] for seen in simulator.seen]
            assert order == ["first", "high", "greedy-1", "modest", "greedy-2", "greedy-3", "low"]

    async def test_a_low_priority_rises_while_it_waits(self) -> None:
        async with running({"admission": {"ageing": 0.02}}, models={"phi": {"concurrency": 1}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.gate.clear()
            tasks = [asyncio.create_task(lab.chat(user="first"))]
            await until(lambda: simulator.running == 1)
            tasks.append(asyncio.create_task(lab.chat(user="low", headers={"x-priority": "low"})))
            await until(lambda: lab.gateway.admission.waiting == 1)
            await asyncio.sleep(0.07)  # more than three times the ageing: it has risen above critical
            tasks.append(asyncio.create_task(lab.chat(user="critical", headers={"x-priority": "critical"})))
            await until(partial(_waiting, lab, 2))
            simulator.gate.set()
            await asyncio.gather(*tasks)
            assert [seen.body["user"] for seen in simulator.seen] == ["first", "low", "critical"]

    async def test_nobody_gets_a_higher_priority_than_its_tier_has(self) -> None:
        over = {"limits": {"tiers": {"default": {"max_priority": "normal"}}}}
        async with running(over, models={"phi": {"concurrency": 1}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.gate.clear()
            tasks = [asyncio.create_task(lab.chat(user="first"))]
            await until(lambda: simulator.running == 1)
            for count, (name, priority) in enumerate((("normal", "normal"), ("pushy", "critical"))):
                tasks.append(asyncio.create_task(lab.chat(user=name, headers={"x-priority": priority})))
                await until(partial(_waiting, lab, count + 1))
            simulator.gate.set()
            await asyncio.gather(*tasks)
            assert [seen.body["user"] for seen in simulator.seen] == ["first", "normal", "pushy"]


async def test_a_fallback_answers_if_it_may() -> None:
    async with running(models={"big": {"fallback": ["small"], "load_seconds": 0.01}, "small": {}}) as lab:
        await lab.simulators["big"].stop()
        replica = lab.gateway.fleet.models["big"].replicas[0]
        replica.poke.set()
        await until(lambda: replica.state == "failed")
        assert (await lab.chat(model="big")).status_code == 503
        answer = await lab.chat(model="big", headers={"x-allow-fallback": "true"})
        assert (answer.status_code, answer.headers["x-citadel-model"]) == (200, "small")
        assert lab.simulators["small"].seen[-1].body["model"] == "small"
        await lab.settled()


async def test_the_health_report_while_nothing_is_there(lab: Lab) -> None:
    await lab.simulators["phi"].stop(abruptly=True)
    next(lab.gateway.fleet.replicas()).poke.set()
    async with httpx.AsyncClient(base_url=lab.url("health")) as client:

        async def unhealthy() -> bool:
            answer = await client.get("/health")
            return answer.status_code == 503 and answer.json()["status"] == "unhealthy"

        await eventually(unhealthy)
