"""Prometheus as a deployment asks it after its commit, over real sockets. Nothing that it says makes this fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from citadel.watch import PATIENCE, Seen, watch


class Prometheus(BaseHTTPRequestHandler):
    """Both sides of a scrape on one port: the target's figures and what Prometheus says of it."""

    answers: list[Any]  # what it says of `up`, one after the other; the last one for good

    def do_GET(self) -> None:
        found = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        body = b"figure 1\n" if self.path == "/metrics" else json.dumps(found).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def result(value: str, instance: str) -> dict[str, Any]:
    return {"data": {"result": [{"metric": {"instance": instance}, "value": [0, value]}]}}


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prometheus)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class Time:
    now = 0.0

    def pause(self, seconds: float) -> None:
        self.now += seconds


def seen(url: str, *targets: str) -> Seen:
    time = Time()
    return watch(url, targets, clock=lambda: time.now, pause=time.pause)


def test_it_waits_for_the_first_scrape(address: str) -> None:
    Prometheus.answers = [{"data": {"result": []}}, result("0", address), result("1", address)]
    found = seen(f"http://{address}", address)
    assert (found.found, found.missing) == ((address,), ())
    assert "1 of 1 targets as up" in found.said


def test_a_target_that_stays_down_is_named_with_what_this_host_finds(address: str) -> None:
    Prometheus.answers = [result("0", address)]
    found = seen(f"http://{address}", address)
    assert found.missing == (address,) and found.seconds > PATIENCE
    assert f"does not report {address} as up after" in found.said and f"see http://{address}/targets" in found.said


def test_a_target_that_nobody_hears_is_told_as_such(address: str) -> None:
    Prometheus.answers = [result("1", address)]
    found = seen(f"http://{address}", address, "127.0.0.1:9")
    assert (found.found, found.missing) == ((address,), ("127.0.0.1:9",))
    assert "http://127.0.0.1:9/metrics gives no answer" in found.said


def test_a_server_that_is_none(address: str) -> None:
    Prometheus.answers = [{"hello": "world"}]
    assert "does not answer as Prometheus does: the release is live" in seen(f"http://{address}", address).said


def test_nobody_there() -> None:
    found = seen("http://127.0.0.1:9", "127.0.0.1:9")
    assert found.missing == ("127.0.0.1:9",) and "gives no answer" in found.said


def test_an_address_that_is_none() -> None:
    assert "gives no answer" in seen("nonsense", "127.0.0.1:9").said
