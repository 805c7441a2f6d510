"""One listening socket: it takes connections in, with TLS if it has a certificate, and lets them go in peace."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from citadel_gateway.protocol import ClientConnection, Cycle

if TYPE_CHECKING:
    import ssl

    from citadel_gateway.budget import Budget

logger = logging.getLogger("citadel_gateway")

_BACKLOG = 1024


class Listener:
    def __init__(
        self,
        sock: socket.socket,
        serve: Callable[[Cycle], Awaitable[None]],
        budget: Budget,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._sock = sock
        self._serve = serve
        self._budget = budget
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        make: Any = self._connection if self._tls is None else functools.partial(self._handshake, self._tls)
        if self._sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(make, sock=self._sock, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(make, sock=self._sock, backlog=_BACKLOG)

    def close(self) -> None:
        """Take no more in; what is idle is closed in a moment, what is being answered after its answer."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._budget.connections):
            connection.shutdown()

    async def closed(self) -> None:
        """When the last connection has gone, and what it ran."""
        await self._budget.empty.wait()

    def _connection(self) -> ClientConnection:
        return ClientConnection(self._serve, self._budget)

    def _handshake(self, context: ssl.SSLContext) -> Handshake:
        return Handshake(self._connection(), context, self._budget, self._handshakes)


class Handshake(asyncio.Protocol):
    """A connection counts from its first packet: one that never ends its handshake holds a place of its address."""

    def __init__(
        self, connection: ClientConnection, context: ssl.SSLContext, budget: Budget, running: set[asyncio.Task[None]]
    ) -> None:
        self._connection = connection
        self._context = context
        self._budget = budget
        self._running = running
        self._early: list[bytes] = []  # as it comes from the wire, then what is deciphered before anybody can take it
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._connection.admitted(transport):
            # it could only be told after a handshake
            transport.abort()  # type: ignore[attr-defined]
            self._connection.connection_lost(None)
            return
        task = asyncio.get_running_loop().create_task(self._shake_hands(transport))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True

    async def _shake_hands(self, transport: Any) -> None:
        loop = asyncio.get_running_loop()
        shaking = loop.create_task(
            loop.start_tls(
                transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._budget.settings.header_timeout,
            )
        )
        await asyncio.sleep(0)  # it takes the transport over ...
        await asyncio.sleep(0)  # ... and listens, from the next turn of the loop on
        # Whatever ends it (uvloop has a RuntimeError for a client that has left already, and waits for one that left
        # unseen): a place that is not given back is lost.
        early, self._early = self._early, []
        try:
            _hand_over(b"".join(early), transport.get_protocol())
        except Exception:
            transport.abort()
        if transport.is_closing():
            shaking.cancel()
        await asyncio.wait({shaking})
        secured = None if shaking.cancelled() or shaking.exception() else shaking.result()
        connection = self._connection
        if secured is None or self._lost:
            transport.abort()
            connection.connection_lost(None)
            return
        # a request may have come with the end of the handshake, before there was a transport to answer on
        secured.set_protocol(connection)  # type: ignore[arg-type]  # a protocol in all but name
        connection.connection_made(secured)
        for data in self._early:
            connection.data_received(data)


def _hand_over(data: bytes, protocol: Any) -> None:
    """What has come before there was anybody to read it."""
    while data:
        buffer = protocol.get_buffer(len(data))
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
