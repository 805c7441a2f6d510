"""Station 8: what is remembered of a request.

Sinks take the finished exchange one after the other: metrics, access log and audit are the first three, and more may
be added (`Recorder.sinks`). A sink is never awaited, keeps no more than it can hold, and its failure is its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from citadel_gateway.identity import NOBODY
from citadel_gateway.logs import AuditLog, JsonLog, timestamp
from citadel_gateway.metrics import UNKNOWN_MODEL, Metrics

if TYPE_CHECKING:
    from citadel_gateway.exchange import Exchange

_AUDITED = frozenset((401, 403, 429))
_REFUSED = frozenset((401, 403, 422, 429))
_BROKEN = "request_breaks_model"


class Record:
    """A finished exchange and what all sinks want to know of it."""

    __slots__ = ("exchange", "first", "model", "seconds", "status")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.seconds = time.monotonic() - exchange.started
        self.status = exchange.outcome or exchange.status or 499
        self.model = exchange.model.name if exchange.model is not None else UNKNOWN_MODEL
        self.first: float | None = exchange.first_byte - exchange.started if exchange.first_byte else None


Sink = Callable[[Record], None]


class Recorder:
    def __init__(self, report: Callable[[Exception], None], *sinks: Sink) -> None:
        self.sinks: list[Sink] = list(sinks)
        self._report = report

    def record(self, exchange: Exchange) -> None:
        record = Record(exchange)
        for sink in self.sinks:
            try:
                sink(record)
            except Exception as error:
                self._report(error)


def to_metrics(metrics: Metrics) -> Sink:
    work = metrics.work

    def count(record: Record) -> None:
        exchange = record.exchange
        work.request(record.model, exchange.endpoint, record.status, record.seconds)
        if exchange.upstream_started:
            # a whole answer has no first token: its first byte is its last
            first = record.first if exchange.stream and exchange.status == 200 else None
            work.call(
                record.model,
                exchange.queued,
                first,
                (exchange.prompt_tokens, exchange.completion_tokens, exchange.cached_tokens),
            )

    return count


def to_access(log: JsonLog, *, prompts: bool) -> Sink:
    def write(record: Record) -> None:
        exchange = record.exchange
        principal = exchange.principal
        first = record.first
        line: dict[str, Any] = {
            "time": timestamp(),
            "log": "access",
            "request_id": exchange.id,
            "address": exchange.address,
            "principal": principal.id if principal is not NOBODY else None,
            "tier": principal.tier_name,
            "method": exchange.method,
            "path": exchange.path,
            "model": record.model,
            "replica": exchange.replica.name if exchange.replica is not None else None,
            "stream": exchange.stream,
            "status": exchange.status or 499,
            "outcome": record.status,
            "error": exchange.error_code,
            "duration_ms": round(record.seconds * 1000, 3),
            "queue_ms": round(exchange.queued * 1000, 3),
            "first_byte_ms": round(first * 1000, 3) if first is not None else None,
            "prompt_tokens": exchange.prompt_tokens,
            "completion_tokens": exchange.completion_tokens,
            "usage_exact": exchange.usage_exact,
            "charged_tokens": exchange.charged,
            "retries": exchange.retries,
            "cache": exchange.cache or None,
            "bytes_out": exchange.bytes_out,
        }
        if prompts:
            line["body"] = exchange.body.decode("utf-8", "replace")
        log.write(line)

    return write


def to_audit(audit: AuditLog) -> Sink:
    def write(record: Record) -> None:
        status = record.status
        if status not in _AUDITED and status < 500 and record.exchange.error_code != _BROKEN:
            return
        exchange = record.exchange
        event = {401: "authentication", 403: "authorization", 429: "limit"}.get(status, "error")
        audit.often(
            # who repeats it gets one line more in a minute, with the number
            (event, exchange.principal.id, exchange.address, exchange.error_code),
            event,
            outcome="refused" if status in _REFUSED else "failed",
            actor=exchange.principal.id,
            address=exchange.address,
            request_id=exchange.id,
            model=exchange.model.name if exchange.model is not None else None,
            status=status,
            code=exchange.error_code,
        )

    return write
