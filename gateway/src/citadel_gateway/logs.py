"""JSON lines: one per request in the access log, one per event in the audit log.

Lines are gathered for a moment and written together. The file is opened anew when it has been moved away, so
that rotation needs no signal and loses nothing; a reload makes it at once. A disk that is full costs lines, which are
counted, never requests.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

_PAUSE = 0.2
_MOST = 32 * 1024
_HOPELESS = 4 * 1024 * 1024
_MINUTE = 60.0
_KEYS = 10_000


class JsonLog:
    def __init__(self, path: str, on_drop: Callable[[int], None], *, pause: float = _PAUSE) -> None:
        self.path = path
        self._on_drop = on_drop
        self._pause = pause
        self._waiting = bytearray()
        self._most = _MOST
        self._fd = -1
        self._inode = 0
        self._timer: asyncio.TimerHandle | None = None
        self._complained = False

    def write(self, record: dict[str, Any]) -> None:
        self._waiting += orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        if len(self._waiting) > self._most:
            self.flush()
        elif self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(self._pause, self.flush)
            except RuntimeError:
                self.flush()

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = self._waiting
        if not waiting:
            return
        try:
            self._reopen_if_moved()
            while waiting:
                del waiting[: os.write(self._fd, waiting)]
        except OSError as error:
            self._keep(error)
            return
        self._most = _MOST
        self._complained = False

    def reopen(self) -> None:
        """Whoever has moved the file away finds the next one in its place, also where nobody asks for anything."""
        self.flush()
        try:
            self._reopen_if_moved()
        except OSError as error:
            self._keep(error)

    def close(self) -> None:
        self.flush()
        if self._fd > 2:
            os.close(self._fd)
        self._fd = -1

    def _reopen_if_moved(self) -> None:
        if self.path == "-":
            self._fd = 1
            return
        try:
            inode = Path(self.path).stat().st_ino
        except FileNotFoundError:
            inode = 0
        if self._fd >= 0 and inode == self._inode:
            return
        fresh = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fresh
        self._inode = os.fstat(fresh).st_ino

    def _keep(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            print(f"{self.path}: cannot be written: {error.strerror}", file=sys.stderr, flush=True)
        if len(self._waiting) > _HOPELESS:
            self._on_drop(self._waiting.count(b"\n"))
            self._waiting.clear()
        self._most = len(self._waiting) + _MOST  # tried again after the next line's pause, not at every line


_second = (0, "")


def timestamp() -> str:
    global _second  # noqa: PLW0603 - the part that changes once a second costs more than the rest of a line
    now = time.time()
    whole = int(now)
    if whole != _second[0]:
        _second = whole, datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{_second[1]}.{int((now - whole) * 1000):03d}Z"


class AuditLog:
    """Authentication, violations of limits, errors, administrative actions. Written at once."""

    def __init__(self, path: str, on_drop: Callable[[int], None]) -> None:
        self._log = JsonLog(path, on_drop)
        self._repeated: dict[tuple[str | None, ...], list[Any]] = {}

    def event(self, event: str, *, outcome: str = "ok", actor: str | None = None, **details: Any) -> None:
        record = {"time": timestamp(), "log": "audit", "event": event, "outcome": outcome, "actor": actor}
        self._log.write({**record, **details})

    def often(self, key: tuple[str | None, ...], event: str, **details: Any) -> None:
        """What somebody can make happen again and again: the first is written, the rest of a minute counted."""
        repeated = self._repeated.get(key)
        if repeated is None:
            if len(self._repeated) >= _KEYS:
                self.summarize(everything=True)
            self._repeated[key] = [time.monotonic(), 0, event, details]
            self.event(event, **details)
        else:
            repeated[1] += 1
            repeated[3] = details

    def summarize(self, *, everything: bool = False) -> None:
        """A line for each that was repeated, when its minute is over."""
        now = time.monotonic()
        for key, (since, count, event, details) in list(self._repeated.items()):
            if everything or now - since >= _MINUTE:
                del self._repeated[key]
                if count:
                    self.event(event, **details, repeated=count, seconds=round(now - since, 1))

    def flush(self) -> None:
        self._log.flush()

    def close(self) -> None:
        self.summarize(everything=True)
        self._log.close()
