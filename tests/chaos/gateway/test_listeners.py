"""What one client may hold, on whichever port, and that nobody else feels it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.gateway.harness import MESSAGES, Lab, Raw, code_of, running
from tests.gateway.simulator import Act, until

pytestmark = pytest.mark.anyio

CHAT = json.dumps({"messages": MESSAGES}).encode()
TCP = ["api", "management", "health"]


@contextlib.asynccontextmanager
async def crowd(port: int, count: int) -> AsyncIterator[list[Raw]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Raw(port)) for _ in range(count)]


async def rest(client: Raw) -> bytes:
    return await asyncio.wait_for(client.reader.read(), 10.0)


class TestConnections:
    @pytest.mark.parametrize("crowded", TCP)
    async def test_a_crowd_on_one_listener_leaves_the_others_as_they_were(self, crowded: str) -> None:
        over = {"server": {"connections": 20, "connections_per_address": 20, "side_connections": 20}}
        async with running(over) as lab, crowd(lab.port(crowded), 30):
            await until(lambda: len(lab.gateway.budgets[crowded].connections) >= 20)
            for name in TCP:
                if name != crowded:
                    async with httpx.AsyncClient(base_url=lab.url(name), trust_env=False) as client:
                        assert (await client.get("/health")).status_code == 200
            socket = str(lab.process.ports["management_socket"])
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://x") as client:
                assert (await client.get("/management/stats")).status_code == 200

    async def test_an_address_has_a_part_of_them(self) -> None:
        async with running({"server": {"connections": 40}}) as lab, crowd(lab.port(), 10):
            await until(lambda: len(lab.gateway.connections) == 10)
            async with lab.raw() as eleventh:
                status, body = await eleventh.answer()
                assert (status, code_of(body)) == (429, "too_many_connections")
            # somebody else comes in
            reader, writer = await asyncio.open_connection("127.0.0.1", lab.port(), local_addr=("127.0.0.2", 0))
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()

    async def test_those_that_are_refused_take_nobodys_place(self) -> None:
        """They hear why, and some of them are slow to listen and to leave."""
        async with running({"server": {"connections": 40}}) as lab, crowd(lab.port(), 120) as raws:
            await until(lambda: len(lab.gateway.connections) >= 50)
            reader, writer = await asyncio.open_connection("127.0.0.1", lab.port(), local_addr=("127.0.0.2", 0))
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()
            # beyond a measure nobody is told any more, for each of them costs a descriptor
            assert len(lab.gateway.connections) <= 10 + 41
            assert len(raws) == 120

    async def test_a_trusted_proxy_stands_for_many(self) -> None:
        over = {"server": {"connections": 40, "trusted_proxies": ["127.0.0.1/32"]}}
        async with running(over) as lab, crowd(lab.port(), 15):
            await until(lambda: len(lab.gateway.connections) == 15)
            assert (await lab.client.get("/health")).status_code == 200

    async def test_places_come_back(self) -> None:
        async with running({"server": {"connections": 40}}) as lab:
            for _ in range(3):
                async with crowd(lab.port(), 10):
                    await until(lambda: len(lab.gateway.connections) == 10)
                await until(lambda: not lab.gateway.connections)
            budget = lab.gateway.budgets["api"]
            assert not budget._of_address
            assert budget.held == 0

    async def test_a_reload_changes_them(self, lab: Lab) -> None:
        assert lab.reconfigure({"server": {"connections": 4}}) is None
        async with crowd(lab.port(), 1), lab.raw() as second:
            status, _ = await second.answer()
            assert status == 429


class TestBodies:
    @pytest.mark.parametrize("port", TCP)
    async def test_a_large_one_is_refused_on_every_port(self, port: str) -> None:
        async with running({"server": {"max_body_bytes": 10_000}}) as lab, Raw(lab.port(port)) as client:
            await client.send(b"POST /management/keys HTTP/1.1\r\nhost: x\r\ncontent-length: 300000000\r\n\r\n{")
            status, body = await client.answer()
            assert (status, code_of(body)) == (413, "request_too_large")
            assert await rest(client) == b""

    @pytest.mark.parametrize("port", TCP)
    async def test_one_without_a_length_is_not_kept_either(self, port: str) -> None:
        async with running({"server": {"max_body_bytes": 10_000}}) as lab, Raw(lab.port(port)) as client:
            await client.send(b"POST /management/keys HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            status, _ = await client.answer()
            assert status in (401, 404)  # at once: nobody waits for the body of who may not ask
            with contextlib.suppress(OSError):
                for _ in range(50):
                    await client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            assert all(budget.held == 0 for budget in lab.gateway.budgets.values())

    async def test_management_asks_who_is_there_before_it_reads(self, lab: Lab) -> None:
        async with Raw(lab.port("management")) as client:
            await client.send(b"POST /management/keys HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
            status, body = await client.answer()
            assert (status, code_of(body)) == (401, "missing_api_key")

    @pytest.mark.parametrize("port", ["api", "management"])
    async def test_one_that_drips_ends_by_a_total_deadline(self, port: str) -> None:
        async with running({"server": {"body_timeout": 0.6}}) as lab, Raw(lab.port(port)) as client:
            _, key = lab.key(role="admin")
            path = "/v1/chat/completions" if port == "api" else "/management/keys"
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {key['authorization']}\r\ncontent-length: 5000"
            await client.send(head.encode() + b"\r\n\r\n")

            async def drip() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        await client.send(b"{")
                        await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            status, body = await asyncio.wait_for(client.answer(), 5.0)
            assert (status, code_of(body)) == (408, "body_timeout")
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)

    async def test_one_that_is_refused_does_not_drip_for_ever(self) -> None:
        """It is answered before it has come; what comes of it then is dropped, for as long as a body may take."""
        async with running({"server": {"body_timeout": 0.6}}) as lab, lab.raw() as client:
            await client.send(b"POST /nope HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n{")
            assert (await client.answer())[0] == 404
            for _ in range(100):
                if client.reader.at_eof():
                    break
                with contextlib.suppress(OSError):
                    await client.send(b"{")
                with contextlib.suppress(TimeoutError):
                    assert await asyncio.wait_for(client.reader.read(1), 0.05) == b""
            assert client.reader.at_eof()

    async def test_all_together_have_a_bound(self) -> None:
        over = {"server": {"max_body_bytes": 100_000, "max_held_bytes": 150_000, "body_timeout": 20.0}}
        async with running(over) as lab, lab.raw() as first, lab.raw() as second:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
            await first.send(head + b" " * 90_000)
            await until(lambda: lab.gateway.budgets["api"].held == 90_000)
            await second.send(head + b" " * 90_000)
            status, body = await second.answer()
            assert (status, code_of(body)) == (503, "gateway_overloaded")
            first.abort()
            await until(lambda: lab.gateway.budgets["api"].held == 0)
            assert (await lab.chat()).status_code == 200


class TestPipelines:
    async def test_end_with_their_client_however_much_it_has_sent(self, lab: Lab) -> None:
        simulator = lab.simulators["phi"]
        simulator.default = Act(delay=30)
        async with lab.raw() as client:
            for _ in range(40):
                await client.post(CHAT)
            await until(lambda: simulator.running == 1)
            sending = asyncio.create_task(client.send(b"x" * 20_000_000))
            await asyncio.sleep(0.1)
            client.abort()
            await asyncio.gather(sending, return_exceptions=True)
            await until(lambda: simulator.seen[0].state == "aborted", 2.0)
        await lab.settled()
        assert len(simulator.seen) == 1

    async def test_what_is_too_far_ahead_may_come_again(self, lab: Lab) -> None:
        lab.simulators["phi"].default = Act(delay=0.05)
        async with lab.raw() as client:
            for _ in range(40):
                await client.post(CHAT)
            answers = (await rest(client)).split(b"HTTP/1.1 ")[1:]
        assert 2 <= len(answers) < 40
        assert all(answer.startswith(b"200") for answer in answers)
        assert b"connection: close" in answers[-1]
        await lab.settled()


async def test_a_refusal_of_the_protocol_is_told_logged_and_counted(lab: Lab) -> None:
    async with lab.raw() as client:
        await client.send(b"GET / HTTP/1.1\r\nx-request-id: mine-1\r\n\r\n")
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert " 400 " in head.splitlines()[0]
    assert "x-request-id: mine-1" in head
    assert "x-content-type-options: nosniff" in head
    (record,) = lab.records()
    assert (record["request_id"], record["status"], record["error"]) == ("mine-1", 400, "invalid_host")
    assert lab.metric("llm_rejections_total", model="unknown", reason="invalid_host") == 1
