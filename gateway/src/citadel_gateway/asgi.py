"""An ASGI application behind our own protocol: its requests come whole and bounded, and it may take its time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from citadel_gateway.exchange import Exchange

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


async def respond(application: Application, exchange: Exchange, lines: bytes, **own: Any) -> None:
    """`lines` are headers that every answer has, `own` what the application finds in its scope."""
    cycle = exchange.client
    body = await cycle.body()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": cycle.method,
        "root_path": "",
        "path": cycle.path,
        "raw_path": cycle.path.encode("utf-8", "replace"),
        "query_string": cycle.query,
        "headers": list(cycle.headers.items()),
        "client": (exchange.address, 0),
        "server": None,
        **own,
    }
    requested = False
    parts: list[bytes] = []

    async def receive() -> Message:
        nonlocal requested
        if requested:
            return {"type": "http.disconnect"}
        requested = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal lines
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"content-length"]
            lines += b"".join([b"%b: %b\r\n" % (name, value) for name, value in kept])
        else:
            parts.append(message.get("body", b""))

    await application(scope, receive, send)
    await exchange.answer(lines, b"".join(parts))
