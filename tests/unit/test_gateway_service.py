"""The gateway's face: when it is ready, when it fails, and what a stop waits for."""

from __future__ import annotations

import socket
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from citadel.gateway_service import ABSENT, Face, Gateway, Repeater, entry, gateways, sentence

OLD = Gateway("citadel-gateway@0001-00000000.service", "active", 7, part=True)
NEW = Gateway("citadel-gateway@0002-00000000.service", "active", 8, part=True)


class Host:
    """What is looked at, one sight after the other; the last one for good. Told to stop after so many pauses."""

    def __init__(self, *sights: list[Gateway], stop: int = 10**6) -> None:
        self._sights = list(sights)
        self._left = stop
        self.now = 0.0
        self.said: list[str] = []

    def look(self) -> list[Gateway]:
        return self._sights.pop(0) if len(self._sights) > 1 else self._sights[0]

    def pause(self, seconds: float) -> bool:
        self.now += seconds
        self._left -= 1
        return self._left <= 0

    def run(self) -> int:
        return Face(self.look, lambda: "healthy", self.said.append, lambda: self.now, self.pause).run()


def state(gateway: Gateway, active: str, pid: int = 0) -> Gateway:
    return Gateway(gateway.unit, active, pid or gateway.pid, gateway.part)


def test_it_is_ready_when_the_gateway_is() -> None:
    host = Host([state(NEW, "activating")], [state(NEW, "activating")], [NEW], [], stop=4)
    assert host.run() == 0
    assert host.said[0] == "STATUS=release 0002-00000000 is starting"
    assert host.said[1] == "READY=1\nSTATUS=release 0002-00000000 serves, process 8, health: healthy"


def test_it_fails_where_no_gateway_runs() -> None:
    host = Host([NEW], [])
    assert host.run() == 1
    assert ABSENT < host.now < ABSENT + 5


def test_a_gateway_that_starts_again_is_waited_for() -> None:
    host = Host([NEW], [], *([state(NEW, "activating")] for _ in range(100)), [NEW], [], stop=103)
    assert host.run() == 0


def test_a_stop_waits_for_the_gateway_that_ran_and_for_no_other() -> None:
    host = Host([OLD], [state(OLD, "deactivating")], [state(OLD, "deactivating")], [state(OLD, "active", 9)], stop=1)
    assert host.run() == 0
    assert host.said[-1].startswith("STOPPING=1")
    foreign = Gateway(OLD.unit, "active", 7, part=False)
    assert Host([foreign], stop=1).run() == 0, "it would never end"


def test_the_newest_that_serves_is_named_and_the_one_that_drains_too() -> None:
    text = sentence([state(OLD, "deactivating"), NEW], "degraded")
    assert text == "release 0002-00000000 serves, process 8, health: degraded; 0001-00000000 ends its last requests"


def test_systemctl_is_read_in_blocks() -> None:
    shown = (
        "Id=a@1.service\nActiveState=active\nMainPID=7\nPartOf=citadel-gateway.service x.target\n\nId=b\nMainPID=0\n"
    )
    found = gateways(lambda *_, **__: CompletedProcess([], 0, shown, ""))
    assert found == [Gateway("a@1.service", "active", 7, True), Gateway("b", "", 0, False)]


def test_a_line_of_the_journal_as_one_of_ours() -> None:
    made = entry('{"MESSAGE": "two\\nlines", "PRIORITY": "4"}', ["other.service"])
    assert made.startswith(b"MESSAGE\n" + (9).to_bytes(8, "little") + b"two\nlines\n")
    assert b"\nPRIORITY=4\n" in made and made.endswith(b"OBJECT_SYSTEMD_UNIT=other.service\n")
    raw = entry('{"MESSAGE": [104, 105, 255], "PRIORITY": "6"}', [])
    assert b"hi\xff" in raw


def test_each_line_is_repeated_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    journal = tmp_path / "socket"
    monkeypatch.setattr("citadel.gateway_service.JOURNAL", str(journal))
    lines = [b'{"MESSAGE": "one", "__CURSOR": "c1"}\n{"MESSAGE": "two", "__CURSOR": "c2"}\n', b""]
    asked: list[list[str]] = []

    def journalctl(command: list[str], **_: object) -> CompletedProcess[bytes]:
        asked.append(command)
        return CompletedProcess(command, 0, lines.pop(0), b"")

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(journal))
        repeater = Repeater(["other.service"], journalctl)
        repeater.tend()
        repeater.tend()
        heard.setblocking(False)
        assert [b"one" in heard.recv(4096), b"two" in heard.recv(4096)] == [True, True]
    assert asked[0][-1].startswith("--since=@") and asked[1][-1] == "--after-cursor=c2"
