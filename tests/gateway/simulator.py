"""A simulated vLLM that does what a script tells it, and remembers what became of each request.

In tests it is started in the same loop as the gateway. By hand it gives the gateway something to talk to:

    python -m tests.gateway.simulator --port 11403 --model phi-3-mini
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Act:
    """What to do with one request. The default is a quick, well-behaved answer of `tokens` tokens."""

    tokens: int = 5
    gap: float = 0.0  # seconds between the events of a stream
    delay: float = 0.0  # before the first byte of the answer
    status: int = 200
    body: bytes | None = None  # instead of the usual one
    headers: tuple[str, ...] = ()
    reset: bool = False  # close with a reset before any answer
    stop_after: int | None = None  # events, after which ...
    then: str = "reset"  # ... reset, close, stall, error_event, no_done, half_event, garbage
    text: str = "word "
    split: int | None = None  # write the stream in pieces of so many bytes
    usage: bool = True
    raw: bytes | None = None  # write exactly this and close


# the words of vLLM 0.32, v1/engine/exceptions.py
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
_FAILED = b'{"error":{"message":"engine died","code":500}}'
_DEAD = Act(status=500, body=json.dumps({"error": {"message": ENGINE_DEAD, "code": 500}}).encode())


@dataclass
class Seen:
    """One request as the simulator saw it."""

    path: str
    headers: dict[str, str]
    body: Any
    started: float = field(default_factory=time.monotonic)
    sent: int = 0  # events or bytes of the body
    state: str = "running"  # running, done, aborted (the client of the simulator left)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, state: str) -> None:
        if self.state == "running":
            self.state = state
            self.ended.set()


class Simulator:
    def __init__(self, model: str = "phi-3-mini", port: int = 0) -> None:
        self.model = model
        self.port = port
        self.began = 0.0  # what it says of its process
        self.default = Act()
        self.script: deque[Act] = deque()
        self.seen: list[Seen] = []
        self.embed: Callable[[Any], list[float]] = lambda _: [0.5, 0.25]
        self.health_status = 200
        self.health_delay = 0.0
        self.metric_running: float | None = None  # None: the truth
        self.tokens_made = 0
        self.probes = 0
        self.connections: set[asyncio.StreamWriter] = set()
        self.gate = asyncio.Event()  # while it is cleared, no answer is begun
        self.gate.set()
        self.rules: list[tuple[Callable[[Any], bool], Act]] = []  # for bodies that are special
        self.deadly: Callable[[Any], bool] | None = None  # the engine dies on such a body ...
        self.dies_by = "reset"  # ... and everybody sees a reset, or "error": answers of a server without an engine
        self.restart_after = 0.3
        self.deaths = 0
        self._server: asyncio.Server | None = None
        self._restart: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # control

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> int:
        return sum(seen.state == "running" for seen in self.seen)

    def is_idle(self) -> bool:
        return self.running == 0

    async def start(self) -> Simulator:
        self.began = time.time()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self, *, abruptly: bool = False) -> None:
        """Nothing listens any more; `abruptly` resets what is open, as a killed process would."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self.connections):
            if abruptly:
                _reset(writer)
            else:
                writer.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """The end: what has died is not started again either."""
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        await self.stop()

    def _dead(self) -> bool:
        return self._restart is None or self._restart.done()

    async def _die(self) -> None:
        """As when the kernel kills an engine: all running requests with it, and systemd starts another one."""
        self.deaths += 1
        if self.dies_by == "error":
            for seen in self.seen:
                if seen.state == "running":
                    seen.end("died")
            await asyncio.sleep(0.1)
        await self.stop(abruptly=True)
        await asyncio.sleep(self.restart_after)
        await self.start()

    async def __aenter__(self) -> Simulator:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, RuntimeError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self.connections.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return False
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = first.split(" ")
        if method == "GET":
            await self._get(path, writer)
            return True
        seen = Seen(path, headers, json.loads(body))
        self.seen.append(seen)
        act = self.script.popleft() if self.script else self.default
        for special, special_act in self.rules:
            if special(seen.body):
                act = special_act
        if self.deadly is not None and self.deadly(seen.body) and self._dead():
            self._restart = asyncio.create_task(self._die())
        # whoever closes the connection while the answer is made aborts it, as with vLLM
        watch = asyncio.create_task(reader.read(1))
        work = asyncio.create_task(self._answer(act, seen, writer))
        try:
            await asyncio.wait({watch, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                seen.end("aborted")
                work.cancel()
                return False
            return await work
        finally:
            seen.end("aborted")  # unless it has ended otherwise; uvloop tells of a lost client by a RuntimeError, too
            work.cancel()
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def _get(self, path: str, writer: asyncio.StreamWriter) -> None:
        self.probes += path == "/health"
        status, kind, body = 200, "text/plain", ""
        if path == "/health":
            await asyncio.sleep(self.health_delay)
            status = self.health_status
        elif path == "/v1/models":
            kind, body = "application/json", json.dumps({"object": "list", "data": [{"id": self.model}]})
        elif path == "/metrics":
            running = self.running if self.metric_running is None else self.metric_running
            body = (
                f'vllm:num_requests_running{{engine="0",model_name="{self.model}"}} {running:.1f}\n'
                f'vllm:num_requests_waiting{{engine="0",model_name="{self.model}"}} 0.0\n'
                f'vllm:kv_cache_usage_perc{{engine="0",model_name="{self.model}"}} 0.25\n'
                f'vllm:iteration_tokens_total_count{{engine="0",model_name="{self.model}"}} {self.tokens_made}.0\n'
                "process_resident_memory_bytes 1.5e+09\n"
                f"process_start_time_seconds {self.began}\n"
            )
        else:
            status = 404
        writer.write(_head(status, kind, len(body)) + body.encode())
        await writer.drain()

    async def _answer(self, act: Act, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        """True if the connection can carry another request."""
        if self._restart is not None and not self._restart.done():
            await self._without_engine(seen)
            act = _DEAD
        else:
            await asyncio.sleep(act.delay)
            await self.gate.wait()
        if act.raw is not None:
            writer.write(act.raw)
            await writer.drain()
            seen.end("done")
            return False
        if act.reset:
            seen.end("done")
            _reset(writer)
            return False
        if act.status != 200 or not seen.body.get("stream"):
            return await self._whole(act, seen, writer)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        count = 0
        async for event in self._events(act, seen):
            if act.stop_after is not None and count >= act.stop_after:
                return await self._misbehave(act, seen, writer, event)
            for piece in _pieces(event, act.split):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                if act.split is not None:
                    await asyncio.sleep(0)
            count += 1
            seen.sent += 1
            if act.gap:
                await asyncio.sleep(act.gap)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        seen.end("done")
        return True

    async def _without_engine(self, seen: Seen) -> None:
        if self.dies_by == "reset":
            await asyncio.sleep(3600)

    async def _whole(self, act: Act, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        if act.gap:
            await asyncio.sleep(act.gap * act.tokens)
        body = act.body if act.body is not None else json.dumps(self._document(act, seen)).encode()
        self.tokens_made += act.tokens if act.status == 200 else 0
        head = _head(act.status, "application/json", len(body), act.headers)
        if act.stop_after is not None:
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            seen.end("done")
            if act.then == "stall":
                await asyncio.sleep(3600)
            elif act.then == "reset":
                _reset(writer)
            return False
        writer.write(head + body)
        await writer.drain()
        seen.sent = len(body)
        seen.end("done")
        return True

    async def _misbehave(self, act: Act, seen: Seen, writer: asyncio.StreamWriter, event: bytes) -> bool:
        if act.then == "stall":
            await asyncio.sleep(3600)
        last = {
            "error_event": b"data: %b\n\ndata: [DONE]\n\n" % (act.body or _FAILED),
            "half_event": event[: len(event) // 2],
        }.get(act.then)
        if last is not None:
            writer.write(b"%x\r\n%b\r\n" % (len(last), last))
        if act.then == "garbage":
            writer.write(b"\x00\xffnot a chunk\r\n\r\n")
        if act.then in ("no_done", "error_event"):
            writer.write(b"0\r\n\r\n")
        seen.end("done")
        if act.then == "reset":
            await writer.drain()
            await asyncio.sleep(0.02)
            _reset(writer)
        else:
            await writer.drain()
        return act.then in ("no_done", "error_event")

    async def _events(self, act: Act, seen: Seen) -> AsyncIterator[bytes]:
        chat = seen.path == "/v1/chat/completions"
        base: dict[str, Any] = {"id": "cmpl-1", "created": 1, "model": seen.body.get("model")}
        base["object"] = "chat.completion.chunk" if chat else "text_completion"
        if chat:
            delta: dict[str, Any] = {"role": "assistant", "content": ""}
            yield _event({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        for index in range(act.tokens):
            self.tokens_made += 1
            finish = "stop" if index == act.tokens - 1 else None
            piece = {"delta": {"content": act.text}} if chat else {"text": act.text}
            yield _event({**base, "choices": [{"index": 0, **piece, "finish_reason": finish}]})
        options = seen.body.get("stream_options") or {}
        if options.get("include_usage") and act.usage:
            yield _event({**base, "choices": [], "usage": _usage(act.tokens)})
        yield b"data: [DONE]\n\n"

    def _document(self, act: Act, seen: Seen) -> dict[str, Any]:
        base = {"id": "cmpl-1", "created": 1, "model": seen.body.get("model"), "usage": _usage(act.tokens)}
        if seen.path == "/v1/embeddings":
            return {
                **base,
                "object": "list",
                "data": [
                    {"object": "embedding", "index": number, "embedding": self.embed(text)}
                    for number, text in enumerate(_inputs(seen.body["input"]))
                ],
            }
        text = act.text * act.tokens
        if seen.path == "/v1/completions":
            return {
                **base,
                "object": "text_completion",
                "choices": [{"index": 0, "text": text, "finish_reason": "stop"}],
            }
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {**base, "object": "chat.completion", "choices": [choice]}


def _inputs(given: Any) -> list[Any]:
    return given if isinstance(given, list) and given and isinstance(given[0], str | list) else [given]


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _pieces(data: bytes, size: int | None) -> list[bytes]:
    return [data] if size is None else [data[at : at + size] for at in range(0, len(data), size)]


def _head(status: int, kind: str, length: int, extra: tuple[str, ...] = ()) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {length}", *extra]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for something to become true, and fail if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def eventually(condition: Callable[[], Awaitable[object]], seconds: float = 5.0) -> None:
    """The same for what has to be asked for."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description="a simulated vLLM")
    parser.add_argument("--port", type=int, default=11403)
    parser.add_argument("--model", default="phi-3-mini")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--gap", type=float, default=0.05)
    arguments = parser.parse_args()

    async def serve() -> None:
        simulator = Simulator(arguments.model, arguments.port)
        simulator.default = replace(simulator.default, tokens=arguments.tokens, gap=arguments.gap)
        await simulator.start()
        print(f"simulated {arguments.model} on {simulator.url}", flush=True)
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
