"""Spans of sampled requests, as OTLP over HTTP to a collector; a sink of the record, off unless `tracing` names one.

A trace is begun before the first station, for the replica gets the span of its call as parent. Its spans are made when
the exchange is over, from the times that it has anyway. What cannot be sent waits in a bounded queue and is dropped
in the end: a collector is no reason to hold anything up.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from citadel_gateway import __version__
from citadel_gateway.upstream import Pool, UpstreamError

if TYPE_CHECKING:
    from citadel_gateway.config import Tracing
    from citadel_gateway.exchange import Exchange
    from citadel_gateway.metrics import Metrics
    from citadel_gateway.record import Record, Sink

_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
).fullmatch
_MOST_WAITING = 2048  # traces
_BATCH = 128  # so that the event loop is not held up by their JSON
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_PATIENCE = 5.0
_INTERNAL, _SERVER, _CLIENT = 1, 2, 3
_FAILED = {"code": 2}


class Trace:
    """The ids of a request's spans; those of a request that is not sampled are handed on all the same."""

    __slots__ = ("call", "id", "parent", "root", "sampled")

    def __init__(self, given: bytes | None, sample: float) -> None:
        found = _PARENT(given) if given is not None else None
        if found is not None:
            # who began the trace has decided
            self.id, self.parent = found[1].decode(), found[2].decode()
            self.sampled = bool(int(found[3], 16) & 1)
        else:
            self.id, self.parent = f"{random.getrandbits(128) or 1:032x}", ""
            self.sampled = random.random() < sample  # noqa: S311 - a choice, no secret
        self.root, self.call = (f"{random.getrandbits(64) or 1:016x}" for _ in range(2))

    def line(self) -> bytes:
        return b"traceparent: 00-%b-%b-%02d\r\n" % (self.id.encode(), self.call.encode(), self.sampled)


class Tracer:
    def __init__(self, settings: Tracing, metrics: Metrics) -> None:
        where = urlsplit(settings.endpoint)
        self._settings = settings
        self._metrics = metrics
        self._pool = Pool(where.hostname or "", where.port or 80, _PATIENCE)
        head = (
            f"POST {where.path or '/v1/traces'} HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\n"
        )
        self._head = head.encode()
        self._waiting: deque[list[dict[str, Any]]] = deque()
        self._second, self._begun = 0, 0
        self._sender: asyncio.Task[None] | None = None

    def begin(self, exchange: Exchange) -> None:
        trace = Trace(exchange.headers.get(b"traceparent"), self._settings.sample)
        if trace.sampled and not self._room(int(exchange.started)):
            trace.sampled = False
            self._metrics.dropped_spans.labels("rate").inc()
        state = exchange.headers.get(b"tracestate") if trace.parent else None
        exchange.trace_lines = trace.line() + (b"tracestate: %b\r\n" % state if state is not None else b"")
        if trace.sampled:
            exchange.trace = trace

    def _room(self, second: int) -> bool:
        """A client may ask for its trace in each of its requests: not in more than this."""
        if second != self._second:
            self._second, self._begun = second, 0
        self._begun += 1
        return self._begun <= self._settings.traces_per_second

    def sink(self) -> Sink:
        def keep(record: Record) -> None:
            if record.exchange.trace is None:
                return
            if len(self._waiting) >= _MOST_WAITING:
                self._metrics.dropped_spans.labels("queue").inc()
                return
            self._waiting.append(spans(record, record.exchange.trace))

        return keep

    def start(self) -> None:
        self._sender = asyncio.create_task(self._send_for_ever(), name="spans")

    async def close(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
        while self._waiting and await self._sent():
            pass
        self._pool.close()

    async def _send_for_ever(self) -> None:
        pause = _PAUSE
        while True:
            await asyncio.sleep(pause)
            while self._waiting:
                if not await self._sent():
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    break
                pause = _PAUSE

    async def _sent(self) -> bool:
        """Whether the collector took the oldest of what waits, or never will."""
        batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
        body = orjson.dumps(request(batch))
        try:
            connection = await self._pool.request(
                b"%bcontent-length: %d\r\n\r\n%b" % (self._head, len(body), body), _PATIENCE
            )
            try:
                await connection.read_all(1 << 20)
            finally:
                connection.finish()
        except UpstreamError:
            again = True
        else:
            again = connection.status in (429, 502, 503, 504)
            if not again:
                self._metrics.sent_spans.inc(sum(map(len, batch))) if connection.status == 200 else self._lost(batch)
        if again:
            room = _MOST_WAITING - len(self._waiting)
            self._waiting.extendleft(reversed(batch[:room]))
        return not again

    def _lost(self, batch: list[list[dict[str, Any]]]) -> None:
        self._metrics.dropped_spans.labels("refused").inc(len(batch))


def request(batch: list[list[dict[str, Any]]]) -> dict[str, Any]:
    who = {"service.name": "citadel-gateway", "service.version": __version__}
    scope = {"name": "citadel_gateway", "version": __version__}
    found = [span for trace in batch for span in trace]
    resource = {"attributes": attributes(who)}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": found}]}]}


def attributes(said: dict[str, Any]) -> list[dict[str, Any]]:
    """What is not known is not said."""
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in said.items()
        if value is not None
    ]


def spans(record: Record, trace: Trace) -> list[dict[str, Any]]:
    exchange = record.exchange
    end = exchange.started + record.seconds
    # what the exchange has is the monotonic clock's
    offset = time.time_ns() - round(end * 1e9)

    def span(name: str, kind: int, ids: tuple[str, str], times: tuple[float, float], **more: Any) -> dict[str, Any]:
        own, parent = ids
        began, ended = (str(offset + round(at * 1e9)) for at in times)
        above = {"parentSpanId": parent} if parent else {}
        whole = {"startTimeUnixNano": began, "endTimeUnixNano": ended, **more}
        return {"traceId": trace.id, "spanId": own, **above, "name": name, "kind": kind, **whole}

    failed = {"status": _FAILED} if record.status >= 500 else {}
    told = {
        "http.request.method": exchange.method,
        "url.path": exchange.path,
        "http.response.status_code": exchange.status or 499,
        "gen_ai.operation.name": exchange.endpoint,
        "gen_ai.request.model": exchange.model.name if exchange.model is not None else None,
        "gen_ai.usage.input_tokens": exchange.prompt_tokens,
        "gen_ai.usage.output_tokens": exchange.completion_tokens,
        "error.type": exchange.error_code,
        "citadel.request_id": exchange.id,
        "citadel.principal": exchange.principal.id,
        "citadel.outcome": record.status,
        "citadel.retries": exchange.retries,
        "citadel.cache": exchange.cache or None,
    }
    name, times = f"{exchange.method} {exchange.path}", (exchange.started, end)
    found = [span(name, _SERVER, (trace.root, trace.parent), times, attributes=attributes(told), **failed)]
    called = exchange.upstream_started
    if not called:
        return found
    if exchange.queued:
        waited = f"{random.getrandbits(64) or 1:016x}"
        found.append(span("queue", _INTERNAL, (waited, trace.root), (called - exchange.queued, called)))
    replica = exchange.replica.name if exchange.replica is not None else "model"
    events = {}
    if exchange.first_byte:
        events = {"events": [{"name": "first byte", "timeUnixNano": str(offset + round(exchange.first_byte * 1e9))}]}
    whose = attributes({"citadel.replica": replica})
    ids = trace.call, trace.root
    found.append(span(f"call {replica}", _CLIENT, ids, (called, end), attributes=whose, **events, **failed))
    return found
