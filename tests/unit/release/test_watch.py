"""Prometheus as a deployment asks it, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from citadel.release.failure import FailedError
from citadel.release.manifest import Manifest
from citadel.release.watch import FILE, PATIENCE, PrometheusWatch
from tests.unit.release.world import World, release_files


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


@pytest.fixture
def staged(world: World, address: str) -> Manifest:
    told = {"url": f"http://{address}", "targets": [address]}
    return world.stage({**release_files(alpha="a1"), FILE: json.dumps(told)})


class Time:
    now = 0.0

    def pause(self, seconds: float) -> None:
        self.now += seconds


def watching(world: World) -> PrometheusWatch:
    time = Time()
    return PrometheusWatch(world.layout, clock=lambda: time.now, pause=time.pause)


def test_it_waits_for_the_first_scrape(world: World, staged: Manifest, address: str) -> None:
    Prometheus.answers = [{"data": {"result": []}}, result("0", address), result("1", address)]
    (proof,) = watching(world).prove(staged)
    assert (proof["model"], proof["answer"]) == (address, "up")


def test_a_target_that_stays_down_is_named(world: World, staged: Manifest, address: str) -> None:
    Prometheus.answers = [result("0", address)]
    with pytest.raises(FailedError, match=rf"does not report {address} as up after {PATIENCE:.0f} s"):
        watching(world).prove(staged)


def test_a_prometheus_that_answers_is_no_objection(world: World, staged: Manifest, address: str) -> None:
    Prometheus.answers = [result("0", address)]
    assert watching(world).objections(staged) == []


def test_a_server_that_is_none_is_one(world: World, staged: Manifest) -> None:
    Prometheus.answers = [{"hello": "world"}]
    (objection,) = watching(world).objections(staged)
    assert "does not answer as Prometheus does" in objection and "metrics_servers" in objection


def test_nobody_there_is_one(world: World) -> None:
    told = {"url": "http://127.0.0.1:9", "targets": ["127.0.0.1:9"]}
    staged = world.stage({**release_files(alpha="a1"), FILE: json.dumps(told)})
    (objection,) = watching(world).objections(staged)
    assert "gives no answer" in objection


def test_a_release_that_nobody_watches_has_nothing_to_prove(world: World) -> None:
    staged = world.stage(release_files(alpha="a1"))
    assert not watching(world).objections(staged) and not watching(world).prove(staged)
