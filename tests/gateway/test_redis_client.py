"""The connection to Redis: quick while it is there, never waited for when it is not, and back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hiredis
import pytest

from citadel_gateway.config import Redis as Settings
from citadel_gateway.config import RedisTls
from citadel_gateway.redis_client import Away, Connection, Redis
from tests import certificates
from tests.gateway.harness import open_sockets
from tests.gateway.redis_server import RedisServer, redis, redis_server
from tests.gateway.simulator import until

__all__ = ["redis"]

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def joined(server: RedisServer, **settings: Any) -> AsyncIterator[Redis]:
    client = Redis(Settings(address=server.address, **{"timeout_ms": 1000.0, **settings}))
    client.start()
    try:
        await until(lambda: client.up)
        yield client
    finally:
        await client.close()


async def test_calls_of_one_turn_are_answered_each_with_its_own(redis: RedisServer) -> None:
    async with joined(redis) as client:
        await asyncio.gather(*(client.call("SET", f"key-{number}", number) for number in range(500)))
        found = await asyncio.gather(*(client.call("GET", f"key-{number}") for number in range(500)))
        assert found == [str(number).encode() for number in range(500)]


async def test_an_error_of_redis_is_the_callers_alone(redis: RedisServer) -> None:
    async with joined(redis) as client:
        await client.call("SET", "text", "x")
        with pytest.raises(hiredis.ReplyError, match="not an integer"):
            await client.call("INCR", "text")
        assert client.up
        assert await client.call("GET", "text") == b"x"


async def test_who_gives_up_a_call_does_not_shift_the_answers_of_others(redis: RedisServer) -> None:
    async with joined(redis) as client:
        left = asyncio.ensure_future(client.call("ECHO", "left"))
        await asyncio.sleep(0)
        left.cancel()
        assert await client.call("ECHO", "stayed") == b"stayed"


async def test_a_redis_that_stands_still_is_waited_for_once(redis: RedisServer) -> None:
    async with joined(redis, timeout_ms=30.0) as client:
        redis.pause()
        begun = time.monotonic()
        waiting = [asyncio.ensure_future(client.call("PING")) for _ in range(50)]
        failed = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, Away) for error in failed)
        assert 0.03 <= time.monotonic() - begun < 1.0
        begun = time.monotonic()
        with pytest.raises(Away, match="no answer within 30 ms"):
            await client.call("PING")
        assert time.monotonic() - begun < 0.03
        assert client.report()["status"] == "unavailable"
        redis.resume()
        await until(lambda: client.up)
        assert await client.call("PING") == b"PONG"
        assert client.losses == 1


async def test_it_comes_back_after_its_server_was_killed(redis: RedisServer) -> None:
    async with joined(redis) as client:
        redis.kill()
        await until(lambda: not client.up)
        with pytest.raises(Away):
            await client.call("PING")
        redis.start()
        await until(lambda: client.up)
        assert await client.call("PING") == b"PONG"


async def test_a_loop_that_was_busy_does_not_blame_redis(redis: RedisServer) -> None:
    async with joined(redis, timeout_ms=5.0) as client:
        answer = asyncio.ensure_future(client.call("PING"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        _hold_the_loop(0.05)
        assert await answer == b"PONG"


def _hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize("file", ["password", "{}/password"])
async def test_a_password_is_read_from_its_file_and_a_wrong_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with redis_server("--requirepass", "right") as server:
        client = Redis(Settings(address=server.address, password_file=file.format(tmp_path), database=3))
        client.start()
        try:
            await until(lambda: "WRONGPASS" in client.reason)
            assert not client.up
            secret.write_text("right\n")
            await until(lambda: client.up)
            await client.call("SET", "here", 1)
            assert b"db=3" in await client.call("CLIENT", "LIST")
        finally:
            await client.close()


async def test_it_is_used_only_when_it_was_prepared(redis: RedisServer) -> None:
    seen: list[str] = []

    async def prepare(connection: Connection) -> None:
        assert await connection.call("PING") == b"PONG"
        seen.append("prepared")

    client = Redis(Settings(address=redis.address), prepare=prepare, joined=lambda _: seen.append("joined"))
    client.start()
    try:
        await until(lambda: client.up)
        assert seen == ["prepared", "joined"]
    finally:
        await client.close()


async def test_nothing_stays_open_of_one_that_was_never_used(redis: RedisServer) -> None:
    before = open_sockets()
    redis.pause()
    client = Redis(Settings(address=redis.address, timeout_ms=1000.0))
    client.start()
    await until(lambda: open_sockets() > before)
    await client.close()
    await until(lambda: open_sockets() == before)


async def test_what_goes_wrong_in_joining_is_said_and_tried_again(redis: RedisServer) -> None:
    tries: list[Connection] = []

    def joined(connection: Connection) -> None:
        tries.append(connection)
        if len(tries) == 1:
            raise ValueError("a bug")

    client = Redis(Settings(address=redis.address, timeout_ms=1000.0), joined=joined)
    client.start()
    try:
        await until(lambda: client.up and len(tries) == 2)
        assert await client.call("PING") == b"PONG"
    finally:
        await client.close()


async def test_tls_is_asked_for_and_the_server_has_to_be_who_it_says(tmp_path: Path) -> None:
    pair, other = certificates.made(tmp_path, "redis"), certificates.made(tmp_path, "other")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = ("--tls-cert-file", pair.certificate, "--tls-key-file", pair.key, "--tls-auth-clients", "no")
    with redis_server("--tls-port", str(port), "--bind", "127.0.0.1", *files):

        def client(authorities: str) -> Redis:
            return Redis(
                Settings(address=f"127.0.0.1:{port}", tls=RedisTls(authorities=authorities), timeout_ms=1000.0)
            )

        right, wrong = client(pair.certificate), client(other.certificate)
        right.start()
        wrong.start()
        try:
            await until(lambda: right.up and "certificate" in wrong.reason.lower())
            assert not wrong.up
            assert await right.call("PING") == b"PONG"
        finally:
            await right.close()
            await wrong.close()
