"""What hostile and careless clients do, each without pause until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.matrix import random_shots

MODEL = "phi"
HOSTILE = "127.0.0.66"  # where they come from: not the innocent's address


@dataclass
class Target:
    port: int
    key: str  # of the hostile client; its limits are its own
    sent: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(7))

    def head(self, length: int | str, key: str | None = None) -> bytes:
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key or self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        ).encode()

    def request(self, key: str | None = None, **fields: Any) -> bytes:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4, **fields})
        return self.head(len(body), key) + body.encode()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(HOSTILE, 0))

    async def send(self, data: bytes, *, wait: float = 30.0) -> None:
        """One request on a connection of its own, to whatever end it comes."""
        self.sent += 1
        writer = None
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(wait):
                reader, writer = await self.open()
                writer.write(data)
                await reader.read(65536)
        if writer is not None:
            writer.transport.abort()


Attack = Callable[[Target], Awaitable[None]]


async def many(count: int, one: Callable[[], Awaitable[None]], pause: float = 0.0) -> None:
    """`count` at once, each again and again."""

    async def forever() -> None:
        while True:
            await one()
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(forever())


async def slow_bodies(target: Target) -> None:
    async def one() -> None:
        target.sent += 1
        writer = None
        with contextlib.suppress(OSError):
            _, writer = await target.open()
            writer.write(target.head(10_000))
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.5)
        if writer is not None:
            writer.transport.abort()

    await many(200, one, 0.1)


async def idle_connections(target: Target) -> None:
    async def one() -> None:
        target.sent += 1
        writer = None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(20):
                reader, writer = await target.open()
                writer.write(b"POST /v1/chat/comp")
                await reader.read()
        if writer is not None:
            writer.transport.abort()

    await many(1500, one, 0.5)


async def wrong_keys(target: Target) -> None:
    await many(32, lambda: target.send(target.request(key=f"ck_{secrets.token_hex(4)}_{secrets.token_hex(16)}")))


async def storm(target: Target) -> None:
    await many(64, lambda: target.send(target.request()))


async def leavers(target: Target) -> None:
    async def one() -> None:
        target.sent += 1
        writer = None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(10):
                reader, writer = await target.open()
                writer.write(target.request(stream=True, user="long", max_tokens=2000))
                await reader.read(200)
        if writer is not None:
            writer.transport.abort()

    await many(32, one, 0.05)


async def deaf_readers(target: Target) -> None:
    async def one() -> None:
        target.sent += 1
        writer = None
        with contextlib.suppress(OSError):
            reader, writer = await target.open()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            del reader
            writer.write(target.request(stream=True, user="flood", max_tokens=2000))
            await asyncio.sleep(20)
        if writer is not None:
            writer.transport.abort()

    await many(32, one)


async def poison(target: Target) -> None:
    """A request that kills the engine which serves it, sent again whenever it is answered."""
    await many(2, lambda: target.send(target.request(user="poison")), 0.5)


async def failing(target: Target) -> None:
    """What vLLM answers with 500, such as a schema that refers to itself."""
    fields = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    await many(8, lambda: target.send(target.request(user="fails", response_format=fields)), 0.05)


async def large_bodies(target: Target) -> None:
    large = b" " * (9 << 20)
    await many(4, lambda: target.send(target.head(len(large)) + large), 0.1)


async def deep_json(target: Target) -> None:
    depth = 100_000
    text = b'{"model":"phi","messages":' + b"[" * depth + b"]" * depth + b"}"
    await many(8, lambda: target.send(target.head(len(text)) + text), 0.05)


async def malformed(target: Target) -> None:
    def one() -> Awaitable[None]:
        whole = bytearray(target.request())
        for _ in range(target.chance.randint(1, 8)):
            whole[target.chance.randrange(len(whole))] = target.chance.randrange(256)
        return target.send(bytes(whole), wait=2.0)

    await many(16, one)


async def absurd(target: Target) -> None:
    shots = random_shots(MODEL, ("chat", "completions"), 7)

    def one() -> Awaitable[None]:
        shot = next(shots)
        body = shot.body if isinstance(shot.body, bytes) else json.dumps(shot.body).encode()
        data = target.head(len(body)).replace(b"/v1/chat/completions", shot.path.encode()) + body
        return target.send(data)

    await many(8, one)


# what is said of each in the table
ATTACKS: dict[str, tuple[Attack, str]] = {
    "slow bodies": (slow_bodies, "200 connections that send a byte of their body every half second"),
    "half requests": (idle_connections, "1,500 connections that stop within their first line"),
    "wrong keys": (wrong_keys, "32 clients that guess keys"),
    "a storm": (storm, "64 clients that share a key and ask without pause"),
    "leavers": (leavers, "32 clients that leave after the first events of a long stream"),
    "deaf readers": (deaf_readers, "32 streams that nobody reads"),
    "poison": (poison, "a request that kills its engine, again and again"),
    "failures": (failing, "8 clients whose requests the model server answers with 500"),
    "large bodies": (large_bodies, "4 clients that send 9 MiB of spaces"),
    "deep JSON": (deep_json, "8 clients that nest 100,000 lists"),
    "malformed": (malformed, "16 clients with up to 8 wrong bytes in a request"),
    "absurd values": (absurd, "8 clients that try all parameters with extreme values"),
}
