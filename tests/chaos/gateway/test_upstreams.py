"""Model servers that refuse, reset, stall, lie and die."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.harness import MESSAGES, Lab, code_of, running, text_of
from tests.gateway.simulator import ENGINE_DEAD, Act, until

pytestmark = pytest.mark.anyio

REPLICA = {"retry": {"attempts": 3, "backoff": 0.005}}


def failures(lab: Lab, kind: str, replica: str = "phi") -> float:
    return lab.metric("llm_upstream_errors_total", model="phi", replica=replica, kind=kind)


class TestBeforeTheFirstByte:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_refused_connection_waits_for_the_model(self, lab: Lab, stream: bool) -> None:
        simulator = lab.simulators["phi"]
        await simulator.stop()
        waiting = asyncio.create_task(lab.chat(stream=stream))
        await until(lambda: lab.gateway.admission.waiting == 1)
        replica = next(lab.gateway.fleet.replicas())
        assert replica.state == "loading"
        assert (await lab.client.get("/health")).status_code == 503
        await simulator.start()
        started = time.monotonic()
        answer = await waiting
        assert answer.status_code == 200
        assert time.monotonic() - started < 0.5  # somebody waited, so it was noticed at once
        assert replica.breaker.state == "closed"
        assert float(answer.headers["x-citadel-queue-ms"]) > 0
        await lab.settled()

    async def test_a_model_that_stops_gets_no_more_requests_and_those_wait(self, lab: Lab) -> None:
        """Until its streams have ended it says that it is healthy, and answers everybody else with an error."""
        simulator = lab.simulators["phi"]
        stopping = {"error": {"message": "cannot schedule new futures after shutdown", "code": 500}}
        simulator.script.append(Act(status=500, body=json.dumps(stopping).encode()))
        waiting = asyncio.create_task(lab.chat())
        await until(lambda: lab.gateway.admission.waiting == 1)
        probes = simulator.probes
        await until(lambda: simulator.probes > probes + 2)
        assert not waiting.done()
        replica = next(lab.gateway.fleet.replicas())
        assert (replica.state, replica.breaker.state) == ("loading", "closed")
        await simulator.stop()
        await simulator.start()
        assert (await waiting).status_code == 200
        await lab.settled()

    async def test_it_waits_until_the_deadline_and_then_says_when_to_come_again(self, lab: Lab) -> None:
        await lab.simulators["phi"].stop()
        started = time.monotonic()
        answer = await lab.chat(headers={"x-stainless-read-timeout": "0.4"})
        assert 0.3 < time.monotonic() - started < 1.5
        assert (answer.status_code, code_of(answer)) == (503, "model_not_ready")
        assert 1 <= int(answer.headers["retry-after"]) <= 5  # what is left of its load time
        assert answer.headers["x-should-retry"] == "true"
        await lab.settled()

    async def test_the_time_to_come_again_is_the_measured_one(self, tmp_path: Path) -> None:
        measured = tmp_path / "load-seconds.json"
        async with running({"health": {"load_times": str(measured)}}) as lab:
            measured.write_text('{"phi": 31.4}')
            await lab.simulators["phi"].stop()
            answer = await lab.chat(headers={"x-stainless-read-timeout": "0.4"})
            assert (answer.status_code, code_of(answer)) == (503, "model_not_ready")
            assert 29 <= int(answer.headers["retry-after"]) <= 32
            await lab.settled()

    async def test_hold_bounds_the_wait(self) -> None:
        async with running(models={"phi": {"hold": 0.2}}) as lab:
            await lab.simulators["phi"].stop()
            assert (await asyncio.wait_for(lab.chat(), 2.0)).status_code == 503
            await lab.settled()

    async def test_a_model_that_stays_away_is_refused_at_once(self) -> None:
        async with running(models={"phi": {"load_seconds": 0.1}}) as lab:
            await lab.simulators["phi"].stop()
            replica = next(lab.gateway.fleet.replicas())
            replica.poke.set()
            await until(lambda: replica.state == "failed")
            started = time.monotonic()
            answer = await lab.chat()
            assert time.monotonic() - started < 0.3
            assert code_of(answer) == "model_not_ready"

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("act", "kind"),
        [
            (Act(reset=True), "reset"),
            (Act(raw=b"I am not HTTP\r\n\r\n"), "protocol"),
            (Act(raw=b""), "reset"),
            (Act(status=500, body=b"oops"), "status_5xx"),
            (Act(status=503, body=b"{}"), "status_5xx"),
            (Act(status=429, body=b'{"error":{"message":"full"}}'), "saturated"),
        ],
        ids=["reset", "garbage", "close", "500", "503", "429"],
    )
    async def test_another_replica_answers_instead(self, act: Act, kind: str, stream: bool) -> None:
        async with running(replicas=2) as lab:
            lab.simulators["phi-1"].default = act
            answers = [await lab.chat(stream=stream) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200] * 4
            assert all(answer.headers["x-citadel-replica"] == "phi-2" for answer in answers)
            assert failures(lab, kind, "phi-1") >= 1
            await lab.settled()

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_single_replica_is_tried_again(self, lab: Lab, stream: bool) -> None:
        rubbish = Act(raw=b"I am not HTTP\r\n\r\n")
        lab.simulators["phi"].script.extend([rubbish, rubbish])
        answer = await lab.chat(stream=stream)
        assert answer.status_code == 200
        assert len(lab.simulators["phi"].seen) == 3
        await lab.settled()
        assert lab.records()[0]["retries"] == 2

    @pytest.mark.parametrize(
        ("act", "status", "code", "calls"),
        [
            (Act(reset=True), 503, "upstream_failed", 1),  # it may have been the request: not again
            (Act(status=500), 503, "upstream_error", 3),  # two, and the question whether it answers anybody
            (Act(status=429), 429, "upstream_saturated", 3),
            (Act(raw=b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000), 503, "upstream_failed", 1),
        ],
    )
    async def test_after_the_last_try_the_client_is_told(
        self, lab: Lab, act: Act, status: int, code: str, calls: int
    ) -> None:
        lab.simulators["phi"].default = act
        answer = await lab.chat()
        assert (answer.status_code, code_of(answer)) == (status, code)
        assert answer.headers["x-should-retry"] == "true"
        assert len(lab.simulators["phi"].seen) == calls
        await lab.settled()

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_stall_ends_with_the_models_timeout(self, stream: bool) -> None:
        async with running(models={"phi": {"timeout": 0.3}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(delay=30)
            answer = await lab.chat(stream=stream)
            assert (answer.status_code, code_of(answer)) == (504, "upstream_timeout")
            await until(lambda: simulator.seen[0].state == "aborted", 1.0)
            assert len(simulator.seen) == 1
            await lab.settled()

    async def test_the_clients_own_timeout_ends_it_too(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(delay=30)
        answer = await lab.chat(headers={"x-request-timeout": "0.3"})
        assert answer.status_code == 504
        await until(lambda: simulator.seen[0].state == "aborted", 1.0)
        await lab.settled()

    @pytest.mark.parametrize("then", ["reset", "close"])
    async def test_half_an_answer_is_never_shown(self, then: str) -> None:
        async with running(replicas=2) as lab:
            for simulator in lab.simulators.values():
                simulator.default = Act(stop_after=1, then=then)
            lab.simulators["phi-2"].default = Act()
            answers = [await lab.chat() for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200] * 3
            assert all(answer.json()["choices"] for answer in answers)
            assert failures(lab, "reset", "phi-1") >= 1
            await lab.settled()

    async def test_an_answer_that_is_too_large(self) -> None:
        async with running({"server": {"max_response_bytes": 1000}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(tokens=100_000)
            answer = await lab.chat()
            assert (answer.status_code, code_of(answer)) == (503, "answer_too_large")
            await lab.settled()

    async def test_a_connection_that_the_server_closed_while_idle(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        for _ in range(5):
            assert (await lab.chat()).status_code == 200
            for writer in list(simulator.connections):
                writer.close()
        assert failures(lab, "reset") == 0

    async def test_a_connection_that_the_server_closes_just_as_it_is_used(self, lab: Lab) -> None:
        """Nothing was answered on a connection that had idled: that is no failure, and nobody is blamed."""
        simulator = lab.simulators["phi"]
        assert (await lab.chat()).status_code == 200
        simulator.script.append(Act(raw=b""))
        assert (await lab.chat()).status_code == 200
        assert len(simulator.seen) == 3
        assert failures(lab, "reset") == 0
        assert lab.metric("llm_retries_total", model="phi") == 0
        await lab.settled()


class TestInMidStream:
    @pytest.mark.parametrize(
        ("then", "code"),
        [
            ("reset", "upstream_failed"),
            ("close", "upstream_failed"),
            ("no_done", "upstream_failed"),
            ("half_event", "upstream_failed"),
            ("garbage", "upstream_failed"),
            ("stall", "upstream_timeout"),
        ],
    )
    async def test_the_client_is_told_in_the_stream_and_nothing_is_repeated(self, then: str, code: str) -> None:
        async with running(models={"phi": {"timeout": 0.5}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(tokens=10, stop_after=4, then=then, gap=0.005)
            stream = await lab.stream()
            assert text_of(stream) == "word " * 3
            assert stream[-1]["error"]["code"] == code
            assert "[DONE]" not in stream
            assert len(simulator.seen) == 1
            await lab.settled()
            assert simulator.running == 0
            status = "504" if then == "stall" else "503"
            assert (
                lab.metric("llm_requests_total", model="phi", endpoint="chat_completions", status="error", code=status)
                == 1
            )
            assert lab.records()[0]["status"] == 200

    async def test_an_error_event_of_the_engine_goes_through_and_counts(self, lab: Lab) -> None:
        lab.simulators["phi"].default = Act(tokens=10, stop_after=4, then="error_event")
        stream = await lab.stream()
        assert stream[-2]["error"]["message"] == "engine died"
        await lab.settled()
        assert failures(lab, "engine_died") == 0
        assert (
            lab.metric("llm_requests_total", model="phi", endpoint="chat_completions", status="error", code="503") == 1
        )

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    async def test_characters_split_between_pieces(self, lab: Lab, size: int) -> None:
        lab.simulators["phi"].default = Act(tokens=8, text="日本😀é ", split=size)
        async with lab.client.stream(
            "POST", "/v1/chat/completions", json={"messages": MESSAGES, "stream": True}
        ) as got:
            pieces = [piece async for piece in got.aiter_raw()]
        for piece in pieces:
            piece.decode()  # every piece is whole characters, since it is whole events
        content = b"".join(pieces).decode()
        texts = [json.loads(line[6:]) for line in content.split("\n\n") if line.startswith("data: {")]
        assert text_of(texts) == "日本😀é " * 8
        await lab.settled()

    async def test_texts_that_look_like_the_protocol(self, lab: Lab) -> None:
        text = '\n\ndata: [DONE]\n\n"usage":{"prompt_tokens":99} data: {"error"'
        lab.simulators["phi"].default = Act(tokens=3, text=text)
        stream = await lab.stream()
        assert text_of(stream) == text * 3
        await lab.settled()
        assert (lab.records()[0]["outcome"], lab.records()[0]["prompt_tokens"]) == (200, 7)

    async def test_a_server_without_usage_is_counted_by_its_events(self, lab: Lab) -> None:
        lab.simulators["phi"].default = Act(tokens=9, usage=False)
        await lab.stream()
        await lab.settled()
        (record,) = lab.records()
        assert not record["usage_exact"]
        assert 9 <= record["completion_tokens"] <= 10


def refused_at_once(**error: Any) -> Act:
    """A stream that begins with an error, and ends in the same packet."""
    return Act(stop_after=0, then="error_event", body=json.dumps({"error": error}).encode())


class TestAStreamThatBeginsWithAnError:
    """vLLM has said 200 by then; the client has been promised nothing."""

    @pytest.mark.parametrize("status", [400, 404, 422])
    async def test_a_fault_of_the_client_has_its_status(self, lab: Lab, status: int) -> None:
        act = refused_at_once(message="bad tool", type="BadRequestError", param="tools", code=status)
        lab.simulators["phi"].default = act
        answer = await lab.chat(stream=True)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-should-retry"] == "false"
        error = answer.json()["error"]
        assert (error["message"], error["param"]) == ("bad tool", "tools")
        await lab.settled()
        (record,) = lab.records()
        assert (record["status"], record["charged_tokens"]) == (status, 0)
        assert next(lab.gateway.fleet.replicas()).breaker.state == "closed"

    @pytest.mark.parametrize("code", [500, 503, None, "none", 200])
    async def test_a_fault_of_the_replica_is_tried_elsewhere(self, code: Any) -> None:
        async with running(replicas=2) as lab:
            lab.simulators["phi-1"].default = refused_at_once(message="no", code=code)
            for _ in range(4):
                assert (await lab.stream())[-1] == "[DONE]"
            assert failures(lab, "status_5xx", "phi-1") >= 1
            await lab.settled()

    async def test_a_dead_engine_is_one(self) -> None:
        async with running(replicas=2) as lab:
            lab.simulators["phi-1"].default = refused_at_once(message=ENGINE_DEAD, code=500)
            answers = [await lab.chat(stream=True) for _ in range(4)]
            assert {answer.status_code for answer in answers} == {200}
            assert failures(lab, "engine_died", "phi-1") >= 1

    async def test_a_message_that_only_speaks_of_the_engine_is_none(self, lab: Lab) -> None:
        body = json.dumps({"error": {"message": f"no tool {ENGINE_DEAD!r}", "code": 500}}).encode()
        for act in (Act(status=500, body=body), Act(stop_after=0, then="error_event", body=body)):
            lab.simulators["phi"].rules = [(lambda body: "messages" in body, act)]
            answer = await lab.chat(stream=True)
            assert (answer.status_code, code_of(answer)) == (422, "request_fails_on_model")
        assert failures(lab, "engine_died") == 0


class TestErrorsOfTheClient:
    async def test_they_go_through_in_openais_shape(self, lab: Lab) -> None:
        error = {"error": {"message": "bad tool", "type": "BadRequestError", "param": "tools", "code": 400}}
        lab.simulators["phi"].default = Act(status=400, body=json.dumps(error).encode())
        answer = await lab.chat()
        assert answer.status_code == 400
        assert answer.json()["error"] == {
            "message": "bad tool",
            "type": "invalid_request_error",
            "param": "tools",
            "code": "invalid_request_error",
        }
        await lab.settled()

    async def test_too_long_for_the_context_has_its_own_code(self, lab: Lab) -> None:
        error = {"error": {"message": "This model's maximum context length is 4096 tokens.", "code": 400}}
        lab.simulators["phi"].default = Act(status=400, body=json.dumps(error).encode())
        assert code_of(await lab.chat(stream=True)) == "context_length_exceeded"

    async def test_they_never_open_the_breaker(self, lab: Lab) -> None:
        lab.simulators["phi"].default = Act(status=400, body=b"{}")
        for _ in range(30):
            await lab.chat()
        assert next(lab.gateway.fleet.replicas()).breaker.state == "closed"
        lab.simulators["phi"].default = Act()
        assert (await lab.chat()).status_code == 200

    async def test_nor_do_clients_that_leave(self, lab: Lab) -> None:
        lab.simulators["phi"].default = Act(delay=5)
        for _ in range(10):
            with pytest.raises(httpx.ReadTimeout):
                await lab.client.post("/v1/chat/completions", json={"messages": MESSAGES}, timeout=0.05)
        await lab.settled()
        assert next(lab.gateway.fleet.replicas()).breaker.state == "closed"


async def two_clients_fail(lab: Lab) -> None:
    """As often as the breaker asks for before it has its doubts."""
    keys = [lab.key()[1] for _ in range(2)]
    for _ in range(2):
        for headers in keys:
            await lab.chat(headers=headers)


class TestBreaker:
    async def test_it_opens_half_opens_and_closes(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        replica = next(lab.gateway.fleet.replicas())
        simulator.default = Act(status=500)
        await two_clients_fail(lab)
        await until(lambda: replica.breaker.state == "open")
        assert (await lab.client.get("/health")).status_code == 503
        before = len(simulator.seen)
        answer = await asyncio.wait_for(lab.chat(), 0.3)
        assert code_of(answer) == "circuit_open"
        assert float(answer.headers["retry-after-ms"]) <= 400
        assert len(simulator.seen) == before
        # one failure while half open is enough to open it again
        await until(lambda: replica.breaker.opens_in() == 0)
        await lab.chat(headers={"x-request-timeout": "0.1"})
        await until(lambda: replica.breaker.state == "open")
        simulator.default = Act()
        await until(lambda: replica.breaker.opens_in() == 0)
        states = []
        for _ in range(2):
            assert (await lab.chat()).status_code == 200
            states.append(str(replica.breaker.state))
        assert states == ["half_open", "closed"]
        await lab.settled()

    async def test_who_waits_already_goes_on_when_trial_calls_are_allowed(self) -> None:
        async with running(models={"phi": {"concurrency": 1}}) as lab:
            simulator = lab.simulators["phi"]
            replica = next(lab.gateway.fleet.replicas())
            replica.breaker.failure("one")
            replica.breaker.failure("two")
            simulator.gate.clear()
            asking = asyncio.gather(*(lab.chat() for _ in range(3)))
            await until(lambda: lab.gateway.admission.waiting == 2)
            replica.breaker.suspect = True
            assert replica.breaker.convict()
            lab.gateway._opened(replica)
            simulator.gate.set()
            assert [answer.status_code for answer in await asking] == [200] * 3
            await lab.settled()

    async def test_a_new_process_starts_with_a_clean_sheet(self) -> None:
        async with running({"breaker": {"recovery": 60.0}}) as lab:
            simulator = lab.simulators["phi"]
            replica = next(lab.gateway.fleet.replicas())
            simulator.default = Act(status=500)
            await two_clients_fail(lab)
            await until(lambda: replica.breaker.state == "open")
            await simulator.stop()
            await until(lambda: replica.state == "loading")
            simulator.default = Act()
            await simulator.start()
            assert (await asyncio.wait_for(lab.chat(), 5)).status_code == 200
            await lab.settled()


class TestReplicas:
    async def test_one_dies_under_load(self) -> None:
        async with running(REPLICA, replicas=2) as lab:
            for simulator in lab.simulators.values():
                simulator.default = Act(tokens=10, gap=0.01)
            waiting = [asyncio.create_task(lab.chat()) for _ in range(40)]
            await until(lambda: lab.simulators["phi-1"].running > 5)
            await lab.simulators["phi-1"].stop(abruptly=True)
            answers = await asyncio.gather(*waiting)
            assert [answer.status_code for answer in answers] == [200] * 40
            await lab.settled()
            assert (await lab.client.get("/health")).json()["status"] == "healthy"

    async def test_a_restart_under_load_costs_nobody_an_answer(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(tokens=2, gap=0.005)
        statuses: list[int] = []
        stop = asyncio.Event()

        async def user() -> None:
            while not stop.is_set():
                statuses.append((await lab.chat()).status_code)

        users = [asyncio.create_task(user()) for _ in range(10)]
        await until(lambda: len(statuses) > 30)
        async with httpx.AsyncClient(transport=_unix(lab), base_url="http://x") as admin:
            drained = await admin.post("/management/replicas/phi/drain?wait=5")
            assert drained.json()["idle"] is True
            await simulator.stop()
            await admin.post("/management/replicas/phi/undrain")
            await until(lambda: lab.gateway.admission.waiting == 10)
            await simulator.start()
        done = len(statuses)
        await until(lambda: len(statuses) > done + 30)
        stop.set()
        await asyncio.gather(*users)
        assert set(statuses) == {200}
        await lab.settled()

    async def test_a_stalled_engine_is_failed_though_its_health_is_good(self) -> None:
        async with running({"health": {"stalled_after": 0.5}}) as lab:
            simulator = lab.simulators["phi"]
            replica = next(lab.gateway.fleet.replicas())
            simulator.metric_running = 3
            await until(lambda: replica.state == "failed")
            assert "made no token" in replica.reason
            simulator.metric_running = None
            await until(lambda: replica.state == "ready")

    async def test_a_server_of_another_model_is_not_used(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        await simulator.stop()
        await lab.chat(headers={"x-request-timeout": "0.1"})
        simulator.model = "something-else"
        await simulator.start()
        replica = next(lab.gateway.fleet.replicas())
        await until(lambda: replica.state == "failed")
        assert "something-else" in replica.reason

    async def test_out_after_three_bad_probes_and_back_after_two_good_ones(self) -> None:
        async with running({"health": {"interval": 60.0, "down_interval": 60.0}}) as lab:
            simulator = lab.simulators["phi"]
            replica = next(lab.gateway.fleet.replicas())
            prober: Any = lab.gateway.prober
            simulator.health_status = 500
            states = []
            for _ in range(3):
                await prober.probe(replica)
                states.append(replica.state)
            assert states == ["ready", "ready", "failed"]
            simulator.health_status = 200
            await prober.probe(replica)
            assert replica.state == "failed"
            await prober.probe(replica)
            assert str(replica.state) == "ready"

    async def test_a_hanging_health_check_counts_as_bad(self) -> None:
        async with running({"health": {"timeout": 0.1, "interval": 0.05}}) as lab:
            lab.simulators["phi"].health_delay = 5.0
            await until(lambda: next(lab.gateway.fleet.replicas()).state == "failed")


def _unix(lab: Lab) -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(uds=str(lab.process.ports["management_socket"]))


async def test_what_a_dying_engines_server_says_of_its_health_is_no_news() -> None:
    """It answers 503 until it ends, a moment later; whoever comes meanwhile waits for the next one."""
    async with running() as lab:
        replica = lab.gateway.fleet.models["phi"].replicas[0]
        lab.simulators["phi"].health_status = 503
        replica.dies()
        assert lab.gateway.prober is not None
        for _ in range(3):
            await lab.gateway.prober.probe(replica)
        states: list[str] = [replica.state]
        replica.leaving_until = 0.0
        await lab.gateway.prober.probe(replica)
        states.append(replica.state)
        assert states == ["loading", "failed"]
