"""The rarer parts of HTTP/1.1 on the clients' port, and what one request of a connection leaves to the next."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest

from citadel_gateway.budget import Budget
from citadel_gateway.config import Server
from citadel_gateway.protocol import ClientConnection, Cycle
from tests.gateway.harness import MESSAGES, Lab, Raw, code_of, events, running, text_of
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio

CHAT = json.dumps({"messages": MESSAGES}).encode()
STREAM = json.dumps({"messages": MESSAGES, "stream": True}).encode()


def request(body: bytes, *lines: str, version: str = "1.1") -> bytes:
    head = [f"POST /v1/chat/completions HTTP/{version}", "host: x", f"content-length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


async def rest(client: Raw) -> bytes:
    return await asyncio.wait_for(client.reader.read(), 5.0)


async def test_expect_is_answered_before_the_body_is_sent(lab: Lab) -> None:
    whole = request(CHAT, "expect: 100-continue")
    async with lab.raw() as client:
        await client.send(whole[: -len(CHAT)])
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(CHAT)
        assert (await client.answer())[0] == 200
        await client.send(whole)  # who does not wait for it does not get it
        assert (await client.answer())[0] == 200


async def test_a_refused_expectation_costs_no_body(lab: Lab) -> None:
    async with lab.raw() as client:
        await client.send(request(CHAT, "expect: 100-continue", "content-encoding: gzip")[: -len(CHAT)])
        status, body = await client.answer()
        assert (status, code_of(body)) == (400, "unsupported_encoding")


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
async def test_who_speaks_1_0_gets_no_chunks(lab: Lab, body: bytes) -> None:
    async with lab.raw() as client:
        await client.send(request(body, "connection: keep-alive", version="1.0"))
        head, _, content = (await rest(client)).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert content.startswith(b"data: {" if body is STREAM else b"{")
    assert text_of(events(content)) if body is STREAM else json.loads(content)["choices"]


@pytest.mark.parametrize("pieces", [1, 3])
async def test_another_protocol_is_not_spoken(lab: Lab, pieces: int) -> None:
    """Java's client offers HTTP/2 with each request."""
    upgrade = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk")
    whole = request(CHAT, *upgrade) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    async with lab.raw() as client:
        middle = whole.index(CHAT) + 10
        for piece in (whole,) if pieces == 1 else (whole[:50], whole[50:middle], whole[middle:]):
            await client.send(piece)
            await asyncio.sleep(0.02)
        answer = await rest(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


async def test_trailers_are_neither_headers_nor_kept(lab: Lab) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with lab.raw() as client:
        chunks = b"%x\r\n%b\r\n0\r\nx-request-id: trailer\r\n\r\n" % (len(CHAT), CHAT)
        await client.send(head + chunks)
        assert b"x-request-id: trailer" not in await client.reader.readuntil(b"\r\n\r\n")
    assert lab.records()[-1]["request_id"] != "trailer"


async def test_the_next_request_follows_a_refused_body(lab: Lab) -> None:
    """The refusal is sent before the body has come, and what then comes of it is not taken for a request."""
    body = b"z" * 300_000
    async with lab.raw() as client:
        whole = request(body, "content-encoding: gzip")
        await client.send(whole[:1000])
        assert code_of((await client.answer())[1]) == "unsupported_encoding"
        await client.send(whole[1000:] + request(CHAT))
        assert (await client.answer())[0] == 200
    await lab.settled()


async def test_garbage_behind_a_request_waits_for_its_answer(lab: Lab) -> None:
    lab.simulators["phi"].default = Act(delay=0.2)
    async with lab.raw() as client:
        await client.send(request(CHAT) + request(CHAT) + b"\x00garbage\r\n\r\n")
        assert (await client.answer())[0] == 200
        assert (await client.answer())[0] == 200
        status, body = await client.answer()
        assert (status, code_of(body)) == (400, "invalid_http")
        assert await rest(client) == b""


async def test_requests_that_were_sent_together_end_with_their_client(lab: Lab) -> None:
    simulator = lab.simulators["phi"]
    simulator.default = Act(delay=30)
    async with lab.raw() as client:
        await client.send(request(CHAT) * 3)
        await until(lambda: simulator.running == 1)
        client.abort()
    await until(lambda: simulator.seen[0].state == "aborted", 1.0)
    await lab.settled()
    assert len(simulator.seen) == 1


async def test_a_body_behind_an_unfinished_answer_is_read_in_its_turn(lab: Lab) -> None:
    """Reading stops while a request waits for the one before, and goes on with a body that filled the buffers."""
    lab.simulators["phi"].default = Act(delay=0.2)
    large = json.dumps({"messages": MESSAGES, "user": "u" * 3_000_000}).encode()
    async with lab.raw() as client:
        sending = asyncio.create_task(client.send(request(CHAT) + request(large) + request(CHAT)))
        for _ in range(3):
            assert (await asyncio.wait_for(client.answer(), 10.0))[0] == 200
        await sending


async def test_a_cut_request_leaves_the_connection_to_the_next() -> None:
    """A key that is revoked ends what it runs; the same connection goes on with another."""
    async with running() as lab:
        lab.simulators["phi"].script.append(Act(delay=30))
        ident, header = lab.key()
        async with lab.raw() as client:
            await client.send(request(CHAT, *(f"{name}: {value}" for name, value in header.items())))
            await until(lambda: lab.simulators["phi"].running == 1)
            lab.gateway.keys.revoke(ident)
            lab.gateway.keys_changed()
            status, body = await client.answer()
            assert (status, code_of(body)) == (401, "revoked_api_key")
            await client.send(request(CHAT, "x-request-timeout: 5"))
            assert (await client.answer())[0] == 200
        await lab.settled()


async def test_a_bug_is_answered_and_told(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lab.gateway, "fleet", None)
    async with lab.raw() as client:
        await client.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        status, body = await client.answer()
        assert (status, code_of(body)) == (500, "gateway_error")
        assert "AttributeError" in caplog.text
        monkeypatch.undo()
        await client.send(request(CHAT))
        assert (await client.answer())[0] == 200


async def test_an_idle_connection_may_ask_once_more_while_the_gateway_stops(lab: Lab) -> None:
    async with lab.raw() as client:
        await client.send(request(CHAT))
        assert (await client.answer())[0] == 200
        stopping = asyncio.create_task(lab.process.stop())
        await until(lambda: lab.gateway.stopping)
        await client.send(request(CHAT))
        answer = await rest(client)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        await stopping


BEHIND = {
    "nothing": b"",
    "a refusal": request(b"nonsense"),
    "a stream": request(STREAM),
    "half a body": request(CHAT)[:-5],
    "the models": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("behind", BEHIND)
async def test_a_client_that_takes_nothing_is_let_go(behind: str) -> None:
    """It has asked for a large answer, which it does not read, and for one thing more."""
    short = {"write_timeout": 0.3, "body_timeout": 0.3, "keep_alive": 0.3}
    async with running({"server": short}) as lab:
        lab.simulators["phi"].script.append(Act(body=b'{"x":"' + b"y" * 8_000_000 + b'"}'))
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", lab.port()))
            await loop.sock_sendall(client, request(CHAT) + BEHIND[behind])
            await until(lambda: lab.gateway.connections)
            await until(lambda: not lab.gateway.connections, 5.0)
            await lab.settled()


class Stuck:
    """A transport with a little left that nobody takes: too little to pause what writes."""

    aborted = False

    def get_write_buffer_size(self) -> int:
        return 10

    def get_extra_info(self, name: str) -> None:
        return None

    def abort(self) -> None:
        self.aborted = True


async def test_who_has_left_and_does_not_take_the_rest_is_let_go() -> None:
    async def serve(cycle: Cycle) -> None:
        """Nothing is asked."""

    connection = ClientConnection(serve, Budget(Server(write_timeout=0.1), set()))
    transport = Stuck()
    connection.connection_made(transport)
    connection.eof_received()
    await until(lambda: transport.aborted, 3.0)
    connection.connection_lost(None)


async def test_who_reads_slowly_but_reads_gets_all_of_a_last_answer() -> None:
    """Longer than a client may take nothing at all; it is closed after this answer, and not before its end."""
    content = b'{"x":"' + b"y" * 8_000_000 + b'"}'
    async with running({"server": {"write_timeout": 0.1}}) as lab:
        lab.simulators["phi"].script.append(Act(body=content))
        with socket.socket() as client:  # of its own: a stream would read ahead
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", lab.port()))
            await loop.sock_sendall(client, request(CHAT, "connection: close"))
            taken = b""
            while part := await loop.sock_recv(client, 65536):
                taken += part
                await asyncio.sleep(0.02)
        assert taken.partition(b"\r\n\r\n")[2] == content


@pytest.mark.parametrize("endless", [b"0\r\nx: ", b"5;x="], ids=["trailer", "extension"])
async def test_what_brings_nothing_of_a_body_is_bounded(lab: Lab, endless: bytes) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with lab.raw() as client:
        await client.send(head + b"%x\r\n%b\r\n" % (len(CHAT), CHAT) + endless)
        for _ in range(40):
            client.writer.write(b"y" * 10_000)
            await asyncio.sleep(0.002)
        status, body = await client.answer()
        assert (status, code_of(body)) == (431, "headers_too_large")
    await lab.settled()


async def test_a_head_behind_a_request_in_the_same_packet_is_bounded_too(lab: Lab) -> None:
    small = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
    async with lab.raw() as client:
        await client.send(small + b"\r\n" + small + b"x: " + b"a" * 70_000 + b"\r\n\r\n")
        assert (await client.answer())[0] == 200
        status, body = await client.answer()
        assert (status, code_of(body)) == (431, "headers_too_large")
        assert await rest(client) == b""


@pytest.mark.parametrize("path", ["/nope", "/v1/chat/completions", "/v1/models", "/health"])
async def test_head_is_answered_without_a_body(lab: Lab, path: str) -> None:
    async with lab.raw() as client:
        await client.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() + request(CHAT))
        await client.reader.readuntil(b"\r\n\r\n")
        assert (await client.answer())[0] == 200


async def test_a_status_without_a_name_is_passed_on(lab: Lab) -> None:
    lab.simulators["phi"].script.append(Act(status=499, body=b'{"error":{"message":"odd"}}'))
    async with lab.raw() as client:
        await client.send(request(CHAT))
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["message"]) == (499, "odd")


async def test_requests_that_wait_are_answered_while_the_gateway_stops(lab: Lab) -> None:
    lab.simulators["phi"].default = Act(delay=0.5)
    async with lab.raw() as client:
        await client.send(request(CHAT) * 2)
        await until(lambda: lab.gateway.walk.running)
        stopping = asyncio.create_task(lab.process.stop())
        assert (await client.answer())[0] == 200
        assert (await client.answer())[0] == 200
        assert await rest(client) == b""
        await stopping


async def test_who_sends_too_much_can_read_why() -> None:
    async with running({"server": {"max_body_bytes": 10_000}}) as lab, lab.raw() as client:
        await client.send(request(b"x" * 4_000_000))
        status, body = await client.answer()
        assert (status, code_of(body)) == (413, "request_too_large")
        assert await rest(client) == b""


MODELS = "GET /v1/models HTTP/1.1\r\nhost: x\r\n"
POST = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /v1/models HTTP/1.1\r\n", 400),  # RFC 9112, 3.2: a Host, and one of them
        (MODELS + "host: x\r\n", 400),
        (MODELS + "host: y\r\n", 400),
        ("GET /v1/models HTTP/1.1\r\nhost: a b\r\n", 400),
        ("GET /v1/models HTTP/1.1\r\nhost: x/y\r\n", 400),
        ("GET /v1/models HTTP/1.1\r\nhost: u@x\r\n", 400),
        ("GET /v1/models HTTP/1.1\r\nhost:\r\n", 200),
        ("GET /v1/models HTTP/1.1\r\nhost: [::1]:8000\r\n", 200),
        ("GET /v1/models HTTP/1.0\r\n", 200),
        ("GET http://y/v1/models HTTP/1.1\r\nhost: x\r\n", 200),
        ("OPTIONS * HTTP/1.1\r\nhost: x\r\n", 204),
        (POST + "transfer-encoding: gzip, chunked\r\n", 501),  # 6.1
        (POST + "transfer-encoding: chunked, gzip\r\n", 400),
        (POST + "transfer-encoding: chunked, chunked\r\n", 400),
        (POST + "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 400),
        (POST + "transfer-encoding: identity\r\n", 400),
        (POST + "transfer-encoding: \x0bchunked\r\n", 400),
        ("POST /v1/chat/completions HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n", 400),
        (POST + "transfer-encoding: chunked\r\ncontent-length: 5\r\n", 400),
        (POST + "content-length: 5\r\ncontent-length: 5\r\n", 400),
        (POST + "content-length: 5, 5\r\n", 400),
        (POST + "content-length: +5\r\n", 400),
        (POST + "content-length: 0x5\r\n", 400),
        (POST + "content-length: \r\n", 400),
        (POST + "content-length: 1" + "0" * 5000 + "\r\n", 400),
        (POST + "content-length: 99999999999\r\n", 413),
        (MODELS + "content-length: " + "0" * 5000 + "\r\n", 200),  # a number like any other
        (MODELS + "x : y\r\n", 400),
        (MODELS + "x: y\n", 400),
        (MODELS + "x: y\rz\r\n", 400),
        (MODELS + " x: y\r\n", 400),
        (MODELS + ": y\r\n", 400),
        ("FETCH /v1/models HTTP/1.1\r\nhost: x\r\n", 501),
        ("GET /v1/models HTTP/2.0\r\nhost: x\r\n", 505),
        ("GET /v1/models HTTP/1.2\r\nhost: x\r\n", 400),
        ("GET /v1/models\r\nhost: x\r\n", 505),
        ("CONNECT x:443 HTTP/1.1\r\nhost: x\r\n", 404),
        ("\x16\x03\x01\x02\x00\x01\x00\r\n", 400),
    ],
)
async def test_the_head_is_read_as_the_rfc_says(lab: Lab, head: str, status: int) -> None:
    async with lab.raw() as client:
        await client.send(head.encode("latin-1") + b"\r\n")
        answer = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5.0)
        assert int(answer.split(b" ")[1]) == status, answer
        if status >= 400 and status != 404:
            assert b"connection: close" in answer
            await rest(client)
    await lab.settled()
    assert not lab.simulators["phi"].seen


async def test_a_final_answer_to_an_expectation_ends_the_connection(lab: Lab) -> None:
    """Nobody can know whether what comes next is the body or another request, so it is neither."""
    async with lab.raw() as client:
        await client.send(request(CHAT, "expect: 100-continue", "content-encoding: gzip")[: -len(CHAT)])
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b" 400 " in head
        assert b"connection: close" in head
        with contextlib.suppress(OSError):
            await client.send(request(CHAT))
        assert (await rest(client)).count(b"HTTP/1.1") == 0
    await lab.settled()
    assert not lab.simulators["phi"].seen


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
    ],
)
async def test_405_says_what_is_allowed(lab: Lab, method: str, path: str, allowed: str) -> None:
    answer = await lab.client.request(method, path)
    assert (answer.status_code, code_of(answer)) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed
