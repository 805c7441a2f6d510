"""One request and what the stations learn about it, from the first byte to the record."""

from __future__ import annotations

import itertools
import os
import re
import time
from typing import TYPE_CHECKING

from citadel_gateway.compression import compressed
from citadel_gateway.identity import NOBODY

if TYPE_CHECKING:
    import asyncio

    from citadel_gateway.admission import Permit
    from citadel_gateway.cache import Lookup
    from citadel_gateway.fleet import Model, Replica
    from citadel_gateway.limits import Reservation
    from citadel_gateway.protocol import Cycle
    from citadel_gateway.tracing import Trace

_GIVEN_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}").fullmatch
_WITHOUT_BODY = (204, 304)
_boot = os.urandom(5).hex()
_serial = itertools.count(1)


def request_id(given: bytes | None) -> str:
    """The client's own id if it is one, else a new one; unique over restarts by its prefix."""
    if given is not None and _GIVEN_ID(given):
        return given.decode("ascii")
    return f"req-{_boot}-{next(_serial):x}"


def header_lines(*headers: tuple[bytes, bytes]) -> bytes:
    """Headers as they are sent: what is the same in many answers is put together once."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class Exchange:
    """Most of what is learnt is the same for most requests, and stands in the class until then."""

    # envelope
    body = b""
    original = b""  # as the client sent it, where another model may answer
    stream = False
    strip_usage = False
    max_tokens = 0
    prompt_estimate = 0
    session: str | None = None
    priority = 1
    fallback_allowed = False
    passed: tuple[str, ...] = ()  # models that could not take it
    client_deadline: float | None = None
    deadline = 0.0
    model: Model | None = None
    # reservation, admission, route
    reservation: Reservation | None = None
    permit: Permit | None = None
    replica: Replica | None = None
    on_replica = False
    queued = 0.0
    # relay
    sources = b""  # of the knowledge that was put into the context, in JSON
    more_lines = b""  # headers that steps have added
    retries = 0
    deaths = 0  # of engines that had it in flight
    turn: asyncio.Lock | None = None  # among those that an engine may have died of
    upstream_started = 0.0
    first_byte = 0.0
    write_blocked = 0.0  # since when the client takes nothing
    bytes_out = 0
    prompt_tokens = 0
    completion_tokens = 0
    cached_tokens = 0
    usage_exact = False
    kept: list[bytes] | None = None  # the answer, for the steps that want it
    room = 0  # bytes of it that may yet be kept
    cache = ""  # hit, miss or bypass, where an answer of the cache was wanted
    lookup: Lookup | None = None
    charged = 0  # tokens, in the end
    trace: Trace | None = None  # where its spans are wanted
    trace_lines = b""  # for the replica, where the gateway traces at all
    # what the client saw
    status = 0
    outcome = 0  # what it came to in the end, where that is not the status: 499, 503, 504
    error_code: str | None = None
    cancelled = False  # the client left, or for this reason of the gateway's own:
    cut: tuple[int, str, str] | None = None

    def __init__(self, client: Cycle, endpoint: str, address: str) -> None:
        self.started = time.monotonic()
        self.client = client
        headers = self.headers = client.headers
        self.id = request_id(headers.get(b"x-request-id"))
        self.method = client.method
        self.path = client.path
        self.endpoint = endpoint
        self.address = address
        self.task: asyncio.Task[None] | None = client.task
        self.principal = NOBODY

    async def answer(self, lines: bytes, body: bytes) -> None:
        """The whole answer at once, compressed if the client takes that and it is worth it."""
        client = self.client
        accepted = self.headers.get(b"accept-encoding")
        if accepted is not None and len(body) >= client.compress_from:
            coded, body = await compressed(body, accepted)
            lines += coded
        await self.send(lines, body)

    async def send(self, lines: bytes, body: bytes) -> None:
        """The same as it is."""
        client = self.client
        self.bytes_out = len(body)
        if self.status not in _WITHOUT_BODY:
            lines = b"%bcontent-length: %d\r\n" % (lines, len(body))
        while not client.respond(self.status, lines, body):
            await self._drained()

    async def begin(self, lines: bytes) -> None:
        """The head of a stream."""
        await self._drained()
        self.client.begin(self.status, lines)

    def pass_at_once(self, data: bytes) -> bool:
        """A piece of a stream, if the client reads."""
        if not self.client.write(data):
            return False
        self.bytes_out += len(data)
        return True

    async def pass_on(self, data: bytes) -> None:
        """A piece of a stream, however slowly the client reads."""
        while not self.pass_at_once(data):
            await self._drained()

    async def end(self, data: bytes = b"") -> None:
        if data:
            await self.pass_on(data)
        self.client.end()

    def keep_up_to(self, most: int) -> None:
        self.kept = []
        self.room = max(self.room, most)

    def keep(self, data: bytes) -> None:
        """A piece of the answer. What is too long for those who want it is let go at once."""
        kept = self.kept
        if kept is None:
            return
        self.room -= len(data)
        if self.room < 0:
            self.kept = None
        else:
            kept.append(data)

    async def _drained(self) -> None:
        self.write_blocked = time.monotonic()
        await self.client.drained()
        self.write_blocked = 0.0
