"""The companion behind its routes: it hears who asks from the gateway alone, and may be dead."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.harness import Lab, code_of, merged, running
from tests.gateway.simulator import until

pytestmark = pytest.mark.anyio


class StandIn:
    """A companion that says what it was asked, and echoes what comes through a tunnel."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.holds: asyncio.Event | None = None
        self.answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if b"upgrade: websocket" in head:
                writer.write(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n")
                writer.write(b"x-own: 1\r\n\r\nhi ")
                while data := await reader.read(65536):
                    writer.write(data.upper())
            else:
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                if self.holds is not None:
                    await self.holds.wait()
                writer.write(self.answer)
        writer.close()


@contextlib.asynccontextmanager
async def beside(
    folder: Path, more: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Lab, StandIn, asyncio.Server]]:
    path = folder / "companion.sock"
    stand_in = StandIn()
    server = await asyncio.start_unix_server(stand_in.serve, str(path))
    over = {"companion": {"socket": str(path), "routes": ["/v1/files/*", "/graphql"], "timeout": 2.0}}
    async with server, running(merged(over, more or {})) as lab:
        yield lab, stand_in, server


async def test_it_hears_who_asks_and_clients_cannot_say_it(tmp_path: Path) -> None:
    async with beside(tmp_path) as (lab, stand_in, _):
        ident, key = lab.key()
        headers = {
            **key,
            "x-citadel-principal": "key:admin",
            "X-Citadel-Role": "admin",
            "connection": "x-secret",
            "x-secret": "1",
        }
        answer = await lab.client.post("/v1/files/a%2Fb?x=1", content=b"data", headers=headers)
        assert (answer.status_code, answer.text) == (200, "hello")
        assert answer.headers["x-request-id"]
        head = stand_in.heads[0].decode()
        assert head.startswith("POST /v1/files/a%2Fb?x=1 HTTP/1.1\r\n")
        assert head.count("x-citadel-principal:") == 1
        assert f"x-citadel-principal: key:{ident}\r\n" in head
        assert "x-citadel-role: user\r\n" in head
        assert "authorization" not in head
        assert "x-secret" not in head
        assert stand_in.bodies == [b"data"]
        assert lab.records()[-1]["principal"] == f"key:{ident}"


async def test_a_key_must_be_good(tmp_path: Path) -> None:
    async with beside(tmp_path) as (lab, stand_in, _):
        answer = await lab.client.get("/graphql", headers={"authorization": "Bearer ck_12345678_wrong"})
        assert answer.status_code == 401
        assert not stand_in.heads


async def test_an_answer_without_a_length_comes_as_it_is_made(tmp_path: Path) -> None:
    async with beside(tmp_path) as (lab, stand_in, _):
        stand_in.answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        assert (await lab.client.get("/graphql")).text == "abcde"
        stand_in.answer = b"HTTP/1.1 201 Created\r\n\r\nuntil the end"
        answer = await lab.client.get("/graphql")
        assert (answer.status_code, answer.text) == (201, "until the end")
        stand_in.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        assert (await lab.client.delete("/graphql")).status_code == 204
        assert (await lab.client.get("/v1/models")).status_code == 200


async def test_one_client_has_so_much_of_it_and_no_part_of_it_is_anothers(tmp_path: Path) -> None:
    rates = {"companion": {"rates": {"requests_per_minute": 3, "concurrent": 1}}, "limits": {"overall": None}}
    async with beside(tmp_path, rates) as (lab, _, _):
        (_, key), (_, other) = lab.key(tier="basic"), lab.key(tier="basic")
        seen = [await lab.client.get("/graphql", headers=key) for _ in range(4)]
        assert [answer.status_code for answer in seen] == [200, 200, 200, 429]
        assert code_of(seen[-1]) == "rate_limit_exceeded"
        assert "this client on the companion's paths" in seen[-1].text
        assert seen[-1].headers["retry-after"]
        assert (await lab.client.get("/graphql", headers=other)).status_code == 200
        assert (await lab.chat(headers=key)).status_code == 200
        assert lab.gateway.limits.leaked() == 0


async def test_one_client_has_so_many_requests_there_at_once(tmp_path: Path) -> None:
    async with beside(tmp_path, {"companion": {"rates": {"concurrent": 2}}}) as (lab, stand_in, _):
        stand_in.answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        stand_in.holds = asyncio.Event()
        _, key = lab.key(tier="basic")
        waiting = [asyncio.create_task(lab.client.get("/graphql", headers=key)) for _ in range(2)]
        await until(lambda: len(stand_in.heads) == 2)
        refused = await lab.client.get("/graphql", headers=key)
        assert (refused.status_code, code_of(refused)) == (429, "concurrency_limit_exceeded")
        # whoever leaves makes room
        waiting[0].cancel()
        await until(lambda: len(lab.gateway.connections) < 3)
        stand_in.answer += b"0\r\n\r\n"
        stand_in.holds.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await lab.client.get("/graphql", headers=key)).status_code == 200
        assert lab.gateway.limits.leaked() == 0


async def test_dead_it_takes_nobody_with_it(tmp_path: Path) -> None:
    async with beside(tmp_path) as (lab, stand_in, server):
        stand_in.answer = b""
        broken = await lab.client.get("/graphql")
        assert (broken.status_code, code_of(broken)) == (503, "companion_unavailable")
        server.close()
        (tmp_path / "companion.sock").unlink(missing_ok=True)
        absent = await lab.client.get("/graphql")
        assert (absent.status_code, code_of(absent)) == (503, "companion_unavailable")
        assert absent.headers["retry-after"] == "5"
        assert (await lab.chat()).status_code == 200


async def test_a_websocket_is_a_tunnel(tmp_path: Path) -> None:
    async with beside(tmp_path) as (lab, stand_in, _), lab.raw() as client:
        nonce = base64.b64encode(b"0" * 16).decode()
        await client.send(
            f"GET /graphql HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            f"sec-websocket-key: {nonce}\r\nx-citadel-principal: me\r\n\r\nearly ".encode()
        )
        head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5.0)
        assert head.startswith(b"HTTP/1.1 101")
        assert b"x-own: 1" in head
        assert b"x-request-id" in head
        assert await asyncio.wait_for(client.reader.readexactly(9), 5.0) == b"hi EARLY "
        for _ in range(20):
            await client.send(b"x" * 50_000)
            assert await asyncio.wait_for(client.reader.readexactly(50_000), 5.0) == b"X" * 50_000
        assert b"x-citadel-principal: me" not in stand_in.heads[0]
        assert f"sec-websocket-key: {nonce}".encode() in stand_in.heads[0]
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), 5.0) == b""
    await lab.settled()


async def test_health_says_whether_it_is_there(tmp_path: Path) -> None:
    async with beside(tmp_path) as (lab, _, server):
        told = (await lab.client.get("/health/detailed")).json()
        assert told["dependencies"]["companion"] == {"status": "healthy"}
        server.close()
        told = (await lab.client.get("/health/detailed")).json()
        assert told["dependencies"]["companion"] == {"status": "unavailable"}
        assert told["status"] == "healthy", "models are not affected"
