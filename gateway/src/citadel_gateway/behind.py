"""Answers in Redis, behind those in memory: they outlive the gateway, and several gateways have them together.

Reading one waits no longer than the connection does, writing one not at all. Without Redis there is only the memory.
"""

from __future__ import annotations

import re
import struct
import time
from typing import TYPE_CHECKING, Any

import hiredis
import zstandard

from citadel_gateway.answers import Entry
from citadel_gateway.redis_client import Away, Redis

if TYPE_CHECKING:
    from citadel_gateway.config import Redis as Settings
    from citadel_gateway.metrics import Metrics

_HEAD = struct.Struct("!BBdd")  # version, flags, since when and how long it is good
_VERSION = 1
_PACKED, _STREAM = 1, 2
_GLOB = re.compile(r"([*?\[\]\\])")
_BATCH = 500


def name_of(model: str, key: bytes) -> str:
    return f"llm:response:{model}:{key.hex()}"


def written(entry: Entry, now: float) -> bytes:
    """`now` is the time of day: the clock of an entry is this process' own."""
    flags = _PACKED * entry.packed | _STREAM * entry.stream
    stored = now - (time.monotonic() - entry.stored)
    return _HEAD.pack(_VERSION, flags, stored, entry.until - entry.stored) + entry.body


def read(told: Any, key: bytes, owner: str, model: str, most: int) -> Entry | None:
    """None for what is not one of ours, too old, or longer than `most`."""
    if not isinstance(told, bytes) or len(told) < _HEAD.size:
        return None
    version, flags, stored, ttl = _HEAD.unpack_from(told)
    age = max(0.0, time.time() - stored)
    if version != _VERSION or not age < ttl:
        return None
    body = told[_HEAD.size :]
    stream, packed = bool(flags & _STREAM), bool(flags & _PACKED)
    entry = Entry(key, owner, model, body, stream=stream, ttl=ttl, age=age)
    if packed:
        try:
            if not 0 <= zstandard.get_frame_parameters(body).content_size <= most:
                return None
            entry.shrink(body)
            entry.whole()
        except zstandard.ZstdError:
            return None
    return entry if len(body) <= most else None


class Behind:
    def __init__(self, settings: Settings, database: int, metrics: Metrics) -> None:
        self.redis = Redis(settings, database=database)
        self._outcomes = metrics.cache_redis

    async def get(self, key: bytes, owner: str, model: str, most: int) -> Entry | None:
        try:
            told = await self.redis.call("GET", name_of(model, key))
        except (Away, hiredis.HiredisError):
            self._outcomes.labels("failed").inc()
            return None
        entry = read(told, key, owner, model, most)
        self._outcomes.labels("miss" if entry is None else "hit").inc()
        return entry

    def put(self, entry: Entry) -> None:
        milliseconds = int((entry.until - time.monotonic()) * 1000)
        if milliseconds <= 0:
            return

        def then(reply: Any) -> None:
            self._outcomes.labels("failed" if isinstance(reply, Exception) else "written").inc()

        try:
            name = name_of(entry.model, entry.key)
            self.redis.send(("SET", name, written(entry, time.time()), "PX", milliseconds), then)
        except Away:
            self._outcomes.labels("failed").inc()

    async def clear(self, model: str | None) -> int:
        """How many there were; raises Away or an error of Redis' own."""
        escaped = _GLOB.sub(r"\\\1", model) if model is not None else None
        pattern = "llm:response:*" if escaped is None else f"llm:response:{escaped}:*"
        cursor: Any = b"0"
        cleared = 0
        while True:
            cursor, names = await self.redis.call("SCAN", cursor, "MATCH", pattern, "COUNT", _BATCH)
            if names:
                cleared += await self.redis.call("UNLINK", *names)
            if cursor in (b"0", "0"):
                return cleared
