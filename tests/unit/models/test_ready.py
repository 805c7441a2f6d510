"""Ready means: the unit lives, the name is right, and one answer came. A crash is told at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from citadel import ready
from citadel.ready import NotReady, Unit

LOADING = Unit("active", "running", 10, 0, "success")
DEAD = Unit("failed", "failed", 0, 0, "oom-kill")
BETWEEN = Unit("activating", "auto-restart", 0, 1, "exit-code")
AGAIN = Unit("active", "running", 11, 1, "success")


class Model(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.names = ["hermes-2"]
        self.tokens = 3
        self.open = True
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Model

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.server.open:
            self.say({"data": [{"id": name} for name in self.server.names]})
        else:
            self.send_error(503)

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.path.endswith("embeddings"):
            self.say({"data": [{"embedding": [0.1, 0.2]}]})
        else:
            choice = {"message": {"content": " Hermes says yes."}, "text": " Hermes says yes."}
            self.say({"choices": [choice], "usage": {"completion_tokens": self.server.tokens}})


@pytest.fixture
def model() -> Iterator[Model]:
    server = Model()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def states(*units: Unit, then: Callable[[], None] = lambda: None) -> Callable[[str], Unit]:
    """These one after the other, the last for ever; `then` happens when the last comes."""
    left = list(units)

    def look(unit: str) -> Unit:
        assert unit == "citadel-llm@hermes-2.service"
        if len(left) == 1:
            then()
            return left[0]
        return left.pop(0)

    return look


def wait(model: Model, look: Callable[[str], Unit], **more: Any) -> ready.Proof:
    more = {"timeout": 5.0, **more}
    return ready.wait(
        "hermes-2", model.url, "hermes-2", look=look, journal=lambda _: "the last words", interval=0.01, **more
    )


def test_the_answer_is_the_proof(model: Model) -> None:
    proof = wait(model, states(LOADING))
    assert (proof.model, proof.answer) == ("hermes-2", "Hermes says yes.")
    assert model.bodies[0]["temperature"] == 0


def test_an_embeddings_model_proves_a_vector(model: Model) -> None:
    assert wait(model, states(LOADING), kind="embeddings").answer == "a vector of 2"


def test_a_slow_load_gets_its_time(model: Model) -> None:
    model.open = False
    assert wait(model, states(*[LOADING] * 20, then=lambda: setattr(model, "open", True))).answer


@pytest.mark.parametrize("end", [DEAD, BETWEEN, AGAIN])
def test_a_crash_is_told_at_once_with_its_journal(model: Model, end: Unit) -> None:
    model.open = False
    began = time.monotonic()
    with pytest.raises(NotReady, match=r"(?s)citadel-llm@hermes-2\.service (is|died) .*the last words") as failure:
        wait(model, states(LOADING, LOADING, end), timeout=60.0)
    assert time.monotonic() - began < 5
    assert {DEAD: "oom-kill", BETWEEN: "auto-restart", AGAIN: "died and was started again"}[end] in str(failure.value)


def test_one_that_never_opens_is_not_waited_for_for_ever(model: Model) -> None:
    model.open = False
    with pytest.raises(NotReady, match="did not open"):
        wait(model, states(LOADING), timeout=0.1)


def test_another_process_on_the_port_is_not_taken_for_the_model(model: Model) -> None:
    model.names = ["phi-3-mini"]
    with pytest.raises(NotReady, match="serves phi-3-mini instead of hermes-2"):
        wait(model, states(LOADING))


def test_no_token_is_no_answer(model: Model) -> None:
    model.tokens = 0
    with pytest.raises(NotReady, match="without a single token"):
        wait(model, states(LOADING))
