"""A companion in the loop of the test, beside a gateway that does what a script tells it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from citadel_companion.app import application
from citadel_companion.config import Config
from citadel_companion.runner import OVER, Runner
from tests.gateway.simulator import eventually

CHAT: Final = "/v1/chat/completions"


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def said(self) -> str:
        return str(self.body["messages"][0]["content"])


@dataclass
class Reply:
    status: int = 200
    body: bytes = b'{"id":"cmpl-1","choices":[]}'
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, code: str, **headers: str) -> Reply:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps({"error": {"message": f"{code}.", "code": code}}).encode(), told)


class FakeGateway:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[Request] = []
        self.script: deque[Reply] = deque()
        self.rule: Callable[[Request], Reply | None] = lambda _: None
        self.gate = asyncio.Event()  # while it is cleared, nothing is answered
        self.gate.set()
        self.running = self.most = self.left = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    def holds_two(self) -> bool:
        """As many as are asked at once, and none of them is answered."""
        return self.running == 2 and not self.gate.is_set()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await self._one(reader, writer)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(first.split()[1], headers, json.loads(body))
        self.seen.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        open_ = asyncio.create_task(self.gate.wait())
        gone = asyncio.create_task(reader.read(1))
        await asyncio.wait({open_, gone}, return_when=asyncio.FIRST_COMPLETED)
        self.running -= 1
        if not open_.done():
            open_.cancel()
            self.left += 1
            raise ConnectionResetError
        gone.cancel()
        reply = self.script.popleft() if self.script else self.rule(request) or Reply()
        told = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        number = len(self.seen)
        head = f"HTTP/1.1 {reply.status} X\r\ncontent-type: application/json\r\nx-request-id: req-{number}\r\n{told}"
        writer.write(f"{head}connection: close\r\ncontent-length: {len(reply.body)}\r\n\r\n".encode() + reply.body)
        await writer.drain()
        raise ConnectionResetError


class Client:
    """What somebody asks of the companion, as the gateway would tell it."""

    def __init__(self, client: httpx.AsyncClient, user: str = "key:a", role: str = "user") -> None:
        self._client = client
        self._headers = {"x-citadel-principal": user, "x-citadel-role": role, "x-citadel-address": "192.0.2.1"}

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return await self._client.request(method, path, headers=self._headers, **more)

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.ask("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def upload(self, content: bytes, name: str = "a.jsonl", **fields: str) -> httpx.Response:
        return await self.ask("POST", "/v1/files", files={"file": (name, content)}, data={"purpose": "batch", **fields})

    async def batch(self, content: bytes, **more: Any) -> Any:
        file = (await self.upload(content)).json()["id"]
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **more}
        answer = await self.ask("POST", "/v1/batches", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def over(self, batch: Any, seconds: float = 20.0) -> Any:
        """How it has ended."""
        found: Any = None

        async def ended() -> bool:
            nonlocal found
            found = await self.get(f"/v1/batches/{batch['id']}")
            return found["status"] in OVER

        await eventually(ended, seconds)
        return found

    async def results(self, ident: str | None) -> list[Any]:
        if ident is None:
            return []
        answer = await self.ask("GET", f"/v1/files/{ident}/content")
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]


@dataclass
class Beside:
    """What a test holds."""

    config: Config
    gateway: FakeGateway
    http: httpx.AsyncClient
    runner: Runner

    def client(self, user: str = "key:a", role: str = "user") -> Client:
        return Client(self.http, user, role)


@contextlib.asynccontextmanager
async def companion(config: Config, gateway: FakeGateway) -> AsyncIterator[Beside]:
    app = application(config)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://companion", timeout=30) as http:

            async def ready() -> bool:
                return "citadel_companion_batches_ready 1.0" in (await http.get("/metrics")).text

            await eventually(ready, 20)
            yield Beside(config, gateway, http, app.state.runner)


def request(custom_id: str, said: str = "", **more: Any) -> dict[str, Any]:
    body = {"model": "phi", "messages": [{"role": "user", "content": said or custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {**body, **more}}


def jsonl(*lines: Any) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
