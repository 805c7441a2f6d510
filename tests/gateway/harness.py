"""A gateway with simulated models, in the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from citadel_gateway import config as configuration
from citadel_gateway.budget import Budget
from citadel_gateway.exchange import Exchange
from citadel_gateway.gateway import Gateway
from citadel_gateway.protocol import ClientConnection, Cycle
from citadel_gateway.server import Process
from tests.gateway.simulator import Simulator, until

MESSAGES = [{"role": "user", "content": "hello"}]
PLENTY = {"concurrent": 1000}

BASE: dict[str, Any] = {
    "auth": {"anonymous": {"enabled": True, "tier": "default"}},
    "server": {"drain": 5.0, "write_timeout": 2.0, "body_timeout": 2.0, "header_timeout": 2.0},
    "limits": {"overall": None, "address": PLENTY, "tiers": {"default": {"max_priority": "critical"}}},
    "health": {"interval": 0.5, "awaited_interval": 0.03, "down_interval": 0.1, "timeout": 1.0, "stalled_after": 60.0},
    "breaker": {"window": 10.0, "minimum": 4, "recovery": 0.4, "half_open_calls": 2},
    "retry": {"backoff": 0.01},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


class Lab:
    """What a test holds: the gateway, its clients, and the simulators behind it."""

    def __init__(self, process: Process, folder: Path, config: dict[str, Any]) -> None:
        self.process = process
        self.gateway: Gateway = process.gateway
        self.folder = folder
        self.config = config
        self.simulators: dict[str, Simulator] = {}
        self.client = httpx.AsyncClient(
            base_url=self.url(), timeout=20.0, trust_env=False, limits=httpx.Limits(max_connections=1000)
        )

    def port(self, name: str = "api") -> int:
        return int(self.process.ports[name])

    def url(self, name: str = "api") -> str:
        return f"http://127.0.0.1:{self.port(name)}"

    async def chat(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={"messages": MESSAGES, **body}, headers=headers)

    async def stream(self, headers: dict[str, str] | None = None, **body: Any) -> list[Any]:
        """The data of all events, parsed; [DONE] as it is."""
        async with self.client.stream(
            "POST", "/v1/chat/completions", json={"messages": MESSAGES, "stream": True, **body}, headers=headers
        ) as answer:
            return events(await answer.aread())

    def key(self, **options: Any) -> tuple[str, dict[str, str]]:
        """A new key's id, and the header that shows it."""
        key, secret = self.gateway.keys.create("test", **options)
        self.gateway.keys_changed()
        return key.id, {"authorization": f"Bearer {secret}"}

    def reconfigure(self, over: dict[str, Any]) -> str | None:
        """Write a changed file and reload it."""
        self.config = merged(self.config, over)
        self.gateway.path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        return self.gateway.reload()

    def records(self, log: str = "access") -> list[dict[str, Any]]:
        self.gateway.access.flush()
        self.gateway.audit.flush()
        path = self.folder / f"{log}.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0

    async def settled(self) -> None:
        """Everything that was taken has come back: nothing runs, waits, or is reserved, here or upstream."""
        gateway = self.gateway
        await until(lambda: not gateway.walk.running)
        assert gateway.admission.in_flight == 0
        assert gateway.admission.waiting == 0
        assert abs(gateway.admission.common_used) < 1e-9
        assert gateway.limits.open == gateway.limits.leaked() == 0
        assert all(replica.in_flight == 0 for replica in gateway.fleet.replicas())
        assert all(lane.waiting == 0 and lane.cost == 0 for lane in gateway.admission.lanes.values())
        for simulator in self.simulators.values():
            await until(simulator.is_idle)
        await until(lambda: not exchanges_alive())

    def raw(self) -> Raw:
        return Raw(self.port())


def exchanges_alive() -> int:
    """What a finished request would leave in memory if something still held it."""
    gc.collect()
    return sum(isinstance(thing, Exchange) for thing in gc.get_objects())


def nobody() -> Cycle:
    """A request that came from nowhere."""

    async def serve(cycle: Cycle) -> None:
        """Nothing answers it."""

    return Cycle(ClientConnection(serve, Budget(configuration.Server(), set())), "POST", "/", {})


class Raw:
    """A client that does what no library would."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, body: Any, path: str = "/v1/chat/completions", headers: str = "") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(content)}\r\n\r\n"
        await self.send(head.encode() + content)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of one answer with a length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        return int(head.split(" ")[1]), await self.reader.readexactly(length)

    def abort(self) -> None:
        self.writer.transport.abort()


def code_of(body: bytes | httpx.Response) -> str:
    content = body.content if isinstance(body, httpx.Response) else body
    return str(json.loads(content)["error"]["code"])


def events(content: bytes) -> list[Any]:
    found: list[Any] = []
    for block in content.decode().split("\n\n"):
        if block.startswith("data: "):
            data = block[6:]
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def text_of(stream: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for event in stream
        if isinstance(event, dict)
        for choice in event.get("choices", [])
    )


@contextlib.asynccontextmanager
async def running(
    over: dict[str, Any] | None = None, *, models: dict[str, dict[str, Any]] | None = None, replicas: int = 1
) -> AsyncIterator[Lab]:
    """A gateway whose models (by default one, `phi`) have so many simulated replicas each."""
    # what other tests left in memory is neither ours to count nor to walk through
    gc.freeze()
    before = open_sockets()
    models = models or {"phi": {}}
    simulators: dict[str, Simulator] = {}
    settings = {}
    async with contextlib.AsyncExitStack() as stack:
        for name, model in models.items():
            served = []
            for number in range(1, replicas + 1):
                instance = name if replicas == 1 else f"{name}-{number}"
                simulator = Simulator(model.get("served_name", name))
                await simulator.start()
                stack.push_async_callback(simulator.close)
                simulators[instance] = simulator
                served.append({"name": instance, "url": simulator.url})
            settings[name] = {"context": 4096, "replicas": served, "load_seconds": 5.0, **model}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = {
            "auth": {"keys_file": str(folder / "keys.json")},
            "logs": {"access": str(folder / "access.log"), "audit": str(folder / "audit.log")},
            "models": settings,
        }
        config = merged(merged(BASE, own), over or {})
        path = folder / "gateway.yml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        bind = dict.fromkeys(("api", "management", "health", "export"), "127.0.0.1:0")
        bind["management_socket"] = str(folder / "management.sock")
        bind["inner"] = str(folder / "inner.sock")
        process = Process(configuration.load(path), path, bind)
        await process.start()
        stack.push_async_callback(process.stop)
        lab = Lab(process, folder, config)
        stack.push_async_callback(lab.client.aclose)
        lab.simulators = simulators
        await until(lambda: all(replica.state == "ready" for replica in lab.gateway.fleet.replicas()))
        yield lab
    # whatever was done to the connections, each of them is closed
    await until(lambda: open_sockets() <= before)


def open_sockets() -> int:
    count = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(file.readlink()).startswith("socket:")
    return count
