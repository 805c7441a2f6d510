"""The gateway under the name that people know: `citadel-gateway.service`, whichever release's gateway runs.

It is ready when a gateway is, ends when it is stopped and the last request has ended, and fails where no gateway
runs. Its status line says what serves, and its journal is the gateways' journal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PATTERN = "citadel-gateway@*.service"
IDENTIFIER = "citadel-gateway"  # of the gateways' lines in the journal; those of this program have another
JOURNAL = "/run/systemd/journal/socket"
LOOK, HURRY = 2.0, 0.2  # seconds between two looks, and while something starts or stops
ABSENT = 5.0  # seconds without any gateway until that is a failure: a replacement has none for a moment
HEALTH = 10.0  # seconds between two questions after its health

_PRESENT = {"active", "activating", "reloading", "deactivating"}


@dataclass(frozen=True)
class Gateway:
    unit: str
    active: str
    pid: int
    part: bool  # does it stop with the face? those of early releases do not

    @property
    def release(self) -> str:
        return self.unit.partition("@")[2].removesuffix(".service")


def gateways(run: Callable[..., Any] = subprocess.run) -> list[Gateway]:
    keys = "Id,ActiveState,MainPID,PartOf"
    shown = run(["systemctl", "show", f"--property={keys}", PATTERN], capture_output=True, text=True, check=False)
    found = []
    for block in re.split(r"\n\s*\n", shown.stdout):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("Id"):
            part = IDENTIFIER + ".service" in values.get("PartOf", "").split()
            found.append(Gateway(values["Id"], values.get("ActiveState", ""), int(values.get("MainPID") or 0), part))
    return found


def sentence(found: Sequence[Gateway], health: str) -> str:
    """The line in `systemctl status`."""
    serving = [one for one in found if one.active in {"active", "reloading"}]
    if not serving:
        coming = [one.release for one in found if one.active == "activating"]
        return f"release {coming[0]} is starting" if coming else "no gateway runs"
    newest = max(serving, key=lambda one: int(one.release.partition("-")[0] or 0))
    text = f"release {newest.release} serves, process {newest.pid}, health: {health or 'not asked yet'}"
    draining = [one.release for one in found if one.active == "deactivating"]
    return text + (f"; {', '.join(draining)} ends its last requests" if draining else "")


def health_of(url: str) -> str:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as answer:
            return str(json.load(answer).get("status", "unknown"))
    except urllib.error.HTTPError as error:
        with contextlib.suppress(ValueError, OSError, AttributeError):
            return str(json.load(error).get("status", error.code))
        return str(error.code)
    except (OSError, ValueError, AttributeError) as error:
        return f"no answer ({error})"


def notify(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def entry(line: str | bytes, names: Sequence[str]) -> bytes:
    """A line of the gateways' journal as one of ours; `journalctl -u` finds it under the other names too."""
    told = json.loads(line)
    message = told.get("MESSAGE") or ""
    text = bytes(message) if isinstance(message, list) else str(message).encode()
    fields = [b"MESSAGE\n" + len(text).to_bytes(8, "little") + text]
    fields += [f"PRIORITY={told.get('PRIORITY', 6)}".encode(), b"SYSLOG_IDENTIFIER=citadel-face"]
    return b"\n".join([*fields, *(f"OBJECT_SYSTEMD_UNIT={name}".encode() for name in names)]) + b"\n"


class Repeater:
    """Repeats what the gateways have written into the journal since this began; looked up, since following it depends
    on more of the host than a sandbox leaves."""

    def __init__(self, names: Sequence[str], run: Callable[..., Any] = subprocess.run) -> None:
        self._names, self._run = names, run
        self._after = f"--since=@{int(time.time())}"

    def tend(self) -> None:
        command = ["journalctl", "--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,PRIORITY"]
        told = self._run([*command, f"--identifier={IDENTIFIER}", self._after], capture_output=True, check=False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            for line in told.stdout.splitlines():
                try:
                    self._after = f"--after-cursor={json.loads(line)['__CURSOR']}"
                    journal.sendto(entry(line, self._names), JOURNAL)
                except (OSError, ValueError, KeyError) as error:
                    print(f"A line of the gateway's journal was not repeated: {error}", file=sys.stderr)


def told_to_stop(seconds: float) -> bool:
    """Waits that long for SIGTERM, which is blocked otherwise."""
    return signal.sigtimedwait({signal.SIGTERM}, seconds) is not None


class Face:
    def __init__(
        self,
        look: Callable[[], list[Gateway]] = gateways,
        health: Callable[[], str] = lambda: "unknown",
        say: Callable[[str], None] = notify,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] = told_to_stop,
    ) -> None:
        self._look, self._health, self._say, self._clock, self._pause = look, health, say, clock, pause
        self._ready = False
        self._told = ""

    def run(self, tend: Callable[[], None] = lambda: None) -> int:
        seen, asked, health = self._clock(), -HEALTH, ""
        while True:
            found, now = self._look(), self._clock()
            serves = any(one.active in {"active", "reloading"} for one in found)
            if any(one.active in _PRESENT for one in found):
                seen = now
            elif now - seen > ABSENT:
                print("No gateway runs: see `journalctl -u 'citadel-gateway@*'` for its last words.", file=sys.stderr)
                return 1
            if serves and now - asked >= HEALTH:
                asked, health = now, self._health()
            self._tell(sentence(found, health), serves)
            tend()
            if self._pause(LOOK if serves else HURRY):
                return self._drain(found, tend)

    def _tell(self, text: str, serves: bool) -> None:
        state = f"STATUS={text}"
        if serves and not self._ready:
            self._ready = True
            state = f"READY=1\n{state}"
        if state != self._told:
            self._told = state
            self._say(state)

    def _drain(self, before: list[Gateway], tend: Callable[[], None]) -> int:
        """Stopped when the gateways are that ran when it was asked to stop; a restart has begun others by then."""
        waited = {one.pid for one in before if one.part and one.pid}
        self._say("STOPPING=1\nSTATUS=the gateway ends its last requests")
        while waited & {one.pid for one in self._look()}:
            tend()
            self._pause(HURRY)
        tend()
        return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--health", required=True, help="where the gateway tells its health")
    parser.add_argument("--also", action="append", default=[], help="another name to find the journal by")


def run(arguments: argparse.Namespace) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    return Face(health=lambda: health_of(arguments.health)).run(Repeater(arguments.also).tend)
