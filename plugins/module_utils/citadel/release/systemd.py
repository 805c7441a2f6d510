"""The little of systemd that a transaction needs, behind a protocol that tests can stand in for."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .failure import FailedError

ATTEMPTS = 5
_LOST = re.compile("disconnected from message bus|Connection (refused|reset)|Transport endpoint|timed out")


@dataclass(frozen=True)
class UnitState:
    active: str  # active, activating, inactive, failed, deactivating
    sub: str
    pid: int
    restarts: int = 0
    result: str = ""  # why it ended the last time

    def __str__(self) -> str:
        why = f", result {self.result}" if self.result not in {"", "success"} else ""
        return f"{self.active} ({self.sub}){why}"

    @property
    def running(self) -> bool:
        return self.active in {"active", "activating", "reloading"}

    @property
    def given_up(self) -> bool:
        """Dead, or between two attempts to start: either way the start that is waited for failed."""
        return self.active in {"failed", "inactive"} or self.sub == "auto-restart"


class Systemd(Protocol):
    def show(self, unit: str) -> UnitState: ...
    def matching(self, pattern: str) -> list[str]: ...
    def environment(self, pid: int) -> Mapping[str, str]: ...
    def reload(self) -> None: ...
    def start(self, unit: str, *, wait: bool) -> None: ...
    def restart(self, unit: str, *, wait: bool) -> None: ...
    def stop(self, unit: str, *, wait: bool) -> None: ...
    def verify(self, units: Iterable[Path]) -> list[str]: ...
    def log(self, unit: str, lines: int) -> list[str]: ...


class Systemctl:
    """systemd itself."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def show(self, unit: str) -> UnitState:
        output = self._ask("show", "--property=ActiveState,SubState,MainPID,NRestarts,Result,Job", unit)
        values = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        # A start that waits in the queue has not failed, though the unit still shows what it was before.
        queued = values.get("Job", "0") not in {"", "0"}
        return UnitState(
            "activating" if queued else values.get("ActiveState", "inactive"),
            "queued" if queued else values.get("SubState", "dead"),
            int(values.get("MainPID") or 0),
            int(values.get("NRestarts") or 0),
            values.get("Result", ""),
        )

    def matching(self, pattern: str) -> list[str]:
        output = self._ask("list-units", "--all", "--plain", "--no-legend", "--no-pager", pattern)
        return sorted(line.split()[0] for line in output.splitlines() if line.strip())

    def environment(self, pid: int) -> Mapping[str, str]:
        if not pid:
            return {}
        try:
            raw = (self._proc / str(pid) / "environ").read_bytes()
        except OSError:
            return {}
        pairs = (entry.split("=", 1) for entry in raw.decode(errors="replace").split("\0") if "=" in entry)
        return dict(pairs)

    def reload(self) -> None:
        self._do("daemon-reload")

    def start(self, unit: str, *, wait: bool) -> None:
        self._ask("reset-failed", unit)
        self._do("start", *([] if wait else ["--no-block"]), unit)

    def restart(self, unit: str, *, wait: bool) -> None:
        self._ask("reset-failed", unit)
        self._do("restart", *([] if wait else ["--no-block"]), unit)

    def stop(self, unit: str, *, wait: bool) -> None:
        try:
            self._do("stop", *([] if wait else ["--no-block"]), unit)
        except FailedError as error:
            # What systemd does not know does not run.
            if "not loaded" not in str(error):
                raise

    def verify(self, units: Iterable[Path]) -> list[str]:
        paths = [str(path) for path in units]
        if not paths:
            return []
        done = _run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths])
        if done.returncode == 0:
            return []
        return [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]

    def log(self, unit: str, lines: int) -> list[str]:
        return _run(["journalctl", "-u", unit, "-n", str(lines), "-o", "cat", "--no-pager"]).stdout.splitlines()

    def _ask(self, *arguments: str) -> str:
        return _run(["systemctl", *arguments]).stdout

    def _do(self, *arguments: str) -> None:
        done = _run(["systemctl", *arguments])
        for _ in range(ATTEMPTS - 1):
            if not done.returncode or not _LOST.search(done.stderr):
                break
            # systemd was re-executing itself, by an update of its package for one; every act here can be repeated.
            time.sleep(1)
            done = _run(["systemctl", *arguments])
        if done.returncode:
            raise FailedError(f"systemctl {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
