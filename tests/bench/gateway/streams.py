"""Streams with a clock in every chunk: the server that sends them and the client that reads the clock.

Both run on the same machine, so that the monotonic clock is the same. As a program it is the server:

    python -m tests.bench.gateway.streams PORT
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field

import uvloop

CHUNKS = 64
GAP = 0.020

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "phi",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
_MODELS = b'{"object":"list","data":[{"id":"phi","object":"model"}]}'
_EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"phi","choices":[{"index":0,'
    b'"delta":{"content":"<%d>"},"finish_reason":null}]}\n\n'
)
_STAMP = re.compile(rb"<(\d+)>")


class Server(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._data = b""
        self._left = 0
        self._next = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if length is not None and len(body) < int(length[1]):
            return
        self._data = b""
        if b'"stream":true' in body.replace(b" ", b""):
            self._transport.write(_HEAD)
            self._left = CHUNKS
            self._next = self._loop.time() + GAP
            self._send()
            return
        answer = _WHOLE if head.startswith(b"POST") else _MODELS if b"/v1/models" in head else b""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer)
        )

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        event = _EVENT % time.monotonic_ns()
        self._left -= 1
        if self._left:
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            self._loop.call_at(self._next, self._send)
            self._next += GAP
        else:
            event += b"data: [DONE]\n\n"
            self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))


@dataclass
class Result:
    """Milliseconds: to the first chunk, and each chunk on its way; and the chunks that never came."""

    first: list[float] = field(default_factory=list)
    transit: list[float] = field(default_factory=list)
    lost: int = 0
    broken: int = 0


class Reader(asyncio.Protocol):
    def __init__(self, request: bytes, result: Result, done: asyncio.Future[None]) -> None:
        self._request = request
        self._result = result
        self._done = done
        self._seen = 0
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._sent = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._rest + data
        end = 0
        for stamp in _STAMP.finditer(data):
            end = stamp.end()
            if not self._seen:
                self._result.first.append((now - self._sent) / 1e6)
            self._seen += 1
            self._result.transit.append((now - int(stamp[1])) / 1e6)
        self._rest = data[max(end, len(data) - 32) :]
        if b"[DONE]" in data:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._result.lost += CHUNKS - self._seen
        self._result.broken += self._seen != CHUNKS
        if not self._done.done():
            self._done.set_result(None)


async def read_streams(port: int, count: int, headers: dict[str, str], rounds: int) -> Result:
    """So many streams at once, started over the length of one gap, again and again."""
    body = b'{"model":"phi","messages":[{"role":"user","content":"hello"}],"max_tokens":64,"stream":true}'
    lines = [f"{name}: {value}" for name, value in {**headers, "Content-Length": str(len(body))}.items()]
    request = ("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode() + body
    loop = asyncio.get_running_loop()
    result = Result()

    async def one(after: float) -> None:
        await asyncio.sleep(after)
        done: asyncio.Future[None] = loop.create_future()
        await loop.create_connection(lambda: Reader(request, result, done), "127.0.0.1", port)
        async with asyncio.timeout(60):
            await done

    # a flood of starts measures the queue of starts: they come evenly over the length of the stream
    spread = CHUNKS * GAP if count > 16 else GAP
    for _ in range(rounds):
        await asyncio.gather(*(one(spread * number / count) for number in range(count)))
    return result


def measure(port: int, count: int, headers: dict[str, str], rounds: int = 1) -> Result:
    return uvloop.run(read_streams(port, count, headers, rounds))


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(loop), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
