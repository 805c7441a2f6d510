"""Servers that are started, waited for, and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Server:
    name: str
    command: tuple[str, ...]
    port: int
    model: str = "large"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


@dataclass(frozen=True)
class Running:
    seconds: float  # until it answered
    group: int

    def memory(self) -> int:
        """Bytes of all its processes, what they share counted once."""
        return sum(resident(path.parent) for path in Path("/proc").glob("[0-9]*/stat") if group_of(path) == self.group)


def group_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[2])
    except OSError:
        return 0  # it has just ended


def resident(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@contextmanager
def running(server: Server, log: Path, timeout: float = 600.0) -> Iterator[Running]:
    """Started and waited for; stopped at the end, with all that it started."""
    if server.answers():
        raise RuntimeError(f"something else answers on {server.url}; stop it, or choose another --port")
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            server.command,
            env={**os.environ, **server.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not server.answers():
                if process.poll() is not None or time.monotonic() - began > timeout:
                    raise RuntimeError(f"{server.name} did not start; its last words:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield Running(time.monotonic() - began, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                pass
            finally:
                kill_group(process.pid)


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
