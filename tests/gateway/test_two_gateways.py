"""Two gateways, of which one is a process of its own, at one Redis: what their clients see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.gateway.harness import MESSAGES, PLENTY, Lab, code_of, running
from tests.gateway.redis_server import RedisServer, redis
from tests.gateway.simulator import Act, eventually, until

__all__ = ["redis"]

pytestmark = pytest.mark.anyio

SOURCE = Path(__file__).parents[2] / "gateway" / "src"
PATIENT = 1000.0


def shared(server: RedisServer, tier: dict[str, Any], timeout: float = PATIENT, **limits: Any) -> dict[str, Any]:
    return {
        "redis": {"address": server.address, "timeout_ms": timeout},
        "limits": {"shared": True, "tiers": {"default": {"max_priority": "critical"}, "tight": tier}, **limits},
    }


@contextlib.asynccontextmanager
async def two(
    server: RedisServer, tier: dict[str, Any]
) -> AsyncIterator[tuple[Lab, httpx.AsyncClient, subprocess.Popen[bytes], dict[str, str]]]:
    async with running(shared(server, tier)) as lab:
        await until(lambda: lab.gateway.redis["limits"].up)
        _, header = lab.key(tier="tight")
        with another(lab) as (process, port):
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=20.0, trust_env=False) as client:

                async def there() -> bool:
                    with contextlib.suppress(httpx.TransportError):
                        report = (await client.get("/health/detailed")).json()
                        states = report["status"], report["dependencies"]["redis"]["limits"]["counted"]
                        return states == ("healthy", "shared")
                    return False

                await eventually(there, 20.0)
                yield lab, client, process, header


@contextlib.contextmanager
def another(lab: Lab) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A gateway with the same keys, models and Redis."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = {"access": str(lab.folder / "other-access.log"), "audit": str(lab.folder / "other-audit.log")}
    path = lab.folder / "other.yml"
    path.write_text(yaml.safe_dump({**lab.config, "logs": logs}))
    words = ["-m", "citadel_gateway", "serve", "--config", str(path), "--bind", f"api=127.0.0.1:{port}"]
    with (lab.folder / "other.log").open("wb") as log:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=log, stderr=log)
        try:
            yield process, port
        finally:
            process.kill()
            process.wait()


def ask(client: httpx.AsyncClient, header: dict[str, str], **body: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": MESSAGES, **body}, headers=header)


async def test_a_key_has_its_limit_once_and_not_at_each_gateway(redis: RedisServer) -> None:
    async with two(redis, {"requests_per_minute": 25}) as (lab, other, _, header):
        answers = await asyncio.gather(*(ask(client, header) for client in (lab.client, other) * 30))
        assert sorted({answer.status_code for answer in answers}) == [200, 429]
        passed = [answer for answer in answers if answer.status_code == 200]
        assert len(passed) == 25
        left = sorted(int(answer.headers["x-ratelimit-remaining-requests"]) for answer in passed)
        assert left == list(range(25))
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert code_of(refused) == "rate_limit_exceeded"
        assert 0 < float(refused.headers["retry-after"]) <= 61
        assert lab.metric("llm_redis_up", use="limits") == 1
        assert lab.metric("llm_limits_local_total") == 0
        await lab.settled()


async def test_what_a_killed_gateway_ran_is_free_when_its_lease_has_ended(redis: RedisServer) -> None:
    async with two(redis, {"concurrent": 1}) as (lab, other, process, header):
        lab.simulators["phi"].script.append(Act(delay=30.0))
        running_there = asyncio.ensure_future(ask(other, header))
        await until(lambda: lab.simulators["phi"].running == 1)
        answer = await ask(lab.client, header)
        assert (answer.status_code, code_of(answer)) == (429, "concurrency_limit_exceeded")
        process.kill()
        with pytest.raises(httpx.TransportError):
            await running_there
        assert (await ask(lab.client, header)).status_code == 429
        own = lab.gateway.limits.shared
        assert own is not None
        leases = redis.ask("KEYS", "llm:gateway:*").decode().split("\r\n")[2::2]
        (dead,) = [lease for lease in leases if lease and lease != own.lease]
        assert 0 < int(redis.ask("PTTL", dead)[1:]) <= 15_000
        redis.ask("PEXPIRE", dead, "1")  # nobody renews it; the test does not wait so long
        await until(lambda: redis.ask("EXISTS", dead) == b":0\r\n")
        assert (await ask(lab.client, header)).status_code == 200


async def test_a_redis_that_stands_still_costs_little_and_once_and_is_told_of(redis: RedisServer) -> None:
    async with running(shared(redis, {"requests_per_minute": 5}, 300.0)) as lab:
        await until(lambda: lab.gateway.redis["limits"].up)
        _, header = lab.key(tier="tight")
        assert (await ask(lab.client, header)).status_code == 200
        redis.pause()
        begun = time.monotonic()
        assert (await ask(lab.client, header)).status_code == 200
        assert 0.3 <= time.monotonic() - begun < 1.5
        begun = time.monotonic()
        answers = [(await ask(lab.client, header)).status_code for _ in range(5)]
        assert answers == [200, 200, 200, 429, 429]  # its own limit holds
        assert time.monotonic() - begun < 1.5
        report = (await lab.client.get(lab.url("health") + "/health/detailed")).json()
        assert report["status"] == "healthy"
        assert report["dependencies"]["redis"]["status"] == "unavailable"
        limits = report["dependencies"]["redis"]["limits"]
        assert (limits["reason"], limits["counted"]) == ("no answer within 300 ms", "local")
        assert lab.metric("llm_redis_up", use="limits") == 0
        assert lab.metric("llm_limits_local_total") == 4
        redis.resume()
        await until(lambda: lab.gateway.redis["limits"].up)
        assert lab.metric("llm_redis_up", use="limits") == 1
        await lab.settled()


async def test_who_leaves_while_redis_is_asked_holds_nothing(redis: RedisServer) -> None:
    async with running(shared(redis, {})) as lab:
        await until(lambda: lab.gateway.redis["limits"].up)
        redis.pause()
        async with lab.raw() as client:
            await client.post({"messages": MESSAGES})
            await until(lambda: lab.gateway.limits.open == 1)
            client.abort()
            await until(lambda: lab.gateway.limits.open == 0)
        redis.resume()
        user = "address:127.0.0.1"
        await until(lambda: redis.ask("EXISTS", f"llm:concurrent:unknown:{user}") == b":0\r\n")
        assert lab.gateway.redis["limits"].up
        await lab.settled()
        assert not lab.simulators["phi"].seen or all(seen.state != "running" for seen in lab.simulators["phi"].seen)


async def test_a_stand_in_takes_the_place_in_redis_too(redis: RedisServer) -> None:
    classes = {"heavy": {"requests_per_minute": 9}, "light": {"requests_per_minute": 9}}
    models: dict[str, dict[str, Any]] = {
        "big": {"limit_class": "heavy", "concurrency": 1, "queue": 0, "fallback": ["small"]},
        "small": {"limit_class": "light"},
    }
    over = {**shared(redis, {}, classes=classes, address=PLENTY), "routing": {"fallback": "always"}}
    async with running(over, models=models) as lab:
        await until(lambda: lab.gateway.redis["limits"].up)
        key, header = lab.key(tier="tight")
        lab.simulators["big"].gate.clear()
        first = asyncio.ensure_future(ask(lab.client, header, model="big"))
        await until(lambda: lab.simulators["big"].running == 1)
        second = await ask(lab.client, header, model="big")
        assert second.headers["x-citadel-model"] == "small"
        lab.simulators["big"].gate.set()
        assert (await first).status_code == 200

        def counted(model: str) -> bytes:
            return redis.ask("HGET", f"llm:ratelimit:key:{key}:{model}", "mn").split(b"\r\n")[1]

        await until(lambda: (counted("big"), counted("small")) == (b"1", b"1"))
        await lab.settled()


async def test_a_gateway_that_stops_lets_go_at_once(redis: RedisServer) -> None:
    async with running(shared(redis, {})) as lab:
        await until(lambda: lab.gateway.redis["limits"].up)
        assert redis.ask("KEYS", "llm:gateway:*").startswith(b"*1")
    assert redis.ask("KEYS", "llm:gateway:*").startswith(b"*0")
