"""Prometheus as a deployment asks it after its commit, over real sockets. Nothing that it says makes this fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from citadel.watch import PATIENCE, Seen, Watched, watch


class Prometheus(BaseHTTPRequestHandler):
    """Both sides of a scrape on one port: the target's figures and what Prometheus says of it."""

    answers: list[Any]  # what it says of `up`, one after the other; the last one for good

    def do_GET(self) -> None:
        found = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        body = b"figure 1\n" if self.path.startswith("/metrics") else json.dumps(found).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def target(address: str, replica: str = "m") -> Watched:
    labels = {"citadel_host": "one", "model": "m", "replica": replica}
    return Watched.of({"job": "models", "address": address, "path": f"/metrics/{replica}", "labels": labels})


def entry(value: str, instance: str, replica: str = "m", host: str = "one") -> dict[str, Any]:
    labels = {"job": "models", "instance": instance, "citadel_host": host, "model": "m", "replica": replica}
    return {"metric": {**labels, "__name__": "up"}, "value": [0, value]}


def result(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"result": list(entries)}}


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


def seen(url: str, *targets: Watched) -> Seen:
    time = Time()
    return watch(url, targets, clock=lambda: time.now, pause=time.pause)


def test_it_waits_for_the_first_scrape(address: str) -> None:
    Prometheus.answers = [result(), result(entry("0", address)), result(entry("1", address))]
    found = seen(f"http://{address}", target(address))
    assert (found.found, found.missing) == (("m of one",), ())
    assert "1 of 1 targets as up" in found.said


def test_several_behind_one_address_are_told_apart(address: str) -> None:
    Prometheus.answers = [result(entry("1", address), entry("0", address, "m-2"))]
    found = seen(f"http://{address}", target(address), target(address, "m-2"))
    assert (found.found, found.missing) == (("m of one",), ("m-2 of one",))


def test_a_model_that_was_taken_out_has_to_go(address: str) -> None:
    both = result(entry("1", address), entry("1", address, "gone"), entry("1", address, "elsewhere", host="two"))
    Prometheus.answers = [both, result(entry("1", address))]
    assert not seen(f"http://{address}", target(address)).others
    Prometheus.answers = [both]
    found = seen(f"http://{address}", target(address))
    assert (found.others, found.missing) == (("gone of one",), ())
    assert "still asks for gone of one after" in found.said


def test_a_target_that_stays_down_is_named_with_what_this_host_finds(address: str) -> None:
    Prometheus.answers = [result(entry("0", address))]
    found = seen(f"http://{address}", target(address))
    assert found.missing == ("m of one",) and found.seconds > PATIENCE
    assert "does not report m of one as up after" in found.said and f"see http://{address}/targets" in found.said


def test_a_target_that_nobody_hears_is_told_as_such(address: str) -> None:
    Prometheus.answers = [result(entry("1", address))]
    found = seen(f"http://{address}", target(address), target("127.0.0.1:9"))
    assert (found.found, found.missing) == (("m of one",), ("m of one",))
    assert "http://127.0.0.1:9/metrics/m gives no answer" in found.said


def test_a_server_that_is_none(address: str) -> None:
    Prometheus.answers = [{"hello": "world"}]
    assert "does not answer as Prometheus does: the release is live" in seen(f"http://{address}", target(address)).said


def test_nobody_there() -> None:
    found = seen("http://127.0.0.1:9", target("127.0.0.1:9"))
    assert found.missing == ("m of one",) and "gives no answer" in found.said


def test_an_address_that_is_none() -> None:
    assert "gives no answer" in seen("nonsense", target("127.0.0.1:9")).said
