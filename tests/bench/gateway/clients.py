"""Which HTTP client should speak to the model servers? Speed, and what a storm of cancellations leaves behind.

    python -m tests.bench.gateway.clients

A client whose package is not installed is left out. The server runs in the same process, so the figures are for
comparison only. docs/decisions/010 tells what followed from them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[3] / "gateway" / "src"))

BODY = b'{"model":"phi","messages":[{"role":"user","content":"hello"}]}'
ANSWER = b'{"choices":[{"message":{"content":"' + b"x" * 300 + b'"}}]}'
Post = Callable[[str], Awaitable[None]]


class Server(asyncio.Protocol):
    """Answers /fast at once and /slow never; knows how many connections are open."""

    open = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Server.open += 1
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        Server.open -= 1

    def data_received(self, data: bytes) -> None:
        if b"POST /fast" in data:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))


@contextlib.asynccontextmanager
async def own(port: int) -> AsyncIterator[Post]:
    from citadel_gateway.upstream import Pool

    pool = Pool("127.0.0.1", port, 10.0)

    async def post(path: str) -> None:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
        connection = await pool.request(head + BODY, 60.0)
        try:
            await connection.read_all(10**6)
        finally:
            connection.finish()

    yield post
    pool.close()


@contextlib.asynccontextmanager
async def pyreqwest(port: int) -> AsyncIterator[Post]:
    builder = importlib.import_module("pyreqwest.client").ClientBuilder()
    async with builder.build() as client:

        async def post(path: str) -> None:
            request = client.post(f"http://127.0.0.1:{port}{path}").body_bytes(BODY).build()
            answer = await request.send()
            await answer.bytes()

        yield post


@contextlib.asynccontextmanager
async def aiohttp(port: int) -> AsyncIterator[Post]:
    module = importlib.import_module("aiohttp")
    async with module.ClientSession(connector=module.TCPConnector(limit=0)) as session:

        async def post(path: str) -> None:
            async with session.post(f"http://127.0.0.1:{port}{path}", data=BODY) as answer:
                await answer.read()

        yield post


@contextlib.asynccontextmanager
async def httpx(port: int) -> AsyncIterator[Post]:
    module = importlib.import_module("httpx")
    limits = module.Limits(max_connections=1000, max_keepalive_connections=1000)
    async with module.AsyncClient(limits=limits, timeout=30) as client:

        async def post(path: str) -> None:
            await client.post(f"http://127.0.0.1:{port}{path}", content=BODY)

        yield post


async def speed(post: Post, seconds: float = 2.0) -> float:
    """Requests per second with sixteen at once."""
    count = 0
    deadline = time.monotonic() + seconds

    async def user() -> None:
        nonlocal count
        while time.monotonic() < deadline:
            await post("/fast")
            count += 1

    await asyncio.gather(*(user() for _ in range(16)))
    return count / seconds


async def storm(post: Post) -> tuple[float, int, str]:
    """Milliseconds until the server is rid of 400 cancelled calls, what is left open, and whether it still works."""
    dice = random.Random(1)
    tasks = [asyncio.ensure_future(post("/slow")) for _ in range(400)]

    async def cancel(task: asyncio.Future[None]) -> None:
        await asyncio.sleep(dice.random() * 0.3)
        task.cancel()

    await asyncio.gather(*(cancel(task) for task in tasks))
    started = time.monotonic()
    await asyncio.gather(*tasks, return_exceptions=True)
    while Server.open > 16 and time.monotonic() - started < 5.0:  # noqa: ASYNC110 - it is the kernel that is waited for
        await asyncio.sleep(0.001)
    gone = (time.monotonic() - started) * 1000
    try:
        async with asyncio.timeout(5):
            await asyncio.gather(*(post("/fast") for _ in range(50)))
        verdict = "works"
    except Exception as error:
        verdict = f"fails: {type(error).__name__}"
    return gone, Server.open, verdict


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=2048)
    port = server.sockets[0].getsockname()[1]
    print(f"{'':10} {'requests/s':>10}  {'rid after':>10}  after the storm")
    contenders: list[tuple[str, Any]] = [("own", own), ("pyreqwest", pyreqwest), ("aiohttp", aiohttp), ("httpx", httpx)]
    for name, client in contenders:
        try:
            async with client(port) as post:
                rate = await speed(post)
                gone, left, verdict = await storm(post)
        except ModuleNotFoundError:
            print(f"{name:10} is not installed")
            continue
        print(f"{name:10} {rate:10,.0f}  {gone:7.0f} ms  {verdict}, {left} connections open")
        await asyncio.sleep(0.1)
        Server.open = 0  # what this one has left behind is not the next one's


if __name__ == "__main__":
    uvloop.run(main())
