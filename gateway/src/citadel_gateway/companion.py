"""Requests for the companion, a process beside the gateway: over its unix socket, in the name of who asks.

Who that is has been verified here, and is told in headers that no client can set. The companion may be dead: then its
own paths say so, and nothing else does.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httptools
import orjson

from citadel_gateway.errors import Refusal
from citadel_gateway.limits import Exceeded
from citadel_gateway.reservation import refused

if TYPE_CHECKING:
    from citadel_gateway.config import Companion as Settings
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.gateway import Gateway

_PIECE = 64 * 1024
_LONGEST = 8 * 1024 * 1024  # of an answer that is for the gateway itself
_GLANCE = 0.5  # seconds that a look at it may take
_OURS = b"x-citadel-"
# they say something about a connection, not about the request (RFC 9110, 7.6.1)
_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"expect")
)
# a credential is of use here only
_KEPT_BACK = frozenset((b"authorization", b"x-api-key", b"api-key", b"content-length", b"x-request-id"))


class Companion:
    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    async def __call__(self, exchange: Exchange) -> None:
        gateway = self._gateway
        exchange.principal = gateway.identity.establish(exchange.headers, exchange.address)
        principal = exchange.principal
        meter = gateway.limits.meter(("companion", principal.id), self._settings.rates, principal.tier.class_factor)
        try:
            gateway.limits.enter(meter)
        except Exceeded as exceeded:
            raise refused(exchange, exceeded) from None
        try:
            await self._pass_on(exchange)
        finally:
            gateway.limits.leave(meter)

    async def _pass_on(self, exchange: Exchange) -> None:
        body = await exchange.client.body() if not exchange.client.upgrade else b""
        try:
            async with asyncio.timeout(self._gateway.config.server.connect_timeout):
                reader, writer = await asyncio.open_unix_connection(self._settings.socket)
        except (OSError, TimeoutError):
            raise _absent("does not answer") from None
        try:
            writer.write(self._head(exchange, len(body)) + body)
            await self._answer(exchange, reader, writer)
        except OSError:
            if exchange.client.started:
                exchange.client.abort()
            else:
                raise _absent("broke off") from None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _head(self, exchange: Exchange, length: int) -> bytes:
        headers = exchange.headers
        query = exchange.client.query
        target = exchange.client.target + (b"?" + query if query else b"")
        dropped = {name.strip().lower() for name in headers.get(b"connection", b"").split(b",")}
        parts = [b"%b %b HTTP/1.1\r\n" % (exchange.method.encode(), target)]
        for name, value in headers.items():
            if name in _HOP or name in _KEPT_BACK or name in dropped or name.startswith(_OURS):
                continue
            parts.append(b"%b: %b\r\n" % (name, value))
        parts.append(_in_the_name_of(exchange))
        if exchange.client.upgrade:
            parts.append(b"connection: upgrade\r\nupgrade: %b\r\n\r\n" % headers[b"upgrade"])
        else:
            parts.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % length)
        return b"".join(parts)

    async def _answer(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = _Answer(exchange.method)
        try:
            async with asyncio.timeout(self._settings.timeout):
                while not answer.has_head:
                    answer.feed(await reader.read(_PIECE))
        except TimeoutError:
            raise Refusal(504, "companion_timeout", "The companion did not answer in time.", retry_after=1.0) from None
        client = exchange.client
        exchange.status = answer.status
        lines = self._gateway.walk.lines(exchange) + answer.lines
        if answer.status == 101 and client.upgrade:
            upgrade = exchange.headers[b"upgrade"]
            await exchange.begin(b"%bconnection: upgrade\r\nupgrade: %b\r\n" % (lines, upgrade))
            await self._tunnel(exchange, answer.rest, reader, writer)
            return
        client.upgrade = False
        await exchange.begin(lines)
        while True:
            if answer.parts:
                await exchange.pass_on(b"".join(answer.parts))
                answer.parts.clear()
            if answer.complete:
                break
            answer.feed(await reader.read(_PIECE))
        await exchange.end()

    @staticmethod
    async def _tunnel(
        exchange: Exchange, early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Both ways, until one side has enough."""
        client = exchange.client

        async def up() -> None:
            while data := await client.part():
                writer.write(data)
                await writer.drain()

        async def down() -> None:
            data = early
            while data or (data := await reader.read(_PIECE)):
                await exchange.pass_on(data)
                data = b""

        ways = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        await exchange.end()


def _in_the_name_of(exchange: Exchange) -> bytes:
    principal = exchange.principal
    return b"".join(
        (
            b"x-request-id: %b\r\n" % exchange.id.encode(),
            b"x-citadel-principal: %b\r\n" % principal.id.encode(),
            b"x-citadel-role: %b\r\n" % principal.role.encode(),
            b"x-citadel-tier: %b\r\n" % principal.tier_name.encode(),
            b"x-citadel-address: %b\r\n" % exchange.address.encode(),
        )
    )


async def ask(
    socket: str, exchange: Exchange, path: bytes, purpose: bytes, body: dict[str, object]
) -> tuple[int, bytes]:
    """Something of the gateway's own, in the name of the client; OSError if there is no whole answer."""
    content = orjson.dumps(body)
    head = b"POST %b HTTP/1.1\r\nhost: companion\r\nx-citadel-internal: %b\r\n" % (path, purpose)
    head += _in_the_name_of(exchange) + b"content-type: application/json\r\n"
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(b"%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (head, len(content), content))
        answer = _Answer("POST")
        size = 0
        while not answer.complete:
            data = await reader.read(_PIECE)
            size += len(data)
            if size > _LONGEST:
                raise ConnectionResetError
            answer.feed(data)
        return answer.status, b"".join(answer.parts)
    finally:
        writer.close()


async def is_there(socket: str) -> bool:
    try:
        async with asyncio.timeout(_GLANCE):
            _, writer = await asyncio.open_unix_connection(socket)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


class _Answer:
    """What httptools makes of the companion's answer."""

    def __init__(self, method: str) -> None:
        self.status = 0
        self.lines = b""
        self.parts: list[bytes] = []
        self.has_head = False
        self.complete = False
        self.rest = b""  # after a change of protocol
        self._bodiless = method == "HEAD"
        self._framed = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        if not data:
            # a body without a length ends with the connection; one that has a length was cut
            if not self.has_head or self._framed:
                raise ConnectionResetError
            self.complete = True
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.rest = data[upgrade.args[0] :]
        except httptools.HttpParserError:
            raise ConnectionResetError from None

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._framed = self._framed or name in (b"content-length", b"transfer-encoding")
        if name not in _HOP and name != b"content-length":
            self.lines += b"%b: %b\r\n" % (name, value)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200 and self.status != 101:
            self.lines = b""
            return
        self.has_head = True
        if self._bodiless or self.status in (204, 304):
            self.complete = True

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.complete = True


def _absent(what: str) -> Refusal:
    return Refusal(503, "companion_unavailable", f"The companion {what}; models are not affected.", retry_after=5.0)
