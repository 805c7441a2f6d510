"""What an answer of the cache takes, beside one that a model server gives at once.

    PYTHONPATH=gateway/src python -m tests.bench.gateway.cached [--seconds 3] [--python P] [--compiled F]

The clients and the model server share a core, so that the rates are rather theirs; the time that the gateway takes for
a request is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

from tests.bench.gateway.contenders import CONTENDERS, LOAD_CORE, MODEL, PORT, ROOT, RUNTIME, Running, citadel_with
from tests.bench.gateway.report import percentile

BACKEND = 19002
CACHED = citadel_with("citadel-gateway", lambda _: "cache: {policy: on_request}")
CONNECTIONS = 16
WAYS = {
    "without a cache": {},
    "a cache that is not asked": {},
    "never the same again": {"x-allow-cache": "true", "cache-control": "no-cache"},
    "the same again": {"x-allow-cache": "true"},
}


class Client(asyncio.Protocol):
    """One request after the other on one connection."""

    def __init__(self, request: bytes, times: list[float]) -> None:
        self._request = request
        self._times = times
        self._data = b""
        self.going = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._ask()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split()[0]):
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        self._times.append(time.perf_counter() - self._began)
        self._data = b""
        if self.going:
            self._ask()
        else:
            self._transport.close()


class Found(NamedTuple):
    rate: float
    p50: float
    p99: float
    taken: float  # microseconds of the gateway's core for each request


async def measure(running: Running, headers: dict[str, str], connections: int, seconds: float) -> Found:
    frame = {"model": MODEL, "messages": [{"role": "user", "content": ""}], "max_tokens": 16, "temperature": 0}
    frame["messages"] = [{"role": "user", "content": "x" * (1024 - len(json.dumps(frame)))}]
    body = json.dumps(frame).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**running.headers, **headers}.items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{lines}content-length: {len(body)}\r\n\r\n"
    times: list[float] = []
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(head.encode() + body, times), "127.0.0.1", PORT)
        clients.append(client)
    await asyncio.sleep(seconds / 4)
    times.clear()
    began, taken = time.perf_counter(), running.seconds()
    await asyncio.sleep(seconds)
    count, taken, spent = len(times), running.seconds() - taken, time.perf_counter() - began
    for client in clients:
        client.going = False
    return Found(count / spent, percentile(times, 0.5) * 1000, percentile(times, 0.99) * 1000, taken / count * 1e6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--python", help="for this gateway, as it is deployed")
    parser.add_argument("--compiled", help="what tools/toolchain.py makes of the gateway")
    arguments = parser.parse_args()
    RUNTIME.python = arguments.python or RUNTIME.python
    RUNTIME.paths = arguments.compiled or RUNTIME.paths
    os.sched_setaffinity(0, {LOAD_CORE})
    backend = subprocess.Popen([sys.executable, "-m", "tests.bench.gateway.streams", str(BACKEND)], cwd=ROOT)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-cached-") as folder:
            for name, headers in WAYS.items():
                contender = CONTENDERS["citadel-gateway"] if name == "without a cache" else CACHED
                with Running(contender, Path(folder) / name.replace(" ", "-"), BACKEND) as running:
                    for connections in (1, CONNECTIONS):
                        found = uvloop.run(measure(running, headers, connections, arguments.seconds))
                        print(
                            f"{name}, {connections} at once: {found.rate:,.0f}/s, p50 {found.p50:.2f} ms, p99 "
                            f"{found.p99:.2f} ms, {found.taken:.0f} us of the gateway's core for each",
                            flush=True,
                        )
    finally:
        backend.terminate()
        backend.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
