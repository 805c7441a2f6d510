"""HTTP/1.1 to a model server: the part of a client that the path needs, on asyncio and httptools.

Measured against pyreqwest, aiohttp and httpx (docs/decisions/010): no threads, so that a cancelled request closes
its socket in the same turn of the loop; reading stops while the client's side is slow; and every failure says
whether a byte of the answer had arrived. Admission bounds the connections, so the pool needs no queue.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import httptools

_HIGH_WATER = 256 * 1024
_MAX_HEADERS = 64 * 1024
_MAX_IDLE = 512
_FRESH = 4.0  # model servers close an idle connection after five seconds
_AT_ONCE = 0.25  # a reset that comes so soon on a used connection met one that was being closed

Sink = Callable[[bytes], bool]  # takes a piece of a body; False if it was one too many for now
Kind = Literal["refused", "unreachable", "reset", "timeout", "protocol", "local", "too_large"]
_LOCAL_ERRORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))


class UpstreamError(Exception):
    """Why there is no (whole) answer. `local` is the gateway's own want, never the replica's fault."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class Connection(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    __slots__ = (
        "_deadline",
        "_error",
        "_fires_at",
        "_header_bytes",
        "_length_known",
        "_parser",
        "_patience",
        "_paused",
        "_sink",
        "_timer",
        "_waiter",
        "busy",
        "chunks",
        "complete",
        "content_type",
        "headers_done",
        "loop",
        "pool",
        "reusable",
        "size",
        "status",
        "transport",
        "used",
    )

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.pool = pool
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.busy = False
        self.used = 0.0  # when its last request began
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0
        self._deadline = 0.0
        self._patience = 0.0
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.content_type = b"application/json"
        self.headers_done = False
        self.complete = False
        self.reusable = False
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self._error: UpstreamError | None = None
        self._paused = False
        self._sink: Sink | None = None
        self._header_bytes = 0
        self._length_known = False

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.pool.made(self)

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            self.abort()  # nobody asked: the next answer on this connection could not be trusted
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(UpstreamError("protocol", str(error) or "not HTTP"))

    def eof_received(self) -> None:
        # an answer without a length ends with the connection
        if self.busy and self.headers_done and not self._length_known:
            self.complete = True
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.lost(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.busy and not self.complete:
            self.fail(UpstreamError("reset", str(exc) if exc else "closed before the end of the answer"))

    # what httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MAX_HEADERS:
            raise httptools.HttpParserError("headers too large")
        if name == b"content-type":
            self.content_type = value
        elif name == b"content-length" or name == b"transfer-encoding":  # noqa: PLR1714 - the path
            self._length_known = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self._length_known = False
            return
        self.headers_done = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._sink is not None:
            if not self._sink(body):
                self._sink = None
                self._wake()
            return
        self.chunks.append(body)
        self.size += len(body)
        if self.size > _HIGH_WATER and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self.status < 200:
            return
        self.complete = True
        self.reusable = self._length_known and self._parser.should_keep_alive()
        self._wake()

    # what the path calls

    def request(self, data: bytes, most: float) -> asyncio.Future[None]:
        """Send; await what it returns for the headers of the answer. After `most` seconds the whole call fails."""
        self._reset()
        self.busy = True
        self._expire_in(most)
        waiter = self._waiter = self.loop.create_future()
        if self.transport is None:
            waiter.set_exception(UpstreamError("reset", "closed before it was used"))
        else:
            self.transport.write(data)
        return waiter

    async def read(self) -> bytes:
        """The bytes that have arrived, as many as there are; empty at the end."""
        while not self.chunks:
            if self.complete:
                return b""
            await self._more()
        return self._take()

    async def pour(self, sink: Sink) -> bool:
        """Give the rest of the body to `sink`, each piece in the very turn of the loop in which it arrives: what waits
        for it need not be woken for every token. False when the sink could not take on more, True at the end."""
        while True:
            if self.chunks:
                if not sink(self._take()):
                    return False
                continue
            if self.complete:
                return True
            waiter = self._more()
            self._sink = sink
            try:
                await waiter
                if self._sink is None:
                    return False
            finally:
                self._sink = None

    def _take(self) -> bytes:
        chunks = self.chunks
        data = chunks.popleft() if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.size = 0
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return data

    async def read_all(self, limit: int) -> bytes:
        """The whole body; nothing is said to the client before it is here."""
        parts: list[bytes] = []
        size = 0
        while self.chunks or not self.complete:
            if not self.chunks:
                await self._more()
                continue
            size += self.size
            if size > limit:
                raise UpstreamError("too_large", f"the answer is larger than {limit} bytes")
            parts.append(self._take())
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fail(self, error: UpstreamError) -> None:
        if self._error is None:
            self._error = error
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(self._error)
        self.abort()

    def finish(self) -> None:
        """Give the connection back, or close it if the answer was not read to its end."""
        if not self.busy:
            return
        self.busy = False
        if self.complete and self.reusable and self._error is None and not self.chunks:
            self.pool.returned(self)
        else:
            self.abort()

    def _expire_in(self, seconds: float) -> None:
        """The timer stays from request to request, and looks again when it fires early: most of them are never late."""
        self._patience = seconds
        self._deadline = self.loop.time() + seconds
        if self._timer is not None:
            if self._fires_at <= self._deadline:
                return
            self._timer.cancel()
        self._fires_at = self._deadline
        self._timer = self.loop.call_at(self._deadline, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if not self.busy:
            return
        if self.loop.time() < self._deadline - 0.001:
            self._fires_at = self._deadline
            self._timer = self.loop.call_at(self._deadline, self._look_at_the_clock)
        else:
            self.fail(UpstreamError("timeout", f"not finished within {self._patience:g} s"))

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _more(self) -> asyncio.Future[None]:
        """What to await until something has happened; what has failed is raised."""
        if self._error is not None:
            raise self._error
        self._waiter = self.loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Pool:
    """The idle connections to one replica, the last used first."""

    def __init__(self, host: str, port: int, connect_timeout: float, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.host = host
        self.port = port
        self.connect_timeout = connect_timeout
        self._idle: dict[Connection, None] = {}
        self._all: set[Connection] = set()

    async def request(self, data: bytes, most: float) -> Connection:
        """A connection on which the headers of the answer have arrived; `finish` it in any case."""
        started = time.monotonic()
        closed: UpstreamError | None = None
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.transport is None or connection.transport.is_closing():
                continue
            if connection.used < started - _FRESH:
                connection.abort()
                continue
            connection.used = started
            try:
                await connection.request(data, most)
            except UpstreamError as error:
                connection.finish()
                # a server may close an idle connection just as it is used: then nothing was answered
                if error.kind != "reset" or time.monotonic() - started > _AT_ONCE:
                    raise
                self.close_idle()
                closed = error
                break
            except BaseException:
                connection.finish()
                raise
            return connection
        try:
            connection = await self._connect(most - (time.monotonic() - started))
        except UpstreamError:
            if closed is not None:
                raise closed from None  # not an idle connection but a dead server, and this may be why
            raise
        connection.used = time.monotonic()
        try:
            await connection.request(data, most - (time.monotonic() - started))
        except BaseException:
            connection.finish()
            raise
        return connection

    async def _connect(self, most: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(self.connect_timeout, most)):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, loop), self.host, self.port, ssl=self.tls
                )
        except TimeoutError:
            if most < self.connect_timeout:
                raise UpstreamError("timeout", f"no connection within {most:g} s") from None
            raise UpstreamError("unreachable", f"no connection within {self.connect_timeout:g} s") from None
        except ConnectionRefusedError:
            raise UpstreamError("refused", f"nothing listens on {self.host}:{self.port}") from None
        except OSError as error:
            kind: Kind = "local" if error.errno in _LOCAL_ERRORS else "unreachable"
            raise UpstreamError(kind, error.strerror or str(error)) from None
        return connection

    def made(self, connection: Connection) -> None:
        self._all.add(connection)

    def returned(self, connection: Connection) -> None:
        transport = connection.transport
        if transport is None or transport.is_closing():
            return
        if len(self._idle) >= _MAX_IDLE:
            connection.abort()
        else:
            self._idle[connection] = None

    def lost(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._all.discard(connection)

    def close_idle(self) -> None:
        for connection in list(self._idle):
            connection.abort()
        self._idle.clear()

    def close(self) -> None:
        for connection in list(self._all):
            connection.abort()

    @property
    def open(self) -> int:
        return len(self._all)
