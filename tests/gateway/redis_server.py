"""A Redis of the tests' own, on a socket in a folder of its own; it can be killed, stopped, and made to stand still."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class RedisServer:
    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.address = str(folder / "redis.sock")
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["--port", "0", "--unixsocket", self.address, "--dir", str(self.folder), "--save", "", *self._options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(["redis-server", *words], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "Redis did not start in time"
            time.sleep(0.01)

    def ask(self, *words: str) -> bytes:
        """By hand, with commands as a person would type them."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(self.address)
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(1 << 20)

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("PING")[:1] in (b"+", b"-")
        return False


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="citadel-redis-", dir="/var/tmp"))
    server = RedisServer(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server
