"""Proofs over real sockets: what counts as an answer, whose answer it is, and when waiting is over."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from citadel.release.failure import FailedError
from citadel.release.peer import family, server_of
from citadel.release.probe import Connection, StrangerError, WrongError, answer, await_proof, listed, own_answer
from citadel.release.services import Service
from citadel.release.systemd import UnitState
from citadel.release.trial import trial_unit
from tests.certificates import made
from tests.unit.release.world import World

GOOD = {"choices": [{"message": {"content": "hello"}}], "usage": {"completion_tokens": 2}}


class Server(ThreadingHTTPServer):
    status = 200
    body: bytes = json.dumps(GOOD).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def test_a_gateway_with_tls_is_asked_by_tls(server: Server, tmp_path: Path) -> None:
    pair = made(tmp_path, "host")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with Connection(server.server_port, tls=True) as connection:
        assert answer(connection, "alpha", "chat")["answer"] == "hello"


def ask(server: Server, status: int, body: object, task: str = "chat") -> dict[str, Any]:
    server.status = status
    server.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Connection(server.server_port) as connection:
        return answer(connection, "alpha", task)


def test_an_answer_is_text_made_of_tokens(server: Server) -> None:
    assert ask(server, 200, GOOD)["answer"] == "hello"
    vector = {"data": [{"embedding": [0.0, 0.5]}]}
    assert ask(server, 200, vector, "embeddings")["answer"] == "a vector of 2"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'"hello"',
        {},
        {"choices": []},
        {**GOOD, "choices": [{"message": {"content": "  "}}]},
        {**GOOD, "choices": [{"message": {"content": None}}]},
        {**GOOD, "usage": {"completion_tokens": 0}},
        {"choices": GOOD["choices"]},
    ],
)
def test_anything_else_is_wrong_at_once(server: Server, body: object) -> None:
    with pytest.raises(WrongError):
        ask(server, 200, body)


def test_a_vector_of_zeros_is_none(server: Server) -> None:
    with pytest.raises(WrongError):
        ask(server, 200, {"data": [{"embedding": [0.0, 0.0]}]}, "embeddings")


def test_refusals_are_told_apart(server: Server) -> None:
    error = {"error": {"message": "come again"}}
    for status, kind in ((401, StrangerError), (429, StrangerError), (400, WrongError), (503, FailedError)):
        with pytest.raises(FailedError, match=f"alpha: {status}, come again") as failure:
            ask(server, status, error)
        assert type(failure.value) is kind


def test_nobody_there_passes() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with Connection(port) as connection, pytest.raises(FailedError) as failure:
            listed(connection)
    assert type(failure.value) is FailedError


def test_waiting_ends_with_a_proof_a_death_a_wrong_answer_or_the_time(world: World) -> None:
    service = Service("citadel-llm@alpha.service", "model", "a1", timeout=10)
    now = 0.0

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds

    def wait(*results: object) -> Any:
        left = list(results)

        def prove() -> dict[str, Any]:
            result = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(result, Exception):
                raise result
            return {"proof": result}

        return await_proof(world.systemd, service, prove, clock=lambda: now, pause=pause)

    world.systemd.running[service.unit] = {}
    assert wait(FailedError("not yet"), FailedError("not yet"), 42) == {"proof": 42}
    with pytest.raises(FailedError, match=r"not proven after 10 s: not yet. Its last words: last words"):
        wait(FailedError("not yet"))
    begun = now
    with pytest.raises(FailedError, match="nonsense"):
        wait(WrongError("nonsense"))
    world.systemd.running.clear()
    with pytest.raises(FailedError, match=r"is inactive \(dead\)"):
        wait(42)
    assert now == begun, "it waited for what will not come"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (UnitState("failed", "failed", 0, 0, "oom-kill"), r"is failed \(failed\), result oom-kill"),
        (
            UnitState("activating", "auto-restart", 0, 1, "exit-code"),
            r"is activating \(auto-restart\), result exit-code",
        ),
        (UnitState("active", "running", 11, 1), "died and was started again"),
    ],
)
def test_a_crash_is_told_at_once_with_the_units_last_words(
    world: World, monkeypatch: pytest.MonkeyPatch, end: UnitState, said: str
) -> None:
    loading = UnitState("active", "running", 10)
    states = iter([loading, loading, loading])
    monkeypatch.setattr(world.systemd, "show", lambda unit: next(states, end))
    nobody = Service("citadel-llm@alpha.service", "model", "a1", "alpha", "alpha", 1, timeout=60)
    with pytest.raises(FailedError, match=rf"(?s)citadel-llm@alpha\.service {said}.*Its last words: last words"):
        await_proof(world.systemd, nobody, lambda: own_answer(nobody), pause=lambda seconds: None)


def test_a_model_answers_on_its_own_port_under_its_own_name(server: Server) -> None:
    model = Service("citadel-llm@alpha.service", "model", "a1", "alpha", "alpha", server.server_port)
    server.body = json.dumps({"data": [{"id": "alpha"}], **GOOD}).encode()
    assert own_answer(model)["answer"] == "hello"
    server.body = json.dumps({"data": [{"id": "beta"}]}).encode()
    with pytest.raises(WrongError, match=r"serves beta instead of alpha: another process has the port"):
        own_answer(model)


def test_the_kernel_knows_who_answers(server: Server) -> None:
    """Another process listens too; only the one that accepted counts, also when a child of it did."""
    with (
        Connection(server.server_port) as connection,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as other,
    ):
        listed_port = server.server_port
        connection.ask("/v1/models")
        assert server_of(connection.own_port, listed_port, {os.getpid()}) == os.getpid()
        assert server_of(connection.own_port, listed_port, {other.pid}) is None
        assert other.pid in family(os.getpid())
        other.kill()


def test_a_trial_shares_nothing_with_the_gateway_that_runs() -> None:
    template = (
        "[Unit]\nDescription=Gateway %i\n[Service]\nType=notify\nUser=agent0\n"
        "Sockets=a.socket b.socket\nRuntimeDirectory=citadel\nRestart=always\nRestartSec=1\n"
        "Environment=PYTHONPATH=/opt/citadel/releases/%i/gateway\n"
        "ExecStart=/x/python -m citadel_gateway serve --config /r/%i/config.yml\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    text = trial_unit(template, "0007-1a2b3c4d", 4711)
    assert "serve --config /r/0007-1a2b3c4d/config.yml --bind 127.0.0.1:4711\n" in text
    assert "User=agent0" in text and "Restart=no" in text
    for gone in ("%i", "Sockets", "RuntimeDirectory", "Restart=always", "RestartSec", "WantedBy"):
        assert gone not in text


class Recorded:
    """systemctl as it has answered."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.asked: list[list[str]] = []
        self._answers = list(answers)

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        status, said = self._answers.pop(0)
        return subprocess.CompletedProcess(command, status, said, said)


def test_systemd_that_re_executes_itself_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from citadel.release import systemd

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    lost = (1, "Reload daemon failed: Message recipient disconnected from message bus without replying")
    recorded = Recorded(lost, lost, (0, ""))
    monkeypatch.setattr(systemd, "_run", recorded)
    systemd.Systemctl().reload()
    assert len(recorded.asked) == 3
    monkeypatch.setattr(systemd, "_run", Recorded((1, "Unit x.service not found.")))
    with pytest.raises(FailedError, match=r"Unit x\.service not found"):
        systemd.Systemctl()._do("start", "x.service")
    monkeypatch.setattr(systemd, "_run", Recorded((5, "Failed to stop x.service: Unit x.service not loaded.")))
    systemd.Systemctl().stop("x.service", wait=True)


def test_a_process_environment_is_read_as_it_was_at_its_start(tmp_path: Path) -> None:
    from citadel.release.systemd import Systemctl

    (tmp_path / "7").mkdir()
    (tmp_path / "7/environ").write_bytes(b"CITADEL_DIGEST=abc\0PATH=/bin\0")
    found: Mapping[str, str] = Systemctl(tmp_path).environment(7)
    assert found["CITADEL_DIGEST"] == "abc"
    assert Systemctl(tmp_path).environment(8) == {} and Systemctl(tmp_path).environment(0) == {}


def test_a_unit_between_two_starts_has_given_up() -> None:
    assert UnitState("activating", "auto-restart", 0).given_up
    assert not UnitState("activating", "start", 12).given_up
    assert not UnitState("deactivating", "stop-sigterm", 12).running
