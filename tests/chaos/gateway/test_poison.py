"""What one client sends takes a model away from nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.gateway.harness import Lab, code_of, running
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio


def poison(body: Any) -> bool:
    return bool(body.get("user") == "poison")


def is_ready(lab: Lab) -> bool:
    return all(replica.state == "ready" for replica in lab.gateway.fleet.replicas())


def deaths(lab: Lab) -> int:
    return sum(simulator.deaths for simulator in lab.simulators.values())


def events(lab: Lab, name: str) -> list[dict[str, Any]]:
    return [record for record in lab.records("audit") if record["event"] == name]


@pytest.mark.parametrize("how", ["reset", "error"])
class TestAnEngineThatDies:
    async def test_with_one_replica_the_request_is_not_sent_again(self, how: str) -> None:
        async with running() as lab:
            simulator = lab.simulators["phi"]
            simulator.deadly, simulator.dies_by = poison, how
            await lab.chat()  # so that there is a connection that has been used
            answer = await lab.chat(user="poison")
            assert (answer.status_code, code_of(answer)) == (503, "upstream_failed")
            assert simulator.deaths == 1
            assert [seen.body.get("user") for seen in simulator.seen].count("poison") == 1
            await until(lambda: is_ready(lab))
            # the client tries again by itself: now it is known
            answer = await lab.chat(user="poison")
            assert (answer.status_code, code_of(answer)) == (422, "request_breaks_model")
            assert answer.headers["x-should-retry"] == "false"
            await until(lambda: is_ready(lab))
            for _ in range(3):
                answer = await lab.chat(user="poison")
                assert (answer.status_code, code_of(answer)) == (422, "request_breaks_model")
            assert simulator.deaths == 2
            assert (await lab.chat()).status_code == 200
            assert lab.metric("llm_engine_deaths_total", model="phi", replica="phi") == 2
            assert lab.metric("llm_rejections_total", model="phi", reason="request_breaks_model") == 4
            assert len(events(lab, "engine_died")) == 2
            assert any(record.get("code") == "request_breaks_model" for record in events(lab, "error"))
            await lab.settled()

    async def test_another_replica_gets_it_once_and_no_third_one(self, how: str) -> None:
        async with running(replicas=3) as lab:
            for simulator in lab.simulators.values():
                simulator.deadly, simulator.dies_by, simulator.restart_after = poison, how, 2.0
            answer = await lab.chat(user="poison")
            assert (answer.status_code, code_of(answer)) == (422, "request_breaks_model")
            assert deaths(lab) == 2
            assert (await lab.chat()).status_code == 200  # the third one
            assert deaths(lab) == 2

    async def test_one_that_was_beside_it_is_answered_by_another_replica(self, how: str) -> None:
        async with running(replicas=2) as lab:
            first = lab.simulators["phi-1"]
            first.deadly, first.dies_by = poison, how
            first.default = Act(delay=0.3)
            session = {"x-session-id": "a"}
            home = (await lab.chat(headers=session)).headers["x-citadel-replica"]
            if home != "phi-1":
                first = lab.simulators[home]
                lab.simulators["phi-1"].deadly, first.deadly, first.dies_by = None, poison, how
                first.default = Act(delay=0.3)
            beside = asyncio.create_task(lab.chat(user="innocent", headers=session))
            await until(lambda: any(seen.body.get("user") == "innocent" for seen in first.seen))
            answer = await lab.chat(user="poison", headers=session)
            assert answer.status_code == 200  # the other replica does not die of it
            assert (await beside).status_code == 200
            assert first.deaths == 1


async def test_what_was_beside_a_death_is_cleared_by_an_answer() -> None:
    async with running() as lab:
        simulator = lab.simulators["phi"]
        simulator.deadly = poison
        simulator.default = Act(delay=0.2)
        beside = [asyncio.create_task(lab.chat(user=f"innocent-{number}")) for number in range(3)]
        await until(lambda: simulator.running == 3)
        await lab.chat(user="poison")
        assert {(await task).status_code for task in beside} == {503}
        await until(lambda: is_ready(lab))
        assert len(lab.gateway.quarantine) == 4
        # they come again and run one at a time
        again = [asyncio.create_task(lab.chat(user=f"innocent-{number}")) for number in range(3)]
        most = 0
        while not all(task.done() for task in again):
            most = max(most, simulator.running)
            await asyncio.sleep(0.005)
        assert {(await task).status_code for task in again} == {200}
        assert most == 1
        assert len(lab.gateway.quarantine) == 1
        await lab.settled()


async def test_a_stream_that_dies_with_its_engine_counts_too() -> None:
    async with running() as lab:
        simulator = lab.simulators["phi"]
        simulator.default = Act(tokens=1000, gap=0.01)
        asking = asyncio.create_task(lab.stream(user="long"))
        await until(lambda: simulator.seen and simulator.seen[0].sent > 3)
        await simulator.stop(abruptly=True)
        assert (await asking)[-1]["error"]["code"] == "upstream_failed"
        assert len(lab.gateway.quarantine) == 1
        await simulator.start()


@pytest.mark.parametrize(
    ("status", "seen_status", "code"),
    [(500, 422, "request_fails_on_model"), (503, 503, "upstream_saturated")],
)
async def test_what_fails_for_one_client_leaves_the_others_served(status: int, seen_status: int, code: str) -> None:
    async with running() as lab:
        lab.simulators["phi"].rules.append((poison, Act(status=status, body=b'{"error":{"message":"no"}}')))
        _, other = lab.key()
        for _ in range(12):
            answer = await lab.chat(user="poison")
            assert (answer.status_code, code_of(answer)) == (seen_status, code)
            assert (await lab.chat(headers=other)).status_code == 200
        assert next(lab.gateway.fleet.replicas()).breaker.state == "closed"
        await lab.settled()


async def test_timeouts_of_one_client_leave_the_others_served() -> None:
    async with running(models={"phi": {"timeout": 0.1}}) as lab:
        lab.simulators["phi"].rules.append((poison, Act(delay=1.0)))
        _, other = lab.key()
        answers = await asyncio.gather(*(lab.chat(user="poison") for _ in range(12)))
        assert {code_of(answer) for answer in answers} == {"upstream_timeout"}
        assert (await lab.chat(headers=other)).status_code == 200
        assert next(lab.gateway.fleet.replicas()).breaker.state == "closed"


async def test_several_clients_and_a_probe_open_the_breaker() -> None:
    async with running() as lab:
        lab.simulators["phi"].default = Act(status=500)
        _, one = lab.key()
        _, two = lab.key()
        replica = next(lab.gateway.fleet.replicas())
        for _ in range(2):
            for headers in (one, two):
                assert (await lab.chat(headers=headers)).status_code == 503
        await until(lambda: replica.breaker.state == "open")
        assert code_of(await lab.chat(headers=one)) == "circuit_open"
        assert len(events(lab, "breaker_open")) == 1
        lab.simulators["phi"].default = Act()
        assert (await lab.chat(headers=two)).status_code == 503
        await asyncio.sleep(0.45)
        for _ in range(3):
            assert (await lab.chat(headers=two)).status_code == 200
        assert replica.breaker.state == "closed"


async def test_several_clients_without_the_probe_do_not() -> None:
    async with running() as lab:
        lab.simulators["phi"].rules.append((lambda body: "messages" in body, Act(status=500)))
        keys = [lab.key()[1] for _ in range(3)]
        replica = next(lab.gateway.fleet.replicas())
        for _ in range(4):
            for headers in keys:
                assert (await lab.chat(headers=headers)).status_code == 422
        assert replica.breaker.state == "closed"
        assert replica.state == "ready"


async def test_a_replica_that_fails_its_only_client_is_taken_out_by_probes() -> None:
    async with running() as lab:
        lab.simulators["phi"].default = Act(status=500)
        replica = next(lab.gateway.fleet.replicas())
        for _ in range(4):
            assert (await lab.chat()).status_code == 503
        await until(lambda: replica.state == "failed")
        assert replica.breaker.state == "closed"
        assert code_of(await lab.chat()) == "model_not_ready"
        lab.simulators["phi"].default = Act()
        await until(lambda: replica.state == "ready")
        assert (await lab.chat()).status_code == 200
