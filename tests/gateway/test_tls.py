"""TLS on the clients' port: 1.3, from files, taken over when they change, and told about in words that help."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import struct
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from citadel_gateway import server
from citadel_gateway.config import ConfigError, Tls
from citadel_gateway.tls import check
from tests.certificates import made
from tests.gateway.harness import MESSAGES, Lab, Raw, events, running, text_of
from tests.gateway.simulator import Act, until


def put(new: str, old: str) -> None:
    Path(new).replace(old)


def trusting(tls: Tls) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=tls.certificate)


def secured(lab: Lab, tls: Tls) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"https://127.0.0.1:{lab.port()}", verify=trusting(tls), trust_env=False)


@pytest.fixture
def pair(tmp_path: Path) -> Tls:
    return made(tmp_path, "one")


def settings(tls: Tls) -> dict[str, Any]:
    return {"server": {"tls": tls.model_dump()}}


@pytest.mark.anyio
class TestServing:
    async def test_answers_and_streams(self, pair: Tls) -> None:
        async with running(settings(pair)) as lab, secured(lab, pair) as client:
            lab.simulators["phi"].default = Act(tokens=200)
            body: dict[str, Any] = {"messages": MESSAGES}
            for _ in range(3):
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                assert text_of(events(await answer.aread())) == "word " * 200
            large = {"messages": [{"role": "user", "content": "x" * 20_000}], "pad": "y" * 2_000_000}
            assert (await client.post("/v1/chat/completions", json=large)).status_code in (200, 400)
            await lab.settled()

    async def test_nothing_older_than_1_3(self, pair: Tls) -> None:
        async with running(settings(pair)) as lab:
            context = trusting(pair)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", lab.port(), ssl=context)
            _, writer = await asyncio.open_connection("127.0.0.1", lab.port(), ssl=trusting(pair))
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def test_the_days_left_are_a_metric(self, pair: Tls) -> None:
        async with running(settings(pair)) as lab:
            left = lab.metric("llm_tls_certificate_expiry_seconds")
            assert 29 * 86400 < left <= 30 * 86400

    async def test_an_unfinished_handshake_counts_and_ends(self, pair: Tls) -> None:
        over = {"server": {"tls": pair.model_dump(), "connections": 8, "header_timeout": 0.5}}
        async with running(over) as lab:
            idle = [await Raw(lab.port()).__aenter__() for _ in range(2)]
            await until(lambda: len(lab.gateway.connections) == 2)
            third = await Raw(lab.port()).__aenter__()
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(third.reader.read(), 5.0) == b""
            await until(lambda: not lab.gateway.connections, 5.0)
            for left in (*idle, third):
                await left.__aexit__()
            async with secured(lab, pair) as client:
                assert (await client.get("/health")).status_code == 200

    async def test_who_speaks_plainly_is_let_go(self, pair: Tls) -> None:
        async with running(settings(pair)) as lab, lab.raw() as client:
            await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert not (await asyncio.wait_for(client.reader.read(), 5.0)).startswith(b"HTTP")
            await until(lambda: not lab.gateway.connections)


@pytest.mark.anyio
class TestRenewal:
    async def test_without_cutting_a_stream(self, pair: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "_LOOK_AT_FILES", 0.05)
        async with running(settings(pair)) as lab, secured(lab, pair) as client:
            simulator = lab.simulators["phi"]
            simulator.default = Act(tokens=50, gap=0.02)

            async def stream() -> str:
                body = {"messages": MESSAGES, "stream": True}
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    return text_of(events(await answer.aread()))

            streaming = asyncio.create_task(stream())
            await until(lambda: simulator.running == 1)
            fresh = await asyncio.to_thread(made, tmp_path, "two", 60)
            put(fresh.key, pair.key)
            put(fresh.certificate, pair.certificate)
            await until(lambda: lab.metric("llm_tls_certificate_expiry_seconds") > 59 * 86400)
            async with secured(lab, pair) as other:  # it trusts the new one only
                assert (await other.get("/health")).status_code == 200
            assert await streaming == "word " * 50
            assert any(record["event"] == "certificate" for record in lab.records("audit"))

    async def test_a_pair_that_is_wrong_changes_nothing(
        self, pair: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "_LOOK_AT_FILES", 0.05)
        async with running(settings(pair)) as lab:
            trusted = trusting(pair)
            other = await asyncio.to_thread(made, tmp_path, "other")
            put(other.certificate, pair.certificate)

            def refused() -> bool:
                return any(record["event"] == "certificate" for record in lab.records("audit"))

            await until(refused)
            url = f"https://127.0.0.1:{lab.port()}/health"
            async with httpx.AsyncClient(verify=trusted, trust_env=False) as client:
                assert (await client.get(url)).status_code == 200


class TestFiles:
    def test_a_good_pair(self, pair: Tls) -> None:
        assert check(pair) > 29 * 86400

    def test_what_is_wrong_is_said(self, pair: Tls, tmp_path: Path) -> None:
        other = made(tmp_path, "other")
        garbage = tmp_path / "garbage"
        garbage.write_text("garbage")
        locked = tmp_path / "locked.key"
        lock = ["openssl", "pkcs8", "-topk8", "-in", pair.key, "-out", str(locked), "-passout", "pass:secret"]
        subprocess.run(lock, check=True, capture_output=True)
        for tls, words in (
            (Tls(certificate="/nowhere", key=pair.key), "server.tls.certificate: /nowhere cannot be read"),
            (Tls(certificate=pair.certificate, key="/nowhere"), "server.tls.key: /nowhere cannot be read"),
            (Tls(certificate=str(garbage), key=pair.key), "is not a certificate in PEM"),
            (Tls(certificate=pair.certificate, key=str(garbage)), "is not a private key"),
            (Tls(certificate=pair.certificate, key=str(locked)), "is not a private key without a pass phrase"),
            (Tls(certificate=pair.certificate, key=other.key), f"is not the key of {pair.certificate}"),
        ):
            with pytest.raises(ConfigError) as error:
                check(tls)
            assert words in str(error.value)
            assert "\n" not in str(error.value)

    def test_an_old_one_is_refused(self, tmp_path: Path) -> None:
        old = made(tmp_path, "old", days=-1)
        with pytest.raises(ConfigError, match=r"expired on 2020-02-01 00:00 UTC; renew it"):
            check(old)


@pytest.mark.anyio
async def test_who_leaves_before_the_handshake_takes_no_place(pair: Tls) -> None:
    """As whoever only looks which ports are open."""
    async with running(settings(pair)) as lab:
        for hello in (b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n"):
            for _ in range(100):
                with socket.socket() as looker:
                    looker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    looker.connect(("127.0.0.1", lab.port()))
                    looker.send(hello)
                await asyncio.sleep(0)
        await until(lambda: not lab.gateway.connections)


@pytest.mark.anyio
async def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(pair: Tls) -> None:
    """Of a client on the same host, as a deployment's proof is one."""

    def ask(port: int) -> int:
        client = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=trusting(pair))
        client.request("GET", "/v1/models")
        status = client.getresponse().status
        client.close()
        return status

    async with running(settings(pair)) as lab:
        assert {await asyncio.to_thread(ask, lab.port()) for _ in range(50)} == {200}
        await until(lambda: not lab.gateway.connections)
