"""Requests of which every tenth client leaves: what is counted must come back to zero, and memory must not grow."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

import uvloop

CLIENTS = 32
LEAVES = 10  # every so many requests
COUNTERS = ("llm_client_connections", "llm_active_requests", "llm_queue_depth", "http_requests_in_flight")
_BODY = b'{"model":"phi","messages":[{"role":"user","content":"hello"}],"max_tokens":16%b}'


@dataclass
class Found:
    requests: int
    left: int = 0
    refused: int = 0
    memory: list[float] = field(default_factory=list)
    counters: dict[str, float] = field(default_factory=dict)


def _request(headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": str(len(body))}.items()]
    return ("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode() + body


class Clients:
    def __init__(self, port: int, headers: dict[str, str], memory: Callable[[], float], found: Found) -> None:
        self._port = port
        self._whole = _request(headers, _BODY % b"")
        self._stream = _request(headers, _BODY % b',"stream":true')
        self._memory = memory
        self._found = found
        self._asked = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        connection = await asyncio.open_connection("127.0.0.1", self._port)
        while self._asked < self._found.requests:
            self._asked += 1
            number = self._asked
            if number % max(1, self._found.requests // 50) == 0:
                self._found.memory.append(self._memory())
            if number % LEAVES:
                await self._ask(*connection)
                continue
            await self._leave(*connection, after_a_byte=number % (2 * LEAVES) == 0)
            connection = await asyncio.open_connection("127.0.0.1", self._port)
        connection[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._whole)
        head = await reader.readuntil(b"\r\n\r\n")
        self._found.refused += not head.startswith(b"HTTP/1.1 200")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        assert length is not None
        await reader.readexactly(int(length[1]))

    async def _leave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, after_a_byte: bool) -> None:
        writer.write(self._stream)
        if after_a_byte:
            await reader.readuntil(b"data: ")
        else:
            await writer.drain()
        writer.transport.abort()
        self._found.left += 1


def _counters(export: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{export}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[{{ ]", line))
        for name in COUNTERS
    }


def measure(port: int, export: int, headers: dict[str, str], requests: int, memory: Callable[[], float]) -> Found:
    found = Found(requests)
    before = _counters(export)
    uvloop.run(Clients(port, headers, memory, found).run())
    deadline = time.monotonic() + 30
    while True:
        after = _counters(export)
        found.counters = {name: after[name] - before[name] for name in COUNTERS}
        if not any(found.counters.values()) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)
