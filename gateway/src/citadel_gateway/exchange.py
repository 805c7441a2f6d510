"""One request and what the stations learn about it, from the first byte to the record."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from citadel_gateway.identity import NOBODY

if TYPE_CHECKING:
    from citadel_gateway.admission import Permit
    from citadel_gateway.fleet import Model, Replica
    from citadel_gateway.limits import Reservation
    from citadel_gateway.protocol import Cycle

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_GIVEN_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}").fullmatch
_boot = os.urandom(5).hex()
_serial = itertools.count(1)


def request_id(given: bytes | None) -> str:
    """The client's own id if it is one, else a new one; unique over restarts by its prefix."""
    if given is not None and _GIVEN_ID(given):
        return given.decode("ascii")
    return f"req-{_boot}-{next(_serial):x}"


class Exchange:
    __slots__ = (
        "address",
        "body",
        "bytes_out",
        "cached_tokens",
        "client",
        "client_deadline",
        "completion_tokens",
        "cut",
        "deadline",
        "endpoint",
        "error_code",
        "fallback_allowed",
        "first_byte",
        "given_model",
        "headers",
        "id",
        "max_tokens",
        "method",
        "model",
        "on_replica",
        "outcome",
        "path",
        "permit",
        "principal",
        "priority",
        "prompt_estimate",
        "prompt_tokens",
        "queued",
        "read_blocked",
        "replica",
        "reservation",
        "retries",
        "session",
        "started",
        "status",
        "stream",
        "strip_usage",
        "task",
        "upstream_started",
        "usage_exact",
        "write_blocked",
    )

    def __init__(self, scope: Scope, endpoint: str, address: str) -> None:
        self.started = time.monotonic()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self.headers = headers
        self.id = request_id(headers.get(b"x-request-id"))
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.endpoint = endpoint
        self.address = address
        self.client: Cycle | None = scope.get("citadel.client")
        self.task: asyncio.Task[Any] | None = None
        self.cut: tuple[int, str, str] | None = None  # why the gateway itself ends this exchange
        # identity
        self.principal = NOBODY
        # envelope
        self.body = b""
        self.read_blocked = 0.0  # since when the client keeps us waiting for its body
        self.stream = False
        self.strip_usage = False
        self.given_model: str | None = None
        self.max_tokens = 0
        self.prompt_estimate = 0
        self.session: str | None = None
        self.priority = 1
        self.fallback_allowed = False
        self.client_deadline: float | None = None
        self.deadline = 0.0
        self.model: Model | None = None
        # reservation, admission, route
        self.reservation: Reservation | None = None
        self.permit: Permit | None = None
        self.replica: Replica | None = None
        self.on_replica = False
        self.queued = 0.0
        # relay
        self.retries = 0
        self.upstream_started = 0.0
        self.first_byte = 0.0
        self.write_blocked = 0.0  # since when the client takes nothing
        self.bytes_out = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.usage_exact = False
        # what the client saw
        self.status = 0
        self.outcome = 0  # what it came to in the end, where that is not the status: 499, 503, 504
        self.error_code: str | None = None

    async def answer(self, send: Send, headers: Headers, body: bytes) -> None:
        """The whole answer at once: the short way through our own protocol, if it is there and the client reads."""
        self.bytes_out = len(body)
        headers.append((b"content-length", b"%d" % len(body)))
        if self.client is not None and self.client.respond(self.status, headers, body):
            return
        self.write_blocked = time.monotonic()
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self.write_blocked = 0.0

    def pass_at_once(self, data: bytes) -> bool:
        """A piece of a stream the short way, if there is one and the client reads."""
        if self.client is None or not self.client.write(data):
            return False
        self.bytes_out += len(data)
        return True

    async def pass_on(self, send: Send, data: bytes) -> None:
        """A piece of a stream, however slowly the client reads."""
        if self.pass_at_once(data):
            return
        self.bytes_out += len(data)
        self.write_blocked = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self.write_blocked = 0.0
