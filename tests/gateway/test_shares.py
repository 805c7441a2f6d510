"""Who gets what: keys, addresses, lanes and fallbacks, each within its own share."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel_gateway import cli
from citadel_gateway.config import ConfigError, parse
from citadel_gateway.exchange import Exchange
from citadel_gateway.fleet import Replica
from citadel_gateway.route import choose_replica
from citadel_gateway.sse import EventStream, find_usage
from citadel_gateway.step import Answer
from tests.gateway.harness import MESSAGES, Lab, code_of, running
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio


def _waiting(lab: Lab, count: int) -> bool:
    return lab.gateway.admission.waiting == count


def tokens_used(lab: Lab) -> int:
    window = lab.gateway.limits._meters["principal", "address:127.0.0.1"].tokens
    assert window is not None
    return window.total


TOKENS: dict[str, Any] = {"limits": {"tiers": {"default": {"tokens_per_minute": 100_000}}}}


class TestWhatIsCharged:
    """Without a figure from the model, what was reserved: 50 for the answer and 2 for the prompt."""

    async def test_a_client_that_leaves_a_whole_answer(self) -> None:
        async with running(TOKENS) as lab:
            lab.simulators["phi"].gate.clear()
            async with lab.raw() as client:
                await client.post({"messages": MESSAGES, "max_tokens": 50})
                await until(lambda: lab.simulators["phi"].running == 1)
                client.abort()
            await lab.settled()
            assert tokens_used(lab) == 52
            assert lab.records()[0]["charged_tokens"] == 52

    async def test_a_stream_before_its_first_token(self) -> None:
        async with running(TOKENS) as lab:
            lab.simulators["phi"].default = Act(delay=5)
            async with lab.raw() as client:
                await client.post({"messages": MESSAGES, "max_tokens": 50, "stream": True})
                await until(lambda: lab.simulators["phi"].running == 1)
                client.abort()
            await lab.settled()
            assert tokens_used(lab) == 52

    async def test_a_stream_without_a_figure(self) -> None:
        async with running(TOKENS) as lab:
            lab.simulators["phi"].default = Act(usage=False)
            await lab.stream(max_tokens=50)
            await lab.settled()
            assert tokens_used(lab) == 52

    async def test_what_the_model_refuses_or_fails_at_costs_no_tokens(self) -> None:
        async with running(TOKENS) as lab:
            for act in (Act(status=400, body=b"{}"), Act(reset=True)):
                lab.simulators["phi"].default = act
                await lab.chat(max_tokens=50)
                await lab.settled()
                assert tokens_used(lab) == 0

    async def test_a_timeout_costs_what_was_reserved(self) -> None:
        async with running(TOKENS, models={"phi": {"timeout": 0.1}}) as lab:
            lab.simulators["phi"].default = Act(delay=5)
            assert (await lab.chat(max_tokens=50)).status_code == 504
            await lab.settled()
            assert tokens_used(lab) == 52

    def test_a_token_that_reads_usage_hides_nothing(self) -> None:
        whole = (
            b'{"usage":{"prompt_tokens":7,"completion_tokens":5},"prompt_logprobs":[{"5":{"decoded_token":"usage"}}]}'
        )
        found = find_usage(whole)
        assert found is not None
        assert (found.prompt, found.completion) == (7, 5)
        stream = EventStream(strip_usage=True)
        event = b'data: {"choices":[{"logprobs":{"content":[{"token":"usage"}]}}]}\n\n'
        last = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n'
        assert stream.feed(event) == event
        assert stream.feed(last) == b""
        assert stream.usage is not None
        assert stream.usage.completion == 5


class TestReload:
    async def test_a_refused_one_changes_no_keys(self, lab: Lab) -> None:
        _, headers = lab.key()
        other = lab.folder / "other.json"
        other.write_text("{")
        assert lab.reconfigure({"auth": {"keys_file": str(other)}}) is not None
        assert lab.gateway.keys.path == lab.folder / "keys.json"
        assert (await lab.chat(headers=headers)).status_code == 200
        other.write_text('{"version": 1, "keys": []}')
        bad = {"auth": {"keys_file": str(other)}, "routing": {"default_model": "nope"}}
        assert lab.reconfigure(bad) is not None
        lab.gateway.keys._seen = None
        lab.gateway.keys.refresh()
        assert (await lab.chat(headers=headers)).status_code == 200
        assert lab.reconfigure({"routing": {"default_model": None}}) is None
        assert (await lab.chat(headers=headers)).status_code == 401

    def test_a_key_that_stands_twice_is_refused(self) -> None:
        text = (Path(__file__).parents[2] / "gateway" / "example.yml").read_text()
        with pytest.raises(ConfigError, match=r"gateway\.yml: line \d+: 'server' stands twice"):
            parse(text + "\nserver:\n  drain: 1.0\n", "gateway.yml")


class TestWrongKeys:
    async def test_they_are_bounded_for_an_address_and_audited_together(self) -> None:
        async with running({"auth": {"wrong_keys_per_minute": 5}}) as lab:
            _, good = lab.key()
            _, unused = lab.key()
            assert (await lab.chat(headers=good)).status_code == 200
            wrong = {"authorization": "Bearer ck_0000_wrong"}
            codes = [code_of(await lab.chat(headers=wrong)) for _ in range(40)]
            assert codes == ["invalid_api_key"] * 5 + ["too_many_wrong_keys"] * 35
            assert (await lab.chat(headers=good)).status_code == 200  # it has worked before
            assert code_of(await lab.chat(headers=unused)) == "too_many_wrong_keys"
            lab.gateway.audit.summarize(everything=True)
            lines = [line for line in lab.records("audit") if line.get("code") == "invalid_api_key"]
            assert [line.get("repeated") for line in lines] == [None, 4]
            lab.gateway.identity.wrong._counts.clear()  # the minute is over
            assert (await lab.chat(headers=unused)).status_code == 200

    async def test_uses_of_a_key_are_counted(self, lab: Lab) -> None:
        key_id, headers = lab.key()
        for _ in range(3):
            await lab.chat(headers=headers)
        lab.gateway.keys.write_uses()
        await lab.chat(headers=headers)
        (shown,) = [key for key in lab.gateway.keys.described() if key["id"] == key_id]
        assert shown["uses"] == 4
        assert shown["last_used"] is not None


class TestCommandLine:
    def test_key_changes_are_audited_whether_they_work_or_not(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = yaml.safe_load((Path(__file__).parents[2] / "gateway" / "example.yml").read_text())
        data["auth"]["keys_file"] = str(tmp_path / "keys.json")
        data["logs"] = {"audit": str(tmp_path / "audit.log")}
        config = tmp_path / "gateway.yml"
        config.write_text(yaml.safe_dump(data))
        assert cli.main(["keys", "create", "me", "--config", str(config)]) == 0
        assert cli.main(["keys", "create", "me", "--tier", "nope", "--config", str(config)]) == 2
        assert cli.main(["keys", "revoke", "nope", "--config", str(config)]) == 2
        lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
        assert [(line["event"], line["outcome"]) for line in lines] == [
            ("key_create", "ok"),
            ("key_create", "failed"),
            ("key_revoke", "failed"),
        ]
        assert all(line["actor"].startswith("cli:") for line in lines)
        capsys.readouterr()


class TestFirstToken:
    async def test_whole_answers_have_none(self, lab: Lab) -> None:
        await lab.chat()
        await lab.settled()
        assert lab.metric("llm_time_to_first_token_seconds_count", model="phi") == 0
        await lab.stream()
        await lab.settled()
        assert lab.metric("llm_time_to_first_token_seconds_count", model="phi") == 1


class TestLane:
    async def fill(self, lab: Lab, count: int, headers: dict[str, str]) -> list[asyncio.Task[Any]]:
        """One runs, the others wait."""
        tasks = []
        for number in range(count):
            tasks.append(asyncio.create_task(lab.chat(user=f"{number}", headers=headers)))
            await until(partial(_waiting, lab, number))
        return tasks

    async def test_a_critical_request_finds_room_in_a_full_queue(self) -> None:
        over = {"limits": {"tiers": {"default": {}, "best": {"max_priority": "critical"}}}}
        async with running(over, models={"phi": {"concurrency": 1, "queue": 3}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.gate.clear()
            _, greedy = lab.key()
            _, best = lab.key(tier="best")
            tasks = await self.fill(lab, 4, greedy)
            assert code_of(await lab.chat(headers=greedy)) == "queue_full"
            critical = asyncio.create_task(lab.chat(user="critical", headers={**best, "x-priority": "critical"}))
            answer = await tasks[-1]  # the last of the lowest made room
            assert (answer.status_code, code_of(answer)) == (503, "queue_full")
            simulator.gate.set()
            assert (await critical).status_code == 200
            assert [(await task).status_code for task in tasks[:-1]] == [200] * 3
            assert [seen.body["user"] for seen in simulator.seen] == ["0", "critical", "1", "2"]
            await lab.settled()

    async def test_of_equals_the_greediest_makes_room(self) -> None:
        async with running(models={"phi": {"concurrency": 1, "queue": 3}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.gate.clear()
            _, greedy = lab.key()
            _, modest = lab.key()
            tasks = await self.fill(lab, 4, greedy)
            mine = asyncio.create_task(lab.chat(user="modest", headers=modest))
            assert code_of(await tasks[-1]) == "queue_full"
            # two wait for the greedy one and one for the modest: nobody has more than a share
            assert code_of(await lab.chat(headers=modest)) == "queue_full"
            simulator.gate.set()
            assert (await mine).status_code == 200
            await asyncio.gather(*tasks)
            await lab.settled()

    async def test_a_lower_priority_displaces_nobody(self) -> None:
        async with running(models={"phi": {"concurrency": 1, "queue": 2}}) as lab:
            lab.simulators["phi"].gate.clear()
            _, one = lab.key()
            _, other = lab.key()
            tasks = await self.fill(lab, 3, one)
            assert code_of(await lab.chat(headers={**other, "x-priority": "low"})) == "queue_full"
            lab.simulators["phi"].gate.set()
            assert {(await task).status_code for task in tasks} == {200}

    async def test_a_tier_that_may_only_be_low_is_low(self) -> None:
        over = {"limits": {"tiers": {"default": {"max_priority": "normal"}, "bulk": {"max_priority": "low"}}}}
        async with running(over, models={"phi": {"concurrency": 1}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.gate.clear()
            _, bulk = lab.key(tier="bulk")
            tasks = await self.fill(lab, 2, bulk)
            tasks.append(asyncio.create_task(lab.chat(user="normal")))
            await until(partial(_waiting, lab, 2))
            simulator.gate.set()
            await asyncio.gather(*tasks)
            assert [seen.body["user"] for seen in simulator.seen] == ["0", "normal", "1"]


class TestCapacityToTheUnit:
    async def test_never_one_more_in_flight_than_the_capacity(self) -> None:
        async with running(models={"phi": {"concurrency": 2}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.gate.clear()
            tasks = [asyncio.create_task(lab.chat()) for _ in range(3)]
            await until(partial(_waiting, lab, 1))
            await until(lambda: simulator.running == 2)
            assert lab.gateway.admission.in_flight == 2
            lane = next(iter(lab.gateway.admission.lanes.values()))
            assert lane.expected_wait(0) > 0 or lane.model.service.value == 0
            simulator.gate.set()
            assert {(await task).status_code for task in tasks} == {200}

    async def test_a_free_place_means_no_wait_and_a_full_lane_does(self, lab: Lab) -> None:
        lane = next(iter(lab.gateway.admission.lanes.values()))
        lane.model.service.add(8.0)
        capacity = lane.model.capacity()
        lane.in_flight = capacity - 1
        assert lane.expected_wait(0) == 0.0
        lane.in_flight = capacity
        assert lane.expected_wait(0) == 8.0 / capacity
        lane.in_flight = 0

    async def test_the_edge_of_the_budget(self) -> None:
        models = {"one": {"concurrency": 100, "cost": 2.0}, "two": {"concurrency": 100, "cost": 2.0}}
        async with running({"admission": {"budget": 8.0, "reserved": 0.5}}, models=models) as lab:
            for simulator in lab.simulators.values():
                simulator.gate.clear()
            # one has two units for itself and four are common: exactly three requests of two units
            tasks = [asyncio.create_task(lab.chat(model="one")) for _ in range(5)]
            await until(partial(_waiting, lab, 2))
            await until(lambda: lab.simulators["one"].running == 3)
            assert lab.gateway.admission.common_used == 4.0
            tasks += [asyncio.create_task(lab.chat(model="two")) for _ in range(2)]
            await until(partial(_waiting, lab, 3))
            await until(lambda: lab.simulators["two"].running == 1)
            for simulator in lab.simulators.values():
                simulator.gate.set()
            assert {(await task).status_code for task in tasks} == {200}
            await lab.settled()

    async def test_load_decides_between_models_that_fit_alike(self) -> None:
        models: dict[str, dict[str, Any]] = {
            "one": {"concurrency": 2, "specialisation": ["fast"]},
            "two": {"concurrency": 2},
        }
        async with running(models=models) as lab:
            gate = lab.simulators["one"].gate
            gate.clear()
            # "fast" weighs 1.5; half a load costs 1 and a whole one 2
            first = asyncio.create_task(lab.chat(max_tokens=5))
            await until(lambda: lab.simulators["one"].running == 1)
            second = asyncio.create_task(lab.chat(max_tokens=5))
            await until(lambda: lab.simulators["one"].running == 2)
            answer = await lab.chat(max_tokens=5)
            assert answer.headers["x-citadel-model"] == "two"
            gate.set()
            await asyncio.gather(first, second)


class TestAffinity:
    @pytest.mark.parametrize(("weights", "share"), [((2, 1), 2 / 3), ((1, 1), 1 / 2), ((3, 1), 3 / 4)])
    async def test_sessions_are_spread_by_weight(self, weights: tuple[int, int], share: float) -> None:
        async with running(replicas=2) as lab:
            for replica, weight in zip(lab.config["models"]["phi"]["replicas"], weights, strict=True):
                replica["weight"] = weight
            assert lab.reconfigure({}) is None
            model = lab.gateway.fleet.models["phi"]
            chosen = [choose_replica(model, "least_in_flight", f"session-{number}", set()) for number in range(6000)]
            counts = Counter(replica.name for replica in chosen if replica is not None)
            assert counts["phi-1"] / 6000 == pytest.approx(share, abs=0.03)


ALLOW = {"x-allow-fallback": "true"}


def has_failed(replica: Replica) -> bool:
    return replica.state == "failed"


class TestFallbacks:
    async def away(self, lab: Lab, *names: str) -> None:
        for name in names:
            await lab.simulators[name].stop()
            replica = lab.gateway.fleet.models[name].replicas[0]
            replica.poke.set()
            await until(partial(has_failed, replica))

    async def test_a_chain_goes_on_until_somebody_can(self) -> None:
        models: dict[str, dict[str, Any]] = {
            "a": {"fallback": ["b"], "load_seconds": 0.01},
            "b": {"fallback": ["c"], "concurrency": 1, "queue": 0},
            "c": {"fallback": ["a"]},
        }
        async with running(models=models) as lab:
            await self.away(lab, "a")
            answer = await lab.chat(model="a", headers=ALLOW)
            assert (answer.status_code, answer.headers["x-citadel-model"]) == (200, "b")
            lab.simulators["b"].gate.clear()
            busy = asyncio.create_task(lab.chat(model="b"))
            await until(lambda: lab.simulators["b"].running == 1)
            answer = await lab.chat(model="a", headers=ALLOW)
            assert (answer.status_code, answer.headers["x-citadel-model"]) == (200, "c")
            lab.simulators["b"].gate.set()
            await busy
            await lab.settled()

    async def test_it_keeps_to_what_the_other_model_can_and_may(self) -> None:
        models: dict[str, dict[str, Any]] = {
            "a": {"fallback": ["b"], "load_seconds": 0.01, "capabilities": ["tools"], "bounds": {"n": 8}},
            "b": {"bounds": {"n": 2}, "limit_class": "heavy", "defaults": {"max_tokens": 7, "temperature": 0.1}},
        }
        over = {"limits": {"classes": {"heavy": {"requests_per_minute": 1}}}}
        async with running(over, models=models) as lab:
            await self.away(lab, "a")
            assert (await lab.chat(model="a", n=4, headers=ALLOW)).status_code == 503
            tools = [{"type": "function", "function": {"name": "x"}}]
            assert (await lab.chat(model="a", tools=tools, headers=ALLOW)).status_code == 503
            assert not lab.simulators["b"].seen
            assert (await lab.chat(model="a", headers=ALLOW)).status_code == 200
            sent = lab.simulators["b"].seen[-1].body
            assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("b", 7, 0.1)
            # the limit of its class counts as if it had been named
            assert (await lab.chat(model="a", headers=ALLOW)).status_code == 503
            await lab.settled()
            assert lab.gateway.limits.open == 0


class Marking:
    """A step as a cache or a knowledge base would be."""

    deadline = 0.2

    def __init__(self, result: Answer | bytes | Exception | None = None, delay: float = 0.0) -> None:
        self.result = result
        self.delay = delay
        self.seen: list[bytes | None] = []
        self.most = 1 << 20

    async def before(self, exchange: Exchange) -> Answer | bytes | None:
        await asyncio.sleep(self.delay)
        if isinstance(self.result, Exception):
            # a fresh one: an exception keeps what it has come through
            raise type(self.result)(*self.result.args)
        return self.result

    def wants(self, exchange: Exchange) -> int:
        return self.most

    def finished(self, exchange: Exchange, answer: bytes | None) -> None:
        self.seen.append(answer)


class TestSeams:
    async def test_a_step_that_answers_itself(self) -> None:
        async with running(TOKENS) as lab:
            lab.gateway.steps = (Marking(Answer(b'{"cached": true}', completion_tokens=3)),)
            answer = await lab.chat()
            assert (answer.status_code, answer.json()) == (200, {"cached": True})
            assert not lab.simulators["phi"].seen
            await lab.settled()
            assert tokens_used(lab) == 3

    async def test_a_step_that_changes_the_body_and_sees_the_answer(self, lab: Lab) -> None:
        step = Marking(json.dumps({"model": "phi", "messages": MESSAGES, "user": "changed"}).encode())
        lab.gateway.steps = (step,)
        answer = await lab.chat()
        assert lab.simulators["phi"].seen[-1].body["user"] == "changed"
        assert step.seen == [answer.content]

    async def test_it_sees_all_of_a_stream(self, lab: Lab) -> None:
        step = Marking()
        lab.gateway.steps = (step,)
        await lab.stream()
        await lab.settled()
        [seen] = step.seen
        assert seen is not None
        assert seen.endswith(b"data: [DONE]\n\n")
        assert seen.count(b"word ") == 5

    async def test_what_is_longer_than_it_wants_is_not_kept(self, lab: Lab) -> None:
        step = Marking()
        lab.gateway.steps = (step,)
        step.most = 100
        await lab.stream()
        await lab.chat()
        await lab.settled()
        assert step.seen == [None, None]

    async def test_it_is_told_of_what_failed_too(self, lab: Lab) -> None:
        step = Marking()
        lab.gateway.steps = (step,)
        lab.simulators["phi"].default = Act(status=400, body=b'{"error": {"message": "no"}}')
        assert (await lab.chat()).status_code == 400
        lab.simulators["phi"].default = Act(stop_after=2)
        await lab.stream()
        lab.simulators["phi"].default = Act(delay=30)
        async with lab.raw() as client:
            await client.post({"model": "phi", "messages": MESSAGES})
            await until(lambda: lab.simulators["phi"].running)
        await lab.settled()
        assert step.seen == [None, None, None]

    async def test_several_are_taken_in_their_order(self, lab: Lab) -> None:
        first = Marking(json.dumps({"model": "phi", "messages": MESSAGES, "user": "changed"}).encode())
        second, third = Marking(), Marking(Answer(b"{}"))
        lab.gateway.steps = (first, second)
        answer = await lab.chat()
        assert lab.simulators["phi"].seen[-1].body["user"] == "changed"
        assert first.seen == second.seen == [answer.content]
        lab.gateway.steps = (first, third, second)
        assert (await lab.chat()).json() == {}
        # the second was not asked, and the first learns that no model has answered
        assert (first.seen[1:], second.seen[1:], third.seen) == ([None], [], [])

    @pytest.mark.parametrize("step", [Marking(delay=5), Marking(RuntimeError("broken"))], ids=["late", "failed"])
    async def test_one_that_is_late_or_fails_is_passed_over(self, lab: Lab, step: Marking) -> None:
        lab.gateway.steps = (step,)
        assert (await lab.chat()).status_code == 200
        outcomes = [lab.metric("llm_steps_total", outcome=outcome) for outcome in ("late", "failed")]
        assert sum(outcomes) == 1

    async def test_a_sink_that_fails_costs_the_others_nothing(self, lab: Lab) -> None:
        taken: list[str] = []

        def broken(_: Any) -> None:
            raise RuntimeError("broken sink")

        lab.gateway.recorder.sinks.insert(0, broken)
        lab.gateway.recorder.sinks.append(lambda record: taken.append(record.exchange.id))
        answer = await lab.chat()
        await until(lambda: not lab.gateway.walk.running)
        assert taken == [answer.headers["x-request-id"]]
        assert len(lab.records()) == 1
