"""HTTP/1.1 with clients: one connection as a state machine, from bytes to requests and back.

Whatever a client sends is bounded here, for every listener alike: the head in size and time, the body in size, in total
time and in what all of them hold together, requests that come ahead of their turn, and the patience with who does not
take its answer. Reading never stops, so that a client that leaves is noticed whatever it has sent before. What breaks
the rules becomes a request that says why it is refused, and is answered, counted and logged like any other.
"""

from __future__ import annotations

import asyncio
import http
import math
import re
import socket
import time
from collections import deque
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import unquote

import httptools

from citadel_gateway.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from citadel_gateway.budget import Budget
    from citadel_gateway.config import Server

# what is being read
IDLE: Final = 0  # nothing, or the request before is being answered
HEAD: Final = 1
BODY: Final = 2
RAW: Final = 3  # a body that the parser takes for another protocol
TUNNEL: Final = 4  # another protocol
DEAF: Final = 5  # what still comes is nobody's: it is read, so that the end is noticed, and dropped

_LINGER: Final = 1.0
_GRACE: Final = 1.0  # who knows a reason to end a slow client comes first
_PIPELINED: Final = 16  # requests that may wait for the one before
_EARLY: Final = 64 * 1024  # of another protocol, before it is known who takes it
_NEVER: Final = math.inf
_WITHOUT_BODY: Final = (204, 304)
_CLOSE: Final = b"connection: close\r\n\r\n"
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]*)?").fullmatch


_METHOD = re.compile(rb"[A-Z]{1,32} ").match  # where a packet begins with it


def _status_line(status: int) -> bytes:
    try:
        return b"HTTP/1.1 %d %b\r\n" % (status, http.HTTPStatus(status).phrase.encode())
    except ValueError:
        return b"HTTP/1.1 %d \r\n" % status


_STATUS_LINES: Final = {status: _status_line(status) for status in range(100, 1000)}


class ClientGone(Exception):
    """The client left before it had sent everything."""


class _Enough(Exception):
    """What follows in this packet is not looked at."""


class Cycle:
    """One request and its answer."""

    def __init__(self, connection: ClientConnection, method: str, path: str, headers: dict[bytes, bytes]) -> None:
        self.connection = connection
        self.method = method
        self.path = path
        self.target = b""  # the path as it came, and its query
        self.query = b""
        self.headers = headers
        self.keep_alive = False
        self.gone = False  # the client
        self.vouched = False  # by the companion, which says in whose name it asks
        self.refusal: Refusal | None = None  # why it cannot be served, if that is known already
        # the request's body
        self.parts: list[bytes] = []
        self.size = 0
        self.whole = False
        self.expects_continue = False
        self.upgrade = False
        self._waiter: asyncio.Future[None] | None = None
        # the answer
        self.started = False
        self.done = False
        self._chunked = False
        self._bodiless = method == "HEAD"

    @property
    def peer(self) -> str:
        return self.connection.peer

    @property
    def compress_from(self) -> int:
        """Answers of so many bytes are worth it."""
        return self.connection.settings.gzip_from_bytes

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What serves it: to cancel it ends the request."""
        return self.connection.worker

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def body(self) -> bytes:
        while not self.whole or self.refusal is not None:
            if self.refusal is not None:
                raise self.refusal
            await self._more()
        return self._take()

    async def part(self) -> bytes:
        """Of a tunnel: what has come meanwhile; empty at its end."""
        while not self.parts and not self.gone:
            await self._more()
        self.connection.resume_reading()
        return self._take()

    async def _more(self) -> None:
        if self.gone:
            raise ClientGone
        if self.expects_continue:
            self.expects_continue = False
            self.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        waiter = self._waiter = self.connection.loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None
        if self.gone:
            raise ClientGone

    def _take(self) -> bytes:
        parts = self.parts
        self.parts = []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def drained(self) -> None:
        """The client takes again what it gets."""
        writable = self.connection.writable
        if writable is not None and not self.gone:
            await writable.wait()

    def respond(self, status: int, lines: bytes, body: bytes) -> bool:
        """The whole answer in one write; False if the client has to be waited for first. `lines` are headers that the
        gateway made itself, so they are not looked at again."""
        connection = self.connection
        if connection.writable is not None and not self.gone:
            return False
        self.started = True
        if not self.gone:
            connection.transport.write(
                b"%b%b%b%b%b"
                % (_STATUS_LINES[status], date_line(), lines, self._end_of_head(), b"" if self._bodiless else body)
            )
        self._finish()
        return True

    def begin(self, status: int, lines: bytes) -> None:
        """An answer whose length nobody knows yet."""
        self.started = True
        if self.gone:
            return
        framing = b""
        self._bodiless = self._bodiless or status in _WITHOUT_BODY
        if not self._bodiless and status != 101:
            # who speaks 1.0 knows no chunks: the end of the connection is the end of the answer
            self._chunked = self.connection.speaks_1_1
            if self._chunked:
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self.keep_alive = False
        end = b"\r\n" if status == 101 else self._end_of_head()
        self.connection.transport.write(b"%b%b%b%b%b" % (_STATUS_LINES[status], date_line(), lines, framing, end))

    def write(self, data: bytes) -> bool:
        """A piece of such an answer; False if the client has to be waited for first."""
        connection = self.connection
        if self.gone:
            return True
        if connection.writable is not None:
            return False
        if not self._bodiless and data:
            connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return True

    def end(self) -> None:
        if not self.gone and self._chunked:
            self.connection.transport.write(b"0\r\n\r\n")
        self._finish()

    def abort(self) -> None:
        self.connection.transport.abort()

    def _end_of_head(self) -> bytes:
        # who was not told to go on may send its body or its next request: nobody can know which
        if self.expects_continue and not self.whole:
            self.keep_alive = False
        return b"\r\n" if self.keep_alive else _CLOSE

    def _finish(self) -> None:
        self.done = True
        self.connection.finished(self)


class ClientConnection:
    """asyncio.Protocol in all but name: compiled, a class cannot inherit from it."""

    def __init__(self, serve: Callable[[Cycle], Awaitable[None]], budget: Budget) -> None:
        self.loop = asyncio.get_running_loop()
        self._answer = serve
        self._budget = budget
        self.peer = "local"
        self.speaks_1_1 = True
        self.writable: asyncio.Event | None = None  # to wait for, if the client does not take what it gets
        # one task for all requests of a connection, since a task for each is dearer than all that is done here
        self.worker: asyncio.Task[None] | None = None
        self.transport: Any = None
        self.settings: Server = budget.settings
        self._state = IDLE
        self._active: Cycle | None = None  # what is being answered
        self._incoming: Cycle | None = None  # what is being read
        self._waiting: deque[Cycle] = deque()  # requests that came before the answer to the one before
        self._next: Cycle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._headers: dict[bytes, bytes] = {}
        self._url = b""
        self._packet = 0
        self._head_bytes = 0  # the most that the head can have: all that came since the packet that it began in
        self._bodiless = 0  # bytes within a body that bring nothing of it: trailers, extensions of chunks
        self._raw_left = 0
        self._hosts = 0
        self._fault: Exception | None = None  # what a callback of the parser has raised: it tells of an error only
        self._counted = False
        self._unwanted: Refusal | None = None
        self._draining = False
        self._paused = False
        self._deadline = _NEVER
        self._fires_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None  # to look whether the client takes what it gets
        self._parser: Any = httptools.HttpRequestParser(self)
        # the first of several requests in one packet is answered although nothing may come after it
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    # what the event loop calls

    def admitted(self, transport: Any) -> bool:
        """Count it, before its handshake if it has one."""
        self.peer = _address(transport.get_extra_info("peername"))
        self._counted = True
        self._unwanted = self._budget.entered(self, self.peer)
        return self._unwanted is None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if not self._counted:
            self.admitted(transport)
        if self._unwanted is not None:
            if self._budget.crowded:
                transport.abort()
            else:
                self._refuse(self._unwanted)
            return
        _keep_alive(transport.get_extra_info("socket"))
        self._expect(self.settings.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = DEAF
        self._deadline = _NEVER
        for timer in (self._timer, self._stuck):
            if timer is not None:
                timer.cancel()
        self._timer = self._stuck = None
        self.resume_writing()
        active = self._active
        for cycle in (active, self._incoming, *self._waiting):
            if cycle is not None:
                cycle.gone = True
                self._budget.released(cycle.size)
                cycle.size = 0
                cycle.wake()
        self._waiting.clear()
        self._active = self._next = self._incoming = None
        self._parser = None  # they hold each other
        # what is done after an answer is no longer the client's affair
        if self.worker is not None and (active is not None or self._idle is not None):
            self.worker.cancel()
        self._budget.left(self, self.peer)

    def eof_received(self) -> None:
        """Who closes its half has left: the transport is closed when it has written what it has."""
        if self.transport.get_write_buffer_size():
            self._await_flush()

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()
        self._await_flush()

    def resume_writing(self) -> None:
        if self.writable is not None:
            self.writable.set()
            self.writable = None

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == DEAF:
            return
        if state >= RAW:
            self._raw(data)
            return
        size = self._packet = len(data)
        self._head_bytes = size + (self._head_bytes if state == HEAD else 0)
        self._bodiless += size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._broken(error, data)
        else:
            if self._state == HEAD:
                if self._head_bytes > self.settings.max_header_bytes:
                    self._refuse(self._too_large_head())
                elif state != HEAD:
                    self._expect(self.settings.header_timeout)
            elif self._state == BODY:
                if self._bodiless > self.settings.max_header_bytes:
                    self._refuse(self._too_large_head())
                else:
                    self._expect_body()

    def _broken(self, error: httptools.HttpParserError, data: bytes) -> None:
        fault, self._fault = self._fault, None
        if isinstance(fault, Refusal):
            self._refuse(fault)
        elif fault is None:
            self._refuse(_reason(error, begins=data if self._head_bytes else b""))

    # what httptools calls

    def on_message_begin(self) -> None:
        self._state = HEAD
        self._headers = {}
        self._url = b""
        self._hosts = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._state != HEAD:
            return  # a trailer, which nobody asked for
        name = name.lower()
        headers = self._headers
        if name == b"host":
            self._hosts += 1
        if name in headers:
            value = headers[name] + b", " + value  # RFC 9110, 5.3
        headers[name] = value

    def on_headers_complete(self) -> None:
        try:
            self._head_is_here()
        except Refusal as refusal:
            self._fault = refusal
            raise

    def _head_is_here(self) -> None:
        settings = self.settings
        headers = self._headers
        if self._head_bytes > settings.max_header_bytes or self._packet > settings.max_header_bytes:
            # a packet may hold more than a head
            size = len(self._url) + sum([len(name) + len(value) for name, value in headers.items()])
            if size > settings.max_header_bytes:
                raise self._too_large_head()
        parser = self._parser
        version: str = parser.get_http_version()
        self.speaks_1_1 = version == "1.1"
        if self._hosts != 1 or not _HOST(headers[b"host"]):
            self._check_host()
        encoding = headers.get(b"transfer-encoding")
        if encoding is not None:
            _check_transfer_encoding(encoding, version)
        length = headers.get(b"content-length")
        if length is not None and _number(length) > settings.max_body_bytes:
            raise self._too_large_body()
        if not self.speaks_1_1 and version != "1.0":
            raise Refusal(505, "http_version_not_supported", "HTTP/1.1 is spoken here.")
        cycle = self._new(parser.get_method().decode())
        cycle.keep_alive = not self._draining and self.speaks_1_1 and parser.should_keep_alive()
        expected = headers.get(b"expect")
        if expected is not None and expected.lower() == b"100-continue":
            cycle.expects_continue = self.speaks_1_1
        self._state = BODY
        self._bodiless = 0
        self._deadline = _NEVER
        self._incoming = cycle
        self._enter(cycle)

    def on_body(self, body: bytes) -> None:
        try:
            self._body_is_here(body)
        except (Refusal, _Enough) as fault:
            self._fault = fault
            raise

    def _body_is_here(self, body: bytes) -> None:
        self._bodiless = 0
        cycle = self._incoming
        if cycle is None or cycle.done:
            return
        size = len(body)
        cycle.size += size
        cycle.parts.append(body)
        if cycle.size > self.settings.max_body_bytes:
            self._budget.taken(size)
            raise self._too_large_body()
        if not self._budget.taken(size):
            raise Refusal(503, "gateway_overloaded", "Too much is being sent to the gateway.", retry_after=1.0)
        if self._waiting and sum([one.size for one in self._waiting]) > self.settings.max_body_bytes:
            self._no_further()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._parser.should_upgrade():
            return  # `_upgraded` comes next
        self._received()
        if len(self._waiting) >= _PIPELINED:
            self._fault = _Enough()
            self._no_further()

    def _received(self) -> None:
        cycle = self._incoming
        self._incoming = None
        self._state = IDLE
        self._deadline = _NEVER
        if cycle is not None:
            cycle.whole = True
            cycle.wake()
        if self._active is None:
            self._expect(self.settings.keep_alive)

    # another protocol

    def _upgraded(self, rest: bytes) -> None:
        """An offer of another protocol: Java's client makes one with each request, and sends its body all the same. A
        tunnel waits for who takes it; the request is the connection's last in any case."""
        cycle = self._incoming
        if cycle is None:
            self._state = DEAF
            return
        cycle.keep_alive = False
        self._raw_left = _number(cycle.headers.get(b"content-length", b"0"))
        self._state = RAW
        if not self._raw_left:
            cycle.upgrade = True
            cycle.whole = True
            self._state = TUNNEL
            cycle.wake()
        if rest:
            self._raw(rest)

    def _raw(self, data: bytes) -> None:
        cycle = self._incoming
        if cycle is None or cycle.done:
            self._state = DEAF
        elif self._state == TUNNEL:
            cycle.parts.append(data)
            cycle.wake()
            if not self._paused and sum([len(part) for part in cycle.parts]) > _EARLY:
                self._paused = True
                self.transport.pause_reading()
        else:
            body = data[: self._raw_left]
            self._raw_left -= len(body)
            try:
                self._body_is_here(body)
            except _Enough:
                return
            except Refusal as refusal:
                self._refuse(refusal)
                return
            if not self._raw_left:
                self._received()
                self._state = DEAF
                self._deadline = _NEVER
            else:
                self._expect_body()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    # what the listener calls

    def shutdown(self) -> None:
        """An idle connection lingers for a moment: its next request may be on its way."""
        self._draining = True
        if self.transport is None:
            return  # in its handshake
        if self._active is None:
            self._expect(_LINGER)
        else:
            self._end_with_the_last()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # serving

    def finished(self, cycle: Cycle) -> None:
        self._budget.released(cycle.size)
        cycle.size = 0
        if cycle.gone:
            return
        self._active = None
        if not cycle.keep_alive:
            self._close(unread=not cycle.whole)
        elif self._waiting:
            self._serve(self._waiting.popleft())
            self._expect_body()
        elif self._state == IDLE:
            self._expect(_LINGER if self._draining else self.settings.keep_alive)
        else:
            self._expect_body()

    def _new(self, method: str) -> Cycle:
        path, _, query = self._url.partition(b"?")
        if path and path[:1] != b"/" and path != b"*":
            # the absolute form that proxies send; a CONNECT has only an authority, and nothing here to lead to
            try:
                url: Any = httptools.parse_url(self._url)  # its stubs promise bytes, where it has None
                path, query = url.path or b"/", url.query or b""
            except httptools.HttpParserError:
                path, query = b"", b""
        text = path.decode("latin-1")
        cycle = Cycle(self, method, unquote(text) if "%" in text else text, self._headers)
        cycle.target, cycle.query = path, query
        return cycle

    def _enter(self, cycle: Cycle) -> None:
        if self._active is None and not self._waiting:
            self._serve(cycle)
        else:
            self._waiting.append(cycle)

    def _serve(self, cycle: Cycle) -> None:
        self._active = self._next = cycle
        if self.worker is None:
            self.worker = self.loop.create_task(self._work())
            self._budget.runs(self.worker)
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _work(self) -> None:
        while True:
            cycle = self._next
            if cycle is None:
                if self.transport.is_closing():
                    return
                self._idle = self.loop.create_future()
                await self._idle
                self._idle = None
                continue
            self._next = None
            try:
                await self._answer(cycle)
            finally:
                if not cycle.done and not cycle.gone:
                    self.transport.abort()

    # saying no

    def _refuse(self, refusal: Refusal) -> None:
        """Nothing more is read. What is being read is refused, or if that is nothing yet, what it would have become."""
        self._state = DEAF
        self._deadline = _NEVER
        cycle = self._incoming
        self._incoming = None
        if cycle is None:
            cycle = self._new("-")
            cycle.refusal = refusal
            self._enter(cycle)
        elif cycle.done:
            self._close(unread=True)
        else:
            cycle.keep_alive = False
            if not cycle.started:
                cycle.refusal = refusal
                cycle.wake()

    def _no_further(self) -> NoReturn:
        """It has sent as much ahead of its turn as it may: what is whole is answered, and the rest may be sent again on
        another connection (RFC 9112, 9.3.2)."""
        self._state = DEAF
        self._deadline = _NEVER
        cycle = self._incoming
        self._incoming = None
        if cycle is not None and self._waiting and self._waiting[-1] is cycle:
            self._waiting.pop()
            self._budget.released(cycle.size)
            cycle.size = 0
        self._end_with_the_last()
        raise _Enough

    def _end_with_the_last(self) -> None:
        last = self._waiting[-1] if self._waiting else self._active
        if last is not None:
            last.keep_alive = False

    def _check_host(self) -> None:
        """RFC 9112, 3.2."""
        if self._hosts == 0:
            if self.speaks_1_1:
                raise Refusal(400, "invalid_host", "A request needs a Host header.")
        elif self._hosts > 1 or not _HOST(self._headers[b"host"]):
            raise Refusal(400, "invalid_host", "A request needs one Host header that is a host.")

    def _too_large_head(self) -> Refusal:
        limit = self.settings.max_header_bytes
        return Refusal(431, "headers_too_large", f"The headers are larger than {limit} bytes.")

    def _too_large_body(self) -> Refusal:
        limit = self.settings.max_body_bytes
        return Refusal(413, "request_too_large", f"The body is larger than {limit} bytes.")

    # time

    def _expect_body(self) -> None:
        """Its time runs from its turn, however its bytes are spread."""
        cycle = self._incoming
        if self._deadline == _NEVER and cycle is not None and (cycle is self._active or cycle.done):
            self._expect(self.settings.body_timeout)

    def _expect(self, seconds: float) -> None:
        """What comes next has so long. The timer is set rarely: it looks again when it fires early."""
        deadline = self._deadline = self.loop.time() + seconds
        if self._timer is not None:
            if self._fires_at <= deadline:
                return
            self._timer.cancel()
        self._fires_at = deadline
        self._timer = self.loop.call_at(deadline, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._deadline == _NEVER:
            return
        left = self._deadline - self.loop.time()
        if left > 0.001:
            self._expect(left)
        elif self._state in (BODY, RAW):
            seconds = self.settings.body_timeout
            self._refuse(Refusal(408, "body_timeout", f"The body did not arrive within {seconds:g} s."))
        elif self._state == HEAD or (self._state == IDLE and self.worker is None and not self._draining):
            self._refuse(Refusal(408, "header_timeout", "The headers did not arrive in time."))
        else:
            self._close(unread=False)

    def _close(self, *, unread: bool) -> None:
        self._state = DEAF
        self._deadline = _NEVER
        if unread and self.transport.can_write_eof() and not self.transport.is_closing():
            # closed with something unread, it would be reset, and the client would never learn why
            self.transport.write_eof()
            self._look_again(_LINGER, self._end_of_linger)
            return
        if self.transport.get_write_buffer_size():
            self._await_flush()
        self.transport.close()

    def _end_of_linger(self) -> None:
        self._close(unread=False)

    def _await_flush(self) -> None:
        """A client that takes nothing does not keep a connection, nor what it holds."""
        size = self.transport.get_write_buffer_size()
        self._look_again(self.settings.write_timeout + _GRACE, lambda: self._look_at_buffer(size))

    def _look_at_buffer(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        elif left:
            self._await_flush()

    def _look_again(self, seconds: float, look: Callable[[], None]) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        self._stuck = self.loop.call_later(seconds, look)


def _reason(error: httptools.HttpParserError, begins: bytes) -> Refusal:
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD(begins):
        return Refusal(501, "method_not_implemented", "This is not a method that the gateway knows.")
    return Refusal(400, "invalid_http", "This is not a valid HTTP request.")


def _check_transfer_encoding(value: bytes, version: str) -> None:
    """RFC 9112, 6.1: a body whose end cannot be known is refused; a coding that is not known is not implemented."""
    if value.lower() == b"chunked" and version == "1.1":
        return
    codings = [coding.strip() for coding in value.lower().split(b",")]
    if version != "1.1" or codings[-1] != b"chunked" or codings.count(b"chunked") > 1:
        raise Refusal(400, "invalid_http", "The Transfer-Encoding leaves the end of the body unknown.")
    raise Refusal(501, "unsupported_transfer_encoding", "The only Transfer-Encoding here is chunked.")


def _number(digits: bytes) -> int:
    """Of a content-length, whose digits the parser has seen; as long a number as somebody cares to write."""
    digits = digits.strip().lstrip(b"0")
    return int(digits or b"0") if len(digits) < 19 else 2**62


_date = (0, b"")


def date_line() -> bytes:
    global _date  # noqa: PLW0603 - it changes once a second
    now = int(time.time())
    if now != _date[0]:
        _date = now, b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
    return _date[1]


def _address(name: Any) -> str:
    """An IPv4 client of a socket for both is known by its IPv4 address."""
    if not name or isinstance(name, str):
        return "local"
    address = str(name[0])
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def _keep_alive(sock: Any) -> None:
    """A peer that vanished without a word is noticed by the kernel within a minute and a half."""
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
