"""Station 8: what is remembered of a request: metrics, one line of the access log, the audit log where it matters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from citadel_gateway.identity import NOBODY
from citadel_gateway.logs import AuditLog, JsonLog, timestamp
from citadel_gateway.metrics import UNKNOWN_MODEL, Metrics

if TYPE_CHECKING:
    from citadel_gateway.exchange import Exchange

_AUDITED = frozenset((401, 403, 429))


class Recorder:
    def __init__(self, metrics: Metrics, access: JsonLog, audit: AuditLog, *, prompts: bool) -> None:
        self.metrics = metrics
        self.access = access
        self.audit = audit
        self.prompts = prompts

    def record(self, exchange: Exchange) -> None:
        now = time.monotonic()
        seconds = now - exchange.started
        status = exchange.outcome or exchange.status or 499
        model = exchange.model.name if exchange.model is not None else UNKNOWN_MODEL
        first = exchange.first_byte - exchange.started if exchange.first_byte else None
        work = self.metrics.work
        work.request(model, exchange.endpoint, status, seconds)
        if exchange.upstream_started:
            work.call(
                model,
                exchange.queued,
                first if exchange.status == 200 else None,
                (exchange.prompt_tokens, exchange.completion_tokens, exchange.cached_tokens),
            )
        principal = exchange.principal
        line: dict[str, Any] = {
            "time": timestamp(),
            "log": "access",
            "request_id": exchange.id,
            "address": exchange.address,
            "principal": principal.id if principal is not NOBODY else None,
            "tier": principal.tier_name,
            "method": exchange.method,
            "path": exchange.path,
            "model": model,
            "replica": exchange.replica.name if exchange.replica is not None else None,
            "stream": exchange.stream,
            "status": exchange.status or 499,
            "outcome": status,
            "error": exchange.error_code,
            "duration_ms": round(seconds * 1000, 3),
            "queue_ms": round(exchange.queued * 1000, 3),
            "first_byte_ms": round(first * 1000, 3) if first is not None else None,
            "prompt_tokens": exchange.prompt_tokens,
            "completion_tokens": exchange.completion_tokens,
            "usage_exact": exchange.usage_exact,
            "retries": exchange.retries,
            "bytes_out": exchange.bytes_out,
        }
        if self.prompts:
            line["body"] = exchange.body.decode("utf-8", "replace")
        self.access.write(line)
        if status in _AUDITED or status >= 500:
            self._audit(exchange, status)

    def _audit(self, exchange: Exchange, status: int) -> None:
        event = {401: "authentication", 403: "authorization", 429: "limit"}.get(status, "error")
        self.audit.event(
            event,
            outcome="refused" if status in _AUDITED else "failed",
            actor=exchange.principal.id,
            address=exchange.address,
            request_id=exchange.id,
            model=exchange.model.name if exchange.model is not None else None,
            status=status,
            code=exchange.error_code,
        )
