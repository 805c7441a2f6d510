"""Connections with TLS: records however they come, ends of every kind, and the bounds that hold in the clear."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from citadel_gateway.config import Tls
from tests.certificates import made
from tests.gateway.harness import MESSAGES, Lab, code_of, running
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"messages": MESSAGES}
STREAM: dict[str, Any] = {"messages": MESSAGES, "stream": True}


def request(body: Any, *lines: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", *lines, f"content-length: {len(content)}", "", ""]
    return "\r\n".join(head).encode() + content


class Client:
    """It decides itself when what is encrypted is sent, in which pieces, and what is read."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.loop = asyncio.get_running_loop()
        self.port = port
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")
        self.taken = b""

    async def shake_hands(self, step: int = 2**20) -> None:
        await self.loop.sock_connect(self.sock, ("127.0.0.1", self.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send(self.outgoing.read(), step)
                await self._receive()
            else:
                await self.send(self.outgoing.read(), step)
                return

    def encrypted(self, data: bytes) -> bytes:
        for at in range(0, len(data), 2**14):
            self.tls.write(data[at : at + 2**14])
        return self.outgoing.read()

    async def send(self, data: bytes, step: int = 2**20) -> None:
        for at in range(0, len(data), step):
            await self.loop.sock_sendall(self.sock, data[at : at + step])
            await asyncio.sleep(0)

    async def _receive(self) -> None:
        data = await asyncio.wait_for(self.loop.sock_recv(self.sock, 2**16), 10.0)
        if not data:
            raise EOFError("the end came without a goodbye")
        self.incoming.write(data)

    async def _more(self) -> bool:
        while True:
            try:
                part = self.tls.read(2**16)
            except ssl.SSLWantReadError:
                await self._receive()
            except ssl.SSLZeroReturnError:
                return False
            else:
                self.taken += part
                return bool(part)

    async def answer(self) -> tuple[int, bytes]:
        while b"\r\n\r\n" not in self.taken:
            assert await self._more(), self.taken
        head, _, rest = self.taken.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head)
        assert found, head
        length = int(found[1])
        self.taken = rest
        while len(self.taken) < length:
            assert await self._more()
        body, self.taken = self.taken[:length], self.taken[length:]
        return int(head.split()[1]), body

    async def rest(self) -> bytes:
        """Until the server's goodbye."""
        while await self._more():
            pass
        return self.taken

    def abort(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


@pytest.fixture
def pair(tmp_path: Path) -> Tls:
    return made(tmp_path, "one")


@pytest.fixture
async def lab(pair: Tls) -> AsyncIterator[Lab]:
    async with serving(pair) as lab:
        yield lab


@contextlib.asynccontextmanager
async def serving(pair: Tls, **server: Any) -> AsyncIterator[Lab]:
    async with running({"server": {"tls": pair.model_dump(), **server}}) as lab:
        yield lab
        await until(lambda: not lab.gateway.connections)
        await lab.settled()


@contextlib.contextmanager
def unconnected(lab: Lab, pair: Tls) -> Iterator[Client]:
    client = Client(lab.port(), ssl.create_default_context(cafile=pair.certificate))
    with client.sock:
        yield client


@contextlib.asynccontextmanager
async def connected(lab: Lab, pair: Tls) -> AsyncIterator[Client]:
    with unconnected(lab, pair) as client:
        await client.shake_hands()
        yield client


class TestRecords:
    @pytest.mark.parametrize("step", [1, 7, 1000])
    async def test_in_pieces(self, lab: Lab, pair: Tls, step: int) -> None:
        with unconnected(lab, pair) as client:
            await client.shake_hands(step)
            await client.send(client.encrypted(request(CHAT)), step)
            assert (await client.answer())[0] == 200

    async def test_several_in_one_packet_and_one_that_is_not_whole(self, lab: Lab, pair: Tls) -> None:
        async with connected(lab, pair) as client:
            data = b"".join(client.encrypted(request(CHAT)) for _ in range(5))
            await client.send(data[:-3])
            for _ in range(4):
                assert (await client.answer())[0] == 200
            await client.send(data[-3:])
            assert (await client.answer())[0] == 200

    async def test_a_record_for_each_byte(self, lab: Lab, pair: Tls) -> None:
        async with connected(lab, pair) as client:
            await client.send(b"".join(client.encrypted(bytes([byte])) for byte in request(CHAT)))
            assert (await client.answer())[0] == 200

    async def test_large_bodies_both_ways(self, lab: Lab, pair: Tls) -> None:
        content = b'{"x":"' + b"y" * 5_000_000 + b'"}'
        lab.simulators["phi"].default = Act(body=content)
        pad = "".join(chr(97 + at % 26) for at in range(1_000_003))
        async with connected(lab, pair) as client:
            for _ in range(2):
                await client.send(client.encrypted(request({**CHAT, "user": pad})))
                assert await client.answer() == (200, content)
        assert [seen.body["user"] == pad for seen in lab.simulators["phi"].seen] == [True, True]

    async def test_new_keys(self, lab: Lab, pair: Tls) -> None:
        """`K` makes openssl's client change its own and ask for the gateway's."""
        words = ["s_client", "-connect", f"127.0.0.1:{lab.port()}", "-CAfile", pair.certificate]
        pipe = asyncio.subprocess.PIPE
        client = await asyncio.create_subprocess_exec(
            "openssl", *words, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        assert client.stdin
        assert client.stdout
        try:
            for _ in range(3):
                client.stdin.write(b"K\n")
                await client.stdin.drain()
                await asyncio.wait_for(client.stdout.readuntil(b"KEYUPDATE"), 10.0)
                client.stdin.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
                await client.stdin.drain()
                await asyncio.wait_for(client.stdout.readuntil(b"HTTP/1.1 200"), 10.0)
        finally:
            client.kill()
            await client.wait()


class TestEnds:
    async def test_the_last_answer_ends_with_a_goodbye(self, lab: Lab, pair: Tls) -> None:
        async with connected(lab, pair) as client:
            await client.send(client.encrypted(request(CHAT, "connection: close")))
            assert (await client.answer())[0] == 200
            assert await client.rest() == b""

    @pytest.mark.parametrize("way", ["goodbye", "half closed", "reset", "garbage"])
    async def test_who_leaves_ends_what_it_runs(self, lab: Lab, pair: Tls, way: str) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(delay=30)
        async with connected(lab, pair) as client:
            await client.send(client.encrypted(request(STREAM)))
            await until(lambda: simulator.running == 1)
            if way == "goodbye":
                with pytest.raises(ssl.SSLWantReadError):
                    client.tls.unwrap()
                await client.send(client.outgoing.read())
                assert await client.rest() == b""
            elif way == "half closed":
                client.sock.shutdown(socket.SHUT_WR)
                assert await client.rest() == b""
            elif way == "reset":
                client.abort()
            else:
                await client.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
                with pytest.raises(ssl.SSLError, match=r"(?i)alert bad record mac"):
                    await client.rest()
            await until(lambda: simulator.seen[0].state == "aborted", 1.0)

    async def test_in_the_handshake(self, lab: Lab, pair: Tls) -> None:
        with unconnected(lab, pair) as client:
            client.incoming.write_eof()
            with pytest.raises(ssl.SSLError):
                client.tls.do_handshake()
            hello = client.outgoing.read()
        for at in (1, len(hello) // 2, len(hello)):
            for half in (True, False):
                with unconnected(lab, pair) as other:
                    await other.loop.sock_connect(other.sock, ("127.0.0.1", lab.port()))
                    await other.send(hello[:at])
                    if half:
                        other.sock.shutdown(socket.SHUT_WR)
                        while await asyncio.wait_for(other.loop.sock_recv(other.sock, 2**16), 5.0):
                            pass
                    else:
                        other.abort()

    async def test_who_speaks_something_else_is_told(self, lab: Lab, pair: Tls) -> None:
        context = ssl.create_default_context(cafile=pair.certificate)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        client = Client(lab.port(), context)
        with client.sock, pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"):
            await client.shake_hands()

    async def test_a_handshake_that_drips_has_an_end(self, pair: Tls) -> None:
        async with serving(pair, header_timeout=0.3) as lab:
            with unconnected(lab, pair) as client, contextlib.suppress(OSError, EOFError):
                with pytest.raises(ssl.SSLWantReadError):
                    client.tls.do_handshake()
                await client.loop.sock_connect(client.sock, ("127.0.0.1", lab.port()))
                for byte in client.outgoing.read():
                    await client.send(bytes([byte]))
                    await asyncio.sleep(0.05)
                pytest.fail("it was let in")


class TestBounds:
    async def test_who_takes_nothing_is_let_go(self, pair: Tls) -> None:
        async with serving(pair, write_timeout=0.3) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(tokens=100_000, text="x" * 500)
            with unconnected(lab, pair) as client:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await client.shake_hands()
                await client.send(client.encrypted(request(STREAM)))
                await until(lambda: simulator.seen and simulator.seen[0].state == "aborted", 10.0)
                await until(lambda: not lab.gateway.connections)
            assert simulator.seen[0].sent < 30_000
            assert lab.records()[0]["error"] == "client_too_slow"

    async def test_who_reads_slowly_gets_all(self, pair: Tls) -> None:
        content = b'{"x":"' + b"y" * 6_000_000 + b'"}'
        async with serving(pair, write_timeout=0.1) as lab:
            lab.simulators["phi"].default = Act(body=content)
            with unconnected(lab, pair) as client:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                await client.shake_hands()
                await client.send(client.encrypted(request(CHAT, "connection: close")))
                taken = []
                while data := await client.loop.sock_recv(client.sock, 65536):
                    taken.append(data)
                    await asyncio.sleep(0.01)
            client.incoming.write(b"".join(taken))
            while client.incoming.pending:
                client.taken += client.tls.read(2**14)
            assert client.taken.partition(b"\r\n\r\n")[2] == content

    async def test_who_has_left_and_takes_nothing_is_let_go(self, pair: Tls) -> None:
        async with serving(pair, write_timeout=0.3) as lab:
            lab.simulators["phi"].default = Act(body=b'{"x":"' + b"y" * 8_000_000 + b'"}')
            with unconnected(lab, pair) as client:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await client.shake_hands()
                await client.send(client.encrypted(request(CHAT)))
                await until(lab.records)
                client.sock.shutdown(socket.SHUT_WR)
                await until(lambda: not lab.gateway.connections)

    async def test_who_sends_too_much_can_read_why(self, pair: Tls) -> None:
        async with serving(pair, max_body_bytes=10_000) as lab, connected(lab, pair) as client:
            await client.send(client.encrypted(request(b"x" * 1_000_000)))
            status, body = await client.answer()
            assert (status, code_of(body)) == (413, "request_too_large")
            assert await client.rest() == b""

    async def test_what_is_served_ends_while_the_gateway_stops(self, lab: Lab, pair: Tls) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(tokens=30, gap=0.01)
        async with connected(lab, pair) as client:
            await client.send(client.encrypted(request(STREAM)))
            await until(lambda: simulator.running == 1)
            stopping = asyncio.create_task(lab.process.stop())
            assert b"data: [DONE]" in await client.rest()
            await stopping
