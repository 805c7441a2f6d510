"""Redis over one connection: what is sent in one turn of the loop goes out together, and replies come in order.

Nobody waits for it longer than `timeout_ms`: the first reply that is late marks it away, and with it all that wait
behind that one. From then on a call fails at once, and the connection is made again in the background.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis

from citadel_gateway.config import split_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from citadel_gateway.config import Redis as Settings

    Then = Callable[[Any], None]  # gets the reply, an exception of Redis' own included, or Away

Part = bytes | str | int | float

logger = logging.getLogger("citadel_gateway")

_CONNECT = 2.0
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_PROVEN = 10.0  # a connection that lasted so long makes the next pause a short one
# it answers, but is of no use to anybody
_UNUSABLE = ("LOADING", "READONLY", "MASTERDOWN", "OOM", "MISCONF", "NOAUTH", "BUSY", "NOSCRIPT", "NOPERM")


class Away(Exception):
    """Redis does not answer; the message says since what."""


class Connection(asyncio.Protocol):
    def __init__(self, timeout: float, lost: Callable[[str], None]) -> None:
        self._timeout = timeout
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._waiting: deque[tuple[float, Then]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._over = ""  # why

    def send(self, parts: tuple[Part, ...], then: Then) -> None:
        if self._over:
            raise Away(self._over)
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(parts))  # type: ignore[arg-type]  # of one part, they say
        self._waiting.append((time.monotonic() + self._timeout, then))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._look)

    async def call(self, *parts: Part) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()

        def then(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.send(parts, then)
        return await future

    def end(self, reason: str) -> None:
        """Whoever waits is told; nothing is sent any more."""
        if self._over:
            return
        self._over = reason
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._lost(reason)
        while self._waiting:
            self._waiting.popleft()[1](Away(reason))

    def _flush(self) -> None:
        if not self._over and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _look(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        # after a turn that took long the loop reads before it looks at its timers, so that nobody else is blamed
        left = self._waiting[0][0] - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.end(f"no answer within {self._timeout * 1000:g} ms")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's say not what they are

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while self._waiting and (reply := self._reader.gets()) is not False:
                self._waiting.popleft()[1](reply)
                if isinstance(reply, hiredis.ReplyError) and str(reply).startswith(_UNUSABLE):
                    self.end(str(reply))
        except hiredis.ProtocolError as error:
            self.end(f"an answer that is not Redis': {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.end(str(error) if error is not None else "it closed the connection")


def _secret(path: str) -> str:
    """Of a file; one without a folder is in the one that systemd gives the unit."""
    return Path(os.environ.get("CREDENTIALS_DIRECTORY", ""), path).read_text(encoding="utf-8").strip()


class Redis:
    """What keeps a connection. `prepare` is awaited on each new one; then `joined` is called, and it is used."""

    def __init__(
        self,
        settings: Settings,
        *,
        database: int | None = None,
        prepare: Callable[[Connection], Awaitable[None]] | None = None,
        joined: Callable[[Connection], None] | None = None,
    ) -> None:
        self._settings = settings
        self._database = settings.database if database is None else database
        self._prepare = prepare
        self._joined = joined
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._since = time.time()
        self.reason = "not yet connected"  # why it is away
        self.losses = 0

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="redis")

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end("the gateway stops")

    @property
    def up(self) -> bool:
        return self._connection is not None

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = {"status": "healthy" if self.up else "unavailable", "since": round(self._since, 3)}
        return report if self.up else report | {"reason": self.reason}

    def send(self, parts: tuple[Part, ...], then: Then) -> None:
        """Without waiting: `then` gets the reply. Raises Away at once where there is nobody to send to."""
        if self._connection is None:
            raise Away(self.reason)
        self._connection.send(parts, then)

    async def call(self, *parts: Part) -> Any:
        if self._connection is None:
            raise Away(self.reason)
        return await self._connection.call(*parts)

    def drop(self, reason: str) -> None:
        """Begin anew with another connection."""
        if self._connection is not None:
            self._connection.end(reason)

    def _lost(self, reason: str) -> None:
        if self._connection is None:
            return  # it never got so far as to be used
        self._connection = None
        self.losses += 1
        self.reason = reason
        self._since = time.time()
        self._gone.set()
        logger.warning("Redis at %s is away: %s", self._settings.address, reason)

    async def _keep(self) -> None:
        pause = _PAUSE
        while True:
            begun = time.monotonic()
            try:
                reason = await self._opened()
            except Exception as error:
                logger.exception("a bug at the connection to Redis")
                reason = repr(error)
                self.drop(reason)
            if reason is None:
                await self._gone.wait()
                if time.monotonic() - begun > _PROVEN:
                    pause = _PAUSE
            elif reason != self.reason:
                self.reason = reason
                logger.warning("Redis at %s cannot be used: %s", self._settings.address, reason)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _opened(self) -> str | None:
        """What is in the way of using it, if anything is."""
        connection: Connection | None = None
        reason = "given up"
        try:
            async with asyncio.timeout(_CONNECT):
                connection = await self._connect()
            await self._greet(connection)
            if self._prepare is not None:
                await self._prepare(connection)
        except TimeoutError:
            reason = f"no connection within {_CONNECT:g} s"
        except (OSError, Away, hiredis.HiredisError, UnicodeDecodeError) as error:
            reason = str(error) or type(error).__name__
        else:
            self._use(connection)
            return None
        finally:
            if connection is not None and connection is not self._connection:
                connection.end(reason)
        return reason

    def _use(self, connection: Connection) -> None:
        self._gone.clear()
        self._connection = connection
        self._since = time.time()
        if self._joined is not None:
            self._joined(connection)
        logger.info("Redis at %s is there", self._settings.address)

    async def _connect(self) -> Connection:
        settings = self._settings
        loop = asyncio.get_running_loop()

        def protocol() -> Connection:
            return Connection(settings.timeout_ms / 1000, self._lost)

        if settings.address.startswith("/"):
            return (await loop.create_unix_connection(protocol, settings.address))[1]
        host, port = split_address(settings.address)
        context = None
        if settings.tls is not None:
            context = ssl.create_default_context(cafile=settings.tls.authorities)
        return (await loop.create_connection(protocol, host, port, ssl=context))[1]

    async def _greet(self, connection: Connection) -> None:
        settings = self._settings
        if settings.password_file is not None:
            # read each time: it may have been changed meanwhile
            password = _secret(settings.password_file)
            await connection.call("AUTH", *([settings.user] if settings.user else []), password)
        if self._database:
            await connection.call("SELECT", self._database)
        await connection.call("PING")
