"""uvicorn's HTTP protocol with what a public server needs besides: bounds, patience, and news of who left.

- a client that leaves cancels the task that serves it, at once and whether it streams or not;
- headers are bounded in size and time, connections in number; the client is told in OpenAI's shape;
- on shutdown an idle connection lingers for a moment and its next request is answered with `connection: close`,
  so that no request is cut by the close of a connection that looked idle.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from citadel_gateway.errors import error_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from citadel_gateway.config import Server
    from citadel_gateway.exchange import Headers

_LINGER = 1.0
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def protocol_class(settings: Callable[[], Server], open_connections: set[Any]) -> type[HttpToolsProtocol]:
    """The class for one listener; `settings` is asked anew for each connection, so that a reload counts."""

    class Protocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._settings = settings()
            self._task: asyncio.Task[Any] | None = None
            self._head_bytes = 0
            self._head_done = False
            self._draining = False
            self._head_timer: asyncio.TimerHandle | None = None
            self._linger: asyncio.TimerHandle | None = None
            self.timeout_keep_alive = int(self._settings.keep_alive)
            open_connections.add(self)
            if len(open_connections) > self._settings.connections:
                self._reply(503, "too_many_connections", "The gateway has as many connections as it may have.")
                return
            _keep_alive(transport.get_extra_info("socket"))
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            open_connections.discard(self)
            for timer in (self._head_timer, self._linger):
                if timer is not None:
                    timer.cancel()
            cycle, task = self.cycle, self._task
            unfinished = cycle is not None and not cycle.response_complete
            super().connection_lost(exc)
            self.pipeline.clear()
            if unfinished and task is not None:
                task.cancel()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            super().data_received(data)
            if self._head_done or self.parser is None:
                return
            self._head_bytes += len(data)
            if self._head_bytes > self._settings.max_header_bytes:
                self._too_large()
            elif self._head_timer is None:
                self._await_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_done = False
            self._head_bytes = 0
            self.scope["citadel.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]

        def on_header(self, name: bytes, value: bytes) -> None:
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > self._settings.max_header_bytes:
                raise ValueError("headers too large")
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._head_done = True
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            super().on_headers_complete()
            if self._draining:
                self.cycle.keep_alive = False

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._head_bytes = 0
            # reading goes on while the answer is made, or nobody would notice that the client left
            if not self.pipeline:
                self.flow.resume_reading()

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            cycle.scope["citadel.respond"] = partial(self._respond, cycle)
            cycle.scope["citadel.write"] = partial(self._write, cycle)
            task = self._task = self.loop.create_task(cycle.run_asgi(app))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)

        def _respond(self, cycle: Any, status: int, headers: Headers, body: bytes) -> bool:
            """A whole answer in one write and without a second look at headers that the gateway made itself: half the
            cost of two `send`s. False if it has to go the long way, which waits for a slow reader."""
            if cycle.disconnected or self.flow.write_paused:
                return False
            parts = [STATUS_LINE[status]]
            for name, value in (*cycle.default_headers, *headers):
                if value == b"close" and name == b"connection":
                    cycle.keep_alive = False
                    continue
                parts += (name, b": ", value, b"\r\n")
            if not cycle.keep_alive:
                parts.append(b"connection: close\r\n")
            parts += (b"\r\n", body)
            self.transport.write(b"".join(parts))
            cycle.response_started = cycle.response_complete = True
            cycle.message_event.set()
            if not cycle.keep_alive:
                self.transport.close()
            self.on_response_complete()
            return True

        def _write(self, cycle: Any, data: bytes) -> bool:
            """A piece of a stream that has begun; False if it has to go the long way."""
            if cycle.disconnected or self.flow.write_paused or not cycle.chunked_encoding:
                return False
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            return True

        def shutdown(self) -> None:
            self._draining = True
            if self.cycle is None or self.cycle.response_complete:
                self._unset_keepalive_if_required()
                self._linger = self.loop.call_later(_LINGER, self.transport.close)
            else:
                self.cycle.keep_alive = False

        def send_400_response(self, msg: str) -> None:
            if self._head_bytes > self._settings.max_header_bytes:
                self._too_large()
            else:
                self._reply(400, "invalid_http", "This is not a valid HTTP request.")

        def _too_large(self) -> None:
            limit = self._settings.max_header_bytes
            self._reply(431, "headers_too_large", f"The headers are larger than {limit} bytes.")

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(self._settings.header_timeout, self._head_late)

        def _head_late(self) -> None:
            self._head_timer = None
            if self.parser is not None and not self._head_done:
                self._reply(408, "header_timeout", "The headers did not arrive in time.")

        def _reply(self, status: int, code: str, message: str) -> None:
            """Without the application: the connection is closed after it."""
            if self.transport.is_closing():
                return
            body = error_body(status, code, message)
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n" % (status, _REASONS.get(status, b"Service Unavailable"), len(body)) + body
            )
            self.transport.close()

    return Protocol


def _keep_alive(sock: socket.socket | None) -> None:
    """A peer that vanished without a word is noticed by the kernel within a minute and a half."""
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
