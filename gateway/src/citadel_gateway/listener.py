"""One listening socket: it takes connections in, with TLS if it has a certificate, and lets them go in peace."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from citadel_gateway.protocol import ClientConnection, Cycle
from citadel_gateway.secured import Secured

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

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        make: Any = self._connection if self._tls is None else functools.partial(self._secured, self._tls)
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

    def _secured(self, context: ssl.SSLContext) -> Secured:
        return Secured(self._connection(), context, self._budget.settings.header_timeout)
