"""The core of tests/chaos/gateway again, with real vLLM behind the gateway.

After each case the engine generates for nobody, and the gateway has every permit back.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab import loopback
from tests.lab.clients import Client

MODEL, PORT = "phi-3-mini", 11403
UNIT = f"citadel-llm@{MODEL}.service"
# as long as its context takes, so that it is still running when something happens to it
LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me everything."}],
    "max_tokens": 1500,
    "ignore_eos": True,
}
SHORT = {**LONG, "max_tokens": 4, "ignore_eos": False}


def figure(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE)
    assert found, f"no {name} in the metrics"
    return float(found[1])


@pytest.fixture
def engine(llm: Host) -> Callable[[], float]:
    """How many requests the engine works on."""
    url = f"http://127.0.0.1:{PORT}/metrics"
    return lambda: figure(loopback.ask(llm, url)[1], "vllm:num_requests_running")


@pytest.fixture
def gateways(llm: Host) -> Callable[[str], float]:
    """A figure of the gateway for the model."""
    return lambda name: figure(
        "\n".join(
            line
            for line in loopback.ask(llm, "http://127.0.0.1:8080/metrics")[1].splitlines()
            if f'model="{MODEL}"' in line
        ),
        name,
    )


@pytest.fixture(autouse=True)
def all_comes_back(
    client: Client, engine: Callable[[], float], gateways: Callable[[str], float], eventually: Callable[..., None]
) -> Iterator[None]:
    # a test that is tried again may meet a model that it has ended itself
    eventually(lambda: client.ask(SHORT)[0], lambda status: status == 200, 90)
    yield
    assert client.ask(SHORT)[0] == 200  # waits for a model that is not back yet
    eventually(engine, lambda running: running == 0, 15)
    eventually(lambda: gateways("llm_active_requests"), lambda active: active == 0, 5)
    eventually(lambda: gateways("llm_queue_depth"), lambda depth: depth == 0, 5)


def begun(client: Client, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A stream whose first words have come."""
    connection = client.send({**body, "stream": True})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    assert answer.readline().startswith(b"data: ")
    return connection, answer


def leave(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse | None = None) -> None:
    if answer is not None:
        answer.close()
    connection.close()


def events(answer: http.client.HTTPResponse) -> list[str]:
    return [line.decode()[6:].strip() for line in answer if line.startswith(b"data: ")]


def test_a_client_that_leaves_in_mid_stream(
    client: Client, engine: Callable[[], float], eventually: Callable[..., None]
) -> None:
    connection, answer = begun(client, LONG)
    assert engine() == 1
    leave(connection, answer)
    eventually(engine, lambda running: running == 0, 3)


def test_a_client_that_leaves_before_its_answer(
    client: Client, engine: Callable[[], float], eventually: Callable[..., None]
) -> None:
    connection = client.send(LONG)
    eventually(engine, lambda running: running == 1, 5)
    leave(connection)
    eventually(engine, lambda running: running == 0, 3)


def test_a_storm_of_clients_that_leave(
    client: Client, engine: Callable[[], float], eventually: Callable[..., None]
) -> None:
    def visit(_: int) -> None:
        connection = client.send({**LONG, "stream": True})
        time.sleep(0.2)
        leave(connection)

    with ThreadPoolExecutor(16) as crowd:
        list(crowd.map(visit, range(64)))
    eventually(engine, lambda running: running == 0, 5)


def test_a_slow_reader_does_not_slow_the_others(client: Client) -> None:
    connection, answer = begun(client, {**LONG, "max_tokens": 400})
    assert client.ask(SHORT)[0] == 200
    time.sleep(2)  # what a slow reader does
    assert client.ask(SHORT)[0] == 200
    assert events(answer)[-1] == "[DONE]"
    leave(connection)


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": "hot"},
        {"temperature": -3},
        {"top_p": 7},
        {"max_tokens": 10**9},
        {"max_tokens": 0},
        {"n": 0},
        {"logprobs": True, "top_logprobs": 10**6},
        {"stop": 5},
        {"response_format": {"type": "riddle"}},
        {"tools": "hammer"},
        {"tool_choice": {"type": "function"}},
        {"messages": [{"role": "user", "content": {"text": 5}}]},
        {"messages": []},
        {"messages": [{"role": "user", "content": "word " * 4000}]},
        {"seed": "tree"},
        {"stream_options": {"include_usage": "maybe"}, "stream": True},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_what_the_engine_does_not_take_is_the_clients_error(client: Client, body: dict[str, Any]) -> None:
    status, answer = client.ask({**SHORT, **body})
    assert 400 <= status < 500, answer
    assert answer["error"]["message"] and answer["error"]["type"]


def test_a_model_that_is_stopped_ends_its_streams_whole(client: Client, llm: Host) -> None:
    connection, answer = begun(client, {**LONG, "max_tokens": 300})
    llm.run(f"systemctl restart --no-block {UNIT}")
    assert events(answer)[-1] == "[DONE]"
    leave(connection)
    # and who asks while it is away waits for it
    assert client.ask(SHORT)[0] == 200


def test_an_engine_that_dies_in_mid_stream_is_told_and_counted(
    client: Client, llm: Host, gateways: Callable[[str], float], eventually: Callable[..., None]
) -> None:
    before = gateways("llm_replica_restarts_total")
    connection, answer = begun(client, LONG)
    waiting: list[int] = []
    late = threading.Thread(target=lambda: waiting.append(client.ask(SHORT)[0]))
    pid = llm.check_output(f"systemctl show --property=MainPID --value {UNIT}")
    engine = llm.check_output(f"pgrep --parent {pid} --full EngineCore")
    llm.check_output(f"kill -KILL {engine}")
    told = events(answer)
    leave(connection)
    errors = [event for event in told if event.startswith('{"error"')]
    assert len(errors) == 1 and json.loads(errors[0])["error"]["message"], told[-3:]
    assert len(told) < LONG["max_tokens"]
    # who comes while it is away waits and is served; nobody has to know
    late.start()
    late.join()
    assert waiting == [200]
    eventually(lambda: gateways("llm_replica_restarts_total"), lambda seen: seen == before + 1, 60)
