"""What limits over two gateways cost: requests per second of both together, and the processor's time that a request
takes of a gateway and of Redis. Everything is on one machine, the load too: the ratio says more than the figures.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.bench.gateway.__main__ import SIZES, WHOLE, load
from tests.bench.gateway.contenders import CONTENDERS, program
from tests.bench.gateway.report import OURS

PORTS = (19010, 19011)
CONNECTIONS = 32  # of each of the two


def spent(pid: int) -> float:
    """Seconds of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Two:
    def __init__(self, folder: Path, redis: str | None) -> None:
        folder.mkdir()
        ours = CONTENDERS[OURS]
        words = ours.words(folder, WHOLE)
        self.headers = {"Content-Type": "application/json", **ours.headers(folder)}
        self._processes = [self._start(folder, words, port, redis) for port in PORTS]
        for port in PORTS:
            self._await(port)

    def _start(self, folder: Path, words: list[str], port: int, redis: str | None) -> subprocess.Popen[bytes]:
        config: dict[str, Any] = yaml.safe_load((folder / "gateway.yml").read_text())
        config["listen"]["export"] = None
        if redis is not None:
            config["redis"] = {"address": redis, "timeout_ms": 1000.0}
            config["limits"]["shared"] = True
        own = folder / f"{port}.yml"
        own.write_text(yaml.safe_dump(config))
        with (folder / f"{port}.log").open("wb") as log:
            return subprocess.Popen(
                [*words[:-1], str(own), "--bind", f"api=127.0.0.1:{port}"],
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **CONTENDERS[OURS].environment()},
            )

    def _await(self, port: int) -> None:
        body = b'{"model":"phi","messages":[{"role":"user","content":"x"}],"max_tokens":1}'
        deadline = time.monotonic() + 20
        while True:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, self.headers)
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def measure(self, seconds: float, connections: int, redis: int) -> dict[str, float]:
        before = [spent(process.pid) for process in self._processes], spent(redis)
        with ThreadPoolExecutor(len(PORTS)) as pool:
            found = list(pool.map(lambda port: load(port, SIZES["1 kB"], connections, self.headers, seconds), PORTS))
        rate = sum(one["rate"] for one in found)
        of_gateways = sum(spent(process.pid) for process in self._processes) - sum(before[0])
        requests = max(1.0, rate * max(1, round(seconds)))
        return {
            "rate": rate,
            "p99": max(one["p99"] for one in found),
            "gateway": of_gateways / requests * 1e6,
            "redis": (spent(redis) - before[1]) / requests * 1e6,
        }

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()


def compare(folder: Path, seconds: float) -> dict[str, dict[str, float]]:
    """With limits of their own, and with those that they share."""
    folder.mkdir()
    address = str(folder / "redis.sock")
    words = ["--port", "0", "--unixsocket", address, "--save", "", "--dir", str(folder)]
    redis = subprocess.Popen([program("redis-server"), *words], stdout=subprocess.DEVNULL)
    try:
        found = {}
        for kind, where in (("own", None), ("shared", address)):
            two = Two(folder / kind, where)
            try:
                tries = [two.measure(seconds, CONNECTIONS, redis.pid) for _ in range(2)]
                found[kind] = max(tries, key=lambda one: one["rate"])
            finally:
                two.stop()
        return found
    finally:
        redis.terminate()
        redis.wait()
