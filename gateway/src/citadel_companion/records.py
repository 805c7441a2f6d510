"""What a record of the spool is in a table: columns, and their values."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple


class Row(NamedTuple):
    """The order of the columns of `llm_model_requests`."""

    request_id: uuid.UUID
    model_name: str
    timestamp: datetime
    user_id: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    latency_ms: int
    status: str
    error_message: str | None
    visible_id: str
    endpoint: str
    status_code: int
    first_token_ms: int | None
    queue_ms: int
    cached_tokens: int
    charged_tokens: int
    exact: bool
    stream: bool
    retries: int
    tier: str | None
    replica: str | None


def row_of(told: Mapping[str, Any]) -> Row:
    first = told["first_ms"]
    prompt, completion = int(told["prompt_tokens"]), int(told["completion_tokens"])
    return Row(
        request_id=uuid.UUID(told["id"]),
        model_name=str(told["model"])[:100],
        timestamp=datetime.fromtimestamp(told["time"], UTC),
        user_id=clean(told["user"], 100),
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        latency_ms=round(told["latency_ms"]),
        status="success" if told["status"] < 400 else "error",
        error_message=told["error"],
        visible_id=str(told["request_id"])[:128],
        endpoint=str(told["endpoint"])[:50],
        status_code=int(told["status"]),
        first_token_ms=round(first) if first is not None else None,
        queue_ms=round(told["queue_ms"]),
        cached_tokens=int(told["cached_tokens"]),
        charged_tokens=int(told["charged"]),
        exact=bool(told["exact"]),
        stream=bool(told["stream"]),
        retries=int(told["retries"]),
        tier=clean(told["tier"], 50),
        replica=clean(told["replica"], 100),
    )


def clean(text: str | None, most: int) -> str | None:
    """PostgreSQL has no text with a zero byte."""
    return text.replace("\0", "")[:most] if text is not None else None
