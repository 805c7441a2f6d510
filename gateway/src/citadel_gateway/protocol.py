"""HTTP/1.1 with clients, for uvicorn's server; the applications see ASGI.

uvicorn's own protocol does for every request what a public port needs once a connection or never; this one does less,
and more where it matters:

- a client that leaves cancels the task that serves it, at once and whether it streams or not;
- headers are bounded in size and time, connections in number; the client is told in OpenAI's shape;
- on shutdown an idle connection lingers for a moment and its next request is answered with `connection: close`,
  so that no request is cut by the close of a connection that looked idle.
"""

from __future__ import annotations

import asyncio
import http
import logging
import re
import socket
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools

from citadel_gateway.errors import error_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.server import ServerState

    from citadel_gateway.config import Server
    from citadel_gateway.exchange import Headers, Message, Scope

    App = Callable[[Scope, Callable[[], Any], Callable[[Message], Any]], Any]

logger = logging.getLogger("citadel_gateway")

_LINGER = 1.0
_HIGH_WATER = 64 * 1024  # of a body that nobody has asked for yet
_PIPELINED = 16  # requests that may wait for the one before
_GRACE = 1.0  # who knows a reason to end a slow client comes first
_PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}
_STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"")) for status in range(100, 1000)}
_CLOSE = b"connection: close\r\n\r\n"
_NO_BODY = (204, 304)
_UNFIT = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class _HeadTooLarge(ValueError):
    pass


class Cycle:
    """One request and its answer: ASGI's `receive` and `send`, and beside them what the path needs in fewer steps."""

    __slots__ = (
        "_connection",
        "_expects_continue",
        "_has_body",
        "_left",
        "_told",
        "_version",
        "_waiter",
        "chunked",
        "done",
        "gone",
        "keep_alive",
        "parts",
        "size",
        "started",
        "whole",
    )

    def __init__(self, connection: ClientConnection, version: str, method: str, *, keep_alive: bool) -> None:
        self._connection = connection
        self._version = version
        self.keep_alive = keep_alive
        self._has_body = method != "HEAD"
        self._expects_continue = connection.expects_continue
        self.gone = False  # the client
        # the request's body
        self.parts: list[bytes] = []
        self.size = 0
        self.whole = False
        self._told = False
        self._waiter: asyncio.Future[None] | None = None
        # the answer
        self.started = False
        self.done = False
        self.chunked = False
        self._left: int | None = None

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def whole_body(self) -> bytes | None:
        """The body, if all of it is here and nobody has asked for it."""
        if not self.whole or self._told:
            return None
        self._told = True
        return self._take()

    async def receive(self) -> Message:
        if self._expects_continue:
            self._expects_continue = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.gone or self.done) and (self._told or not (self.whole or self.parts)):
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.gone or self.done:
            return {"type": "http.disconnect"}
        self._told = self.whole
        return {"type": "http.request", "body": self._take(), "more_body": not self.whole}

    def _take(self) -> bytes:
        parts = self.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self.parts = []
        self.size = 0
        self._connection.resume_reading()
        return body

    async def send(self, message: Message) -> None:
        connection = self._connection
        if connection.writable is not None and not self.gone:
            await connection.writable.wait()
        if self.gone:
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._body(message.get("body", b""), last=not message.get("more_body", False))

    def respond(self, status: int, lines: bytes, body: bytes) -> bool:
        """A whole answer in one write; `lines` are headers that the gateway made itself, so they are not looked at
        again. False if it has to go through `send`, which waits for a slow reader."""
        connection = self._connection
        if self.gone or connection.writable is not None:
            return False
        connection.transport.write(
            b"%b%b%b%b%b"
            % (
                _STATUS_LINES[status],
                connection.date(),
                lines,
                b"\r\n" if self.keep_alive else _CLOSE,
                body if self._has_body else b"",
            )
        )
        self.started = True
        self._finish()
        return True

    def write(self, data: bytes) -> bool:
        """A piece of a stream that has begun; False if it has to go through `send`."""
        connection = self._connection
        if self.gone or not self.chunked or connection.writable is not None:
            return False
        connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def abort(self) -> None:
        self._connection.transport.abort()

    def _start(self, status: int, headers: Any) -> None:
        if self.started:
            raise RuntimeError("a second http.response.start")
        self.started = True
        parts = [_STATUS_LINES[status], self._connection.date()]
        for given, value in headers:
            name = given.lower()
            if _UNFIT(value) or _UNFIT(name):
                raise RuntimeError(f"the header {name!r} has a control character")
            if name == b"connection" and value.lower() == b"close":
                self.keep_alive = False
                continue
            if name == b"content-length":
                self._left = int(value)
            parts += (name, b": ", value, b"\r\n")
        if status in _NO_BODY:
            self._has_body = False
        if self._has_body and self._left is None:
            # who speaks 1.0 knows no chunks: the end of the connection is the end of the answer
            self.chunked = self._version == "1.1"
            if self.chunked:
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        parts.append(b"\r\n" if self.keep_alive else _CLOSE)
        self._connection.transport.write(b"".join(parts))

    def _body(self, body: bytes, *, last: bool) -> None:
        if not self.started or self.done:
            raise RuntimeError("http.response.body out of turn")
        transport = self._connection.transport
        if self._has_body:
            if self.chunked:
                chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                transport.write(chunk + b"0\r\n\r\n" if last else chunk)
            elif self._left is None:
                transport.write(body)
            else:
                self._left -= len(body)
                if self._left < 0 or (last and self._left):
                    raise RuntimeError("the body has not the length that its header told")
                transport.write(body)
        if last:
            self._finish()

    def _finish(self) -> None:
        self.done = True
        self.wake()
        self._connection.finished(self)


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        "_active",
        "_all",
        "_app",
        "_awaits",
        "_bodiless",
        "_date",
        "_dated",
        "_deaf",
        "_draining",
        "_ending",
        "_fires_at",
        "_head_bytes",
        "_head_open",
        "_headers",
        "_idle",
        "_incoming",
        "_next",
        "_packet",
        "_parser",
        "_peer",
        "_raw_left",
        "_read_paused",
        "_scheme",
        "_server",
        "_settings",
        "_stuck",
        "_timer",
        "_until",
        "_url",
        "_waiting",
        "_worker",
        "expects_continue",
        "loop",
        "state",
        "transport",
        "writable",
    )

    def __init__(self, app: App, state: ServerState, settings: Server, connections: set[Any]) -> None:
        self._app = app
        self.state = state
        self._settings = settings
        self._all = connections
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.writable: asyncio.Event | None = None  # to wait for, if the client does not take what it gets
        self._parser = httptools.HttpRequestParser(self)
        # the first of several requests in one packet is answered although nothing may come after it
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._active: Cycle | None = None  # what is being answered
        self._incoming: Cycle | None = None  # what is being read
        self._waiting: deque[tuple[Cycle, Scope]] = deque()  # requests that came before the answer to the one before
        # one task for all requests of a connection, since a task for each is dearer than all that is done here
        self._worker: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._next: Scope | None = None
        self._dated: Any = None
        self._date = b""
        self._head_open = False
        self._head_bytes = 0  # the most that the head can have: all that came since the packet that it began in
        self._headers: Headers = []
        self._url = b""
        self.expects_continue = False
        self._packet = 0
        self._bodiless = 0  # bytes within a body that bring nothing of it: trailers, extensions of chunks
        self._raw_left = 0  # of a body that the parser takes for another protocol
        self._read_paused = False
        self._draining = False
        self._deaf = False  # what still comes is not HTTP, or nobody wants it
        self._ending = False
        self._awaits: str | None = None
        self._until = 0.0
        self._fires_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None  # to look whether the client takes what it gets

    # what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._peer = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self.state.connections.add(self)  # type: ignore[arg-type]
        self._all.add(self)
        if len(self._all) > self._settings.connections:
            self._reply(503, "too_many_connections", "The gateway has as many connections as it may have.")
            return
        _keep_alive(transport.get_extra_info("socket"))
        self._await("head", self._settings.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.state.connections.discard(self)
        self._all.discard(self)
        for timer in (self._timer, self._stuck):
            if timer is not None:
                timer.cancel()
        self._deaf = True
        self._waiting.clear()
        self.resume_writing()
        cycle = self._active
        self._active = self._next = None
        if cycle is not None:
            cycle.gone = True
            cycle.wake()
        # what an application does after its answer is its own affair
        if self._worker is not None and (cycle is not None or self._idle is not None):
            self._worker.cancel()

    def eof_received(self) -> None:
        pass  # who closes its half has left

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            if self._raw_left:
                self._raw_body(data)
            return
        self._packet = len(data)
        self._head_bytes = self._packet + (self._head_bytes if self._head_open else 0)
        self._bodiless += self._packet
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # no other protocol is spoken here: the request is answered, and what follows it is not looked at
            self._last_one()
            self._raw_body(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLarge):
                self._too_large()
            else:
                self._reply(400, "invalid_http", "This is not a valid HTTP request.")
        else:
            if self._head_open:
                self._wait_for_head()
            elif self._incoming is not None and self._bodiless > self._settings.max_header_bytes:
                self._too_large()

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()
        self._await_flush()

    def resume_writing(self) -> None:
        if self._stuck is not None and not self._ending:
            self._stuck.cancel()
            self._stuck = None
        if self.writable is not None:
            self.writable.set()
            self.writable = None

    # what httptools calls

    def on_message_begin(self) -> None:
        self._head_open = True
        self._url = b""
        self._headers = []
        self.expects_continue = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_open:
            return  # a trailer, which nobody asked for
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        headers = self._headers
        if self._head_bytes > self._settings.max_header_bytes or self._packet > self._settings.max_header_bytes:
            # a packet may hold more than a head
            size = len(self._url) + sum(len(name) + len(value) for name, value in headers)
            if size > self._settings.max_header_bytes:
                raise _HeadTooLarge
        self._head_open = False
        self._bodiless = 0
        self._awaits = None
        parser = self._parser
        method = parser.get_method().decode()
        version = parser.get_http_version()
        path, _, query = self._url.partition(b"?")
        if not path.startswith(b"/"):
            url = httptools.parse_url(self._url)  # the absolute form that proxies send
            path, query = url.path or b"/", url.query or b""
        text = path.decode("latin-1")
        cycle = self._incoming = Cycle(
            self, version, method, keep_alive=not self._draining and version == "1.1" and parser.should_keep_alive()
        )
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self._server,
            "client": self._peer,
            "scheme": self._scheme,
            "method": method,
            "root_path": "",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "headers": headers,
            "citadel.client": cycle,
        }
        if self._active is None:
            self._serve(cycle, scope)
        else:
            self._waiting.append((cycle, scope))
            if len(self._waiting) >= _PIPELINED:
                self._pause_reading()

    def on_body(self, body: bytes) -> None:
        cycle = self._incoming
        self._bodiless = 0
        if cycle is None or cycle.done:
            return
        cycle.parts.append(body)
        cycle.size += len(body)
        if cycle.size > _HIGH_WATER or (self._waiting and sum(one.size for one, _ in self._waiting) > _HIGH_WATER):
            self._pause_reading()
        cycle.wake()

    def on_message_complete(self) -> None:
        cycle = self._incoming
        self._head_bytes = 0
        if self._parser.should_upgrade():
            # Java's client offers HTTP/2 with every request, and sends its body all the same
            self._raw_left = next((int(value) for name, value in self._headers if name == b"content-length"), 0)
            if self._raw_left:
                return
        self._incoming = None
        if cycle is not None:
            cycle.whole = True
            cycle.wake()
        # reading goes on while the answer is made, or nobody would notice that the client left
        self.resume_reading()

    def _raw_body(self, data: bytes) -> None:
        body = data[: self._raw_left]
        self._raw_left -= len(body)
        if body:
            self.on_body(body)
        cycle = self._incoming
        if cycle is not None and not self._raw_left:
            self._incoming = None
            cycle.whole = True
            cycle.wake()

    # what uvicorn's server calls

    def shutdown(self) -> None:
        self._draining = True
        if self._active is None:
            self._await("request", _LINGER)
        else:
            self._end_with_the_last()

    # what cycles call

    def finished(self, cycle: Cycle) -> None:
        self._active = None
        if not cycle.keep_alive:
            self._close(unread=self._incoming is cycle)
            return
        if self._waiting:
            self._serve(*self._waiting.popleft())
        elif not self._head_open:
            self._await("request", self._settings.keep_alive)
        self.resume_reading()

    def date(self) -> bytes:
        """The header that uvicorn renews every second."""
        if self._dated is not self.state.default_headers:
            self._dated = self.state.default_headers
            self._date = b"".join([b"%b: %b\r\n" % header for header in self._dated])
        return self._date

    def resume_reading(self) -> None:
        if self._read_paused and len(self._waiting) < _PIPELINED:
            self._read_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()

    def _serve(self, cycle: Cycle, scope: Scope) -> None:
        self._active = cycle
        self._next = scope
        if self._worker is None:
            task = self._worker = self.loop.create_task(self._work())
            self.state.tasks.add(task)
            task.add_done_callback(self.state.tasks.discard)
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _work(self) -> None:
        while not self._deaf or self._next is not None:
            scope = self._next
            if scope is None:
                self._idle = self.loop.create_future()
                await self._idle
                self._idle = None
                continue
            self._next = None
            cycle: Cycle = scope["citadel.client"]
            try:
                await self._app(scope, cycle.receive, cycle.send)
            except Exception:
                logger.exception("an application failed")
                if not cycle.started:
                    cycle.respond(500, *_failure())
            finally:
                if not cycle.done:
                    self.transport.abort()

    def _wait_for_head(self) -> None:
        if self._head_bytes > self._settings.max_header_bytes:
            self._too_large()
        elif self._awaits != "head":
            self._await("head", self._settings.header_timeout)

    def _await(self, what: str, seconds: float) -> None:
        """What the client has to send next, and how long it may take. The timer is set rarely: it looks again when it
        fires early."""
        self._awaits = what
        self._until = self.loop.time() + seconds
        if self._timer is not None:
            if self._fires_at <= self._until:
                return
            self._timer.cancel()
        self._fires_at = self._until
        self._timer = self.loop.call_at(self._until, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._awaits is None or self._deaf:
            return
        left = self._until - self.loop.time()
        if left > 0.001:
            self._await(self._awaits, left)
        elif self._awaits == "head":
            self._reply(408, "header_timeout", "The headers did not arrive in time.")
        else:
            self._close()

    def _close(self, *, unread: bool = False) -> None:
        self._deaf = self._ending = True
        if unread and self.transport.can_write_eof():
            # closed with something unread, it would be reset, and the client would never learn why
            self.transport.write_eof()
            self.resume_reading()
            self._look_again(_LINGER, self._close)
            return
        if self.transport.get_write_buffer_size():
            self._await_flush()
        self.transport.close()

    def _await_flush(self) -> None:
        """A client that takes nothing does not keep a connection, nor what it holds."""
        size = self.transport.get_write_buffer_size()
        self._look_again(self._settings.write_timeout + _GRACE, self._look_at_buffer, size)

    def _look_at_buffer(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        elif left:
            self._await_flush()

    def _look_again(self, seconds: float, look: Callable[..., None], *arguments: int) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        self._stuck = self.loop.call_later(seconds, look, *arguments)

    def _too_large(self) -> None:
        limit = self._settings.max_header_bytes
        self._reply(431, "headers_too_large", f"The headers are larger than {limit} bytes.")

    def _last_one(self) -> None:
        """Nothing more is read: the last request that is here ends the connection."""
        self._deaf = True
        self._end_with_the_last()

    def _end_with_the_last(self) -> None:
        last = self._waiting[-1][0] if self._waiting else self._active
        if last is not None:
            last.keep_alive = False

    def _reply(self, status: int, code: str, message: str) -> None:
        """Without the application, unless that has something to say first: the connection is closed after it."""
        self._last_one()
        if self._active is not None and (self._active.started or self._active is not self._incoming):
            return
        body = error_body(status, code, message)
        self.transport.write(
            _STATUS_LINES[status] + b"content-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n" % len(body) + body
        )
        self._close(unread=True)


def _failure() -> tuple[bytes, bytes]:
    body = error_body(500, "gateway_error", "The gateway failed.")
    return b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body), body


def _address(name: Any) -> tuple[str, int | None] | None:
    if isinstance(name, str):
        return (name, None) if name else None
    return (str(name[0]), int(name[1])) if name else None


def _keep_alive(sock: socket.socket | None) -> None:
    """A peer that vanished without a word is noticed by the kernel within a minute and a half."""
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
