"""The door of a model, against a real socket."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from citadel.release.gate import ManagementGate, control_socket
from citadel.release.transaction import Terms, activate
from tests.unit.release.world import World, release_files


class Server(socketserver.UnixStreamServer):
    asked: list[str]


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline().decode().rpartition(" ")[0])
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[Server]:
    files = {
        **release_files(alpha="a1"),
        "units/citadel-gateway-control.socket": "[Socket]\nListenStream=/run/control.sock\n",
    }
    activate(world.host(), world.stage(files).id, Terms("tester"))
    where = control_socket(world.layout)
    assert where == tmp_path / "run/control.sock"
    where.parent.mkdir()
    with Server(str(where), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def test_a_gateway_is_told_which_model_goes_and_comes(world: World, server: Server) -> None:
    gate = ManagementGate(world.layout)
    assert gate.shut("alpha") and gate.open("alpha")
    assert server.asked == [
        "POST /management/replicas/alpha/drain?wait=300",
        "POST /management/replicas/alpha/undrain",
    ]


def test_where_no_gateway_is_nobody_waits(world: World) -> None:
    gate = ManagementGate(world.layout)
    assert not gate.shut("alpha")
    activate(world.host(), world.stage(release_files(alpha="a1")).id, Terms("tester"))
    assert control_socket(world.layout) is None
    assert not gate.open("alpha")


def test_requests_wait_from_before_the_restart_until_the_proof(world: World) -> None:
    activate(world.host(), world.stage(release_files(alpha="a1")).id, Terms("tester"))
    seen = []
    world.systemd.before = lambda act: seen.append((act, bool(world.gate.closed))) if "alpha" in act else None
    activate(world.host(), world.stage(release_files(alpha="a2")).id, Terms("tester"))
    assert seen[:2] == [("restart citadel-llm@alpha.service", True), ("prove citadel-llm@alpha.service", True)]
    assert not world.gate.closed


def test_the_door_for_the_companion_is_not_taken_for_the_managements(world: World, tmp_path: Path) -> None:
    """One that does not know how to shut a model's door would let it be replaced under running requests."""
    sockets = {"inner": "/run/inner.sock", "management-socket": "/run/management.sock", "zone": "/run/zone.sock"}
    files = {
        f"units/citadel-gateway-{name}.socket": f"[Socket]\nListenStream={path}\nFileDescriptorName={kind}\n"
        for (name, path), kind in zip(sockets.items(), ("inner", "management_socket", "zone"), strict=True)
    }
    activate(world.host(), world.stage({**release_files(alpha="a1"), **files}).id, Terms("tester"))
    assert control_socket(world.layout) == tmp_path / "run/management.sock"
