"""Clients that leave, dawdle, or speak badly."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

import pytest

from tests.gateway.harness import MESSAGES, Lab, code_of, running, text_of
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"messages": MESSAGES}
STREAM: dict[str, Any] = {"messages": MESSAGES, "stream": True}


class TestLeaving:
    @pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
    async def test_before_the_first_byte(self, lab: Lab, body: dict[str, Any]) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(delay=30)
        async with lab.raw() as client:
            await client.post(body)
            await until(lambda: simulator.running == 1)
            client.abort()
        await until(lambda: simulator.seen[0].state == "aborted", 1.0)
        await lab.settled()
        (record,) = lab.records()
        assert (record["outcome"], record["replica"]) == (499, "phi")
        assert (
            lab.metric("llm_requests_total", model="phi", endpoint="chat_completions", status="error", code="499") == 1
        )

    async def test_in_mid_stream(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(tokens=1000, gap=0.01)
        async with lab.raw() as client:
            await client.post(STREAM)
            await until(lambda: simulator.seen and simulator.seen[0].sent > 5)
            client.abort()
        await until(lambda: simulator.seen[0].state == "aborted", 1.0)
        assert simulator.seen[0].sent < 100
        await lab.settled()
        (record,) = lab.records()
        assert record["outcome"] == 499
        # the tokens that it was sent are counted, although nobody said how many they were
        assert 5 <= record["completion_tokens"] < 100
        assert lab.metric("llm_tokens_processed_total", model="phi", type="completion") == record["completion_tokens"]

    async def test_while_queued(self) -> None:
        async with running(models={"phi": {"concurrency": 1}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(delay=30)
            async with lab.raw() as first, lab.raw() as second:
                await first.post(CHAT)
                await until(lambda: simulator.running == 1)
                await second.post(CHAT)
                await until(lambda: lab.gateway.admission.waiting == 1)
                second.abort()
                await until(lambda: lab.gateway.admission.waiting == 0, 1.0)
                assert len(simulator.seen) == 1
                first.abort()
            await lab.settled()

    async def test_while_sending_the_body(self, lab: Lab) -> None:
        async with lab.raw() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            await until(lambda: lab.gateway.walk.running)
            client.abort()
        await lab.settled()
        assert not lab.simulators["phi"].seen

    async def test_half_closed_is_gone(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(delay=30)
        async with lab.raw() as client:
            await client.post(STREAM)
            await until(lambda: simulator.running == 1)
            client.writer.write_eof()
            await until(lambda: simulator.seen[0].state == "aborted", 1.0)
        await lab.settled()

    async def test_with_a_large_body_that_filled_the_buffers(self, lab: Lab) -> None:
        """Reading from the client pauses while a large body is taken in; its end must be noticed all the same."""
        simulator = lab.simulators["phi"]
        simulator.default = Act(delay=30)
        async with lab.raw() as client:
            await client.post({**CHAT, "pad": "y" * 2_000_000})
            await until(lambda: simulator.running == 1)
            client.abort()
        await until(lambda: simulator.seen[0].state == "aborted", 1.0)
        await lab.settled()

    async def test_a_storm_of_cancellations_leaves_nothing(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(tokens=20, gap=0.005, delay=0.02)
        dice = random.Random(7)

        async def leave(after: float, body: dict[str, Any]) -> None:
            async with lab.raw() as client:
                await client.post(body)
                await asyncio.sleep(after)
                client.abort()

        await asyncio.gather(*(leave(dice.random() * 0.15, dice.choice([CHAT, STREAM])) for _ in range(300)))
        await lab.settled()
        replica = next(lab.gateway.fleet.replicas())
        assert replica.breaker.state == "closed"
        assert (await lab.chat()).status_code == 200
        assert text_of(await lab.stream()) == "word " * 20


class TestDawdling:
    async def test_a_slow_reader_is_cut_and_memory_stays_bounded(self) -> None:
        async with running({"server": {"write_timeout": 0.4}}) as lab:
            simulator = lab.simulators["phi"]
            simulator.default = Act(tokens=100_000, text="x" * 500)
            async with lab.raw() as client:
                sock = client.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.reader._transport.pause_reading()  # type: ignore[attr-defined]
                await client.post(STREAM)
                await until(lambda: simulator.seen and simulator.seen[0].state == "aborted", 10.0)
            # what was made is what fits into the buffers, not what the model could have made
            assert simulator.seen[0].sent < 30_000
            await lab.settled()
            assert lab.records()[0]["error"] == "client_too_slow"

    async def test_a_slow_writer_of_a_body_is_told(self) -> None:
        async with running({"server": {"body_timeout": 0.3}}) as lab, lab.raw() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            status, body = await client.answer()
            assert (status, code_of(body)) == (408, "body_timeout")
            assert await client.reader.read() == b""
            await lab.settled()

    @pytest.mark.parametrize("start", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhos"], ids=["nothing", "half"])
    async def test_a_slow_writer_of_headers_is_told(self, start: bytes) -> None:
        async with running({"server": {"header_timeout": 0.2}}) as lab, lab.raw() as client:
            await client.send(start)
            status, body = await client.answer()
            assert (status, code_of(body)) == (408, "header_timeout")
            assert await client.reader.read() == b""

    async def test_a_dribbling_second_request_is_told_too(self) -> None:
        async with running({"server": {"header_timeout": 0.2}}) as lab, lab.raw() as client:
            await client.post(CHAT)
            assert (await client.answer())[0] == 200
            await client.send(b"POST /v1/cha")
            assert (await client.answer())[0] == 408

    async def test_an_idle_connection_is_closed(self) -> None:
        async with running({"server": {"keep_alive": 1.0}}) as lab, lab.raw() as client:
            await client.post(CHAT)
            await client.answer()
            assert await asyncio.wait_for(client.reader.read(), 3.0) == b""

    async def test_too_many_connections(self) -> None:
        async with running({"server": {"connections": 5, "connections_per_address": 10}}) as lab:
            clients = [lab.raw() for _ in range(5)]
            for client in clients:
                await client.__aenter__()
            await until(lambda: len(lab.gateway.connections) == 5)
            async with lab.raw() as sixth:
                status, body = await sixth.answer()
                assert (status, code_of(body)) == (503, "too_many_connections")
            for client in clients:
                await client.__aexit__()
            await until(lambda: not lab.gateway.connections)
            assert (await lab.chat()).status_code == 200


class TestSpeakingBadly:
    @pytest.mark.parametrize(
        "head",
        [
            "content-length: 2\r\ntransfer-encoding: chunked\r\n",
            "content-length: 2\r\ncontent-length: 3\r\n",
            "transfer-encoding: xchunked\r\n",
            "transfer-encoding : chunked\r\n",
            "content-length: -1\r\n",
            "content-length: 2, 2\r\n",
            "x: a\r\n folded\r\n",
            "bad header\r\n",
            "x\x00y: z\r\n",
        ],
    )
    async def test_smuggling_ends_the_connection(self, lab: Lab, head: str) -> None:
        inner = "GET /admin HTTP/1.1\r\nhost: x\r\n\r\n"
        async with lab.raw() as client:
            await client.send(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{head}\r\n{inner}".encode())
            answer = await asyncio.wait_for(client.reader.read(), 5.0)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 408")), answer[:100]
        assert answer.count(b"HTTP/1.1") == 1
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["type"]
        assert not lab.simulators["phi"].seen
        await lab.settled()

    @pytest.mark.parametrize(
        "lines",
        [b"x: " + b"a" * 100_000, b"GET /" + b"a" * 100_000, b"x: y\r\n" * 20_000],
        ids=["one header", "the path", "many headers"],
    )
    async def test_oversized_headers(self, lab: Lab, lines: bytes) -> None:
        start = b"" if lines.startswith(b"GET") else b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
        async with lab.raw() as client:
            await client.send(start + lines)
            status, body = await client.answer()
        assert (status, code_of(body)) == (431, "headers_too_large")
        assert (await lab.chat()).status_code == 200

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_that_is_too_large(self, chunked: bool) -> None:
        async with running({"server": {"max_body_bytes": 10_000}}) as lab:
            head = "transfer-encoding: chunked" if chunked else "content-length: 10001"
            async with lab.raw() as client:
                await client.send(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode())
                if chunked:
                    await client.send(b"2711\r\n" + b"x" * 10_001 + b"\r\n")
                status, body = await client.answer()
                assert (status, code_of(body)) == (413, "request_too_large")
                assert await client.reader.read() == b""
            await lab.settled()

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (b"", "empty_body"),
            (b"{", "invalid_json"),
            (b"[]", "invalid_json"),
            (b"\xff\xfe{}", "invalid_json"),
            (b'{"messages": "\xed\xa0\x80"}', "invalid_json"),
            (b'{"a":' + b"[" * 100_000, "invalid_json"),
            (b'{"messages": NaN}', "invalid_json"),
            (b"{}", "missing_required_parameter"),
            (b'{"messages": []}', "empty_array"),
            (b'{"messages": {}}', "invalid_type"),
            (b'{"messages": [1]}', "invalid_type"),
            (b'{"messages": [{"role": 1}]}', "invalid_type"),
            (b'{"messages": [{"role": "user"}], "stream": "yes"}', "invalid_type"),
            (b'{"messages": [{"role": "user"}], "max_tokens": 1.5}', "invalid_type"),
            (b'{"messages": [{"role": "user"}], "model": 7}', "invalid_type"),
        ],
    )
    async def test_bodies_that_are_not_understood(self, lab: Lab, content: bytes, code: str) -> None:
        answer = await lab.client.post("/v1/chat/completions", content=content)
        assert (answer.status_code, code_of(answer)) == (400, code)
        assert answer.headers["x-should-retry"] == "false"
        await lab.settled()

    async def test_an_encoded_body_is_refused(self, lab: Lab) -> None:
        answer = await lab.client.post("/v1/chat/completions", content=b"x", headers={"content-encoding": "gzip"})
        assert (answer.status_code, code_of(answer)) == (400, "unsupported_encoding")

    async def test_a_chunked_body_is_understood(self, lab: Lab) -> None:
        async with lab.raw() as client:
            content = json.dumps(CHAT).encode()
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            for byte in content:
                await client.send(b"1\r\n%c\r\n" % byte)
            await client.send(b"0\r\n\r\n")
            assert (await client.answer())[0] == 200

    async def test_pipelined_requests_are_answered_in_order(self, lab: Lab) -> None:
        async with lab.raw() as client:
            for number in range(5):
                await client.post({**CHAT, "user": str(number)})
            for _ in range(5):
                assert (await client.answer())[0] == 200
        assert [seen.body["user"] for seen in lab.simulators["phi"].seen] == list("01234")
        await lab.settled()
