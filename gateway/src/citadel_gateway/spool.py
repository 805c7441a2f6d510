"""Usage of every request, kept on disk until somebody has taken it over: a sink of the record.

A spool is a folder of segments, and a segment is lines of `checksum SPACE json`. Records of one turn of the event loop
are written together, so that a gateway that is killed loses none; every `sync` seconds they are on the disk itself,
which is what a power cut can cost. A writer begins a segment of its own and never goes on with another's, so a line
that was cut off is the last of its segment and hurts no other. Segments that are no longer written belong to whoever
reads them, who deletes them. A spool that is full, or a disk, costs records, which are counted, never requests.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from citadel_gateway.config import Usage
    from citadel_gateway.metrics import Metrics
    from citadel_gateway.record import Record, Sink

SUFFIX = ".usage"
_SEGMENT = 8 * 1024 * 1024
_LONGEST_SEGMENT = 60.0  # seconds, so that what is read can be deleted
_REFUSALS, _REFUSED = 60, 10_000  # of one principal in a minute that are kept, and principals
_HELD = 1024 * 1024  # of records, while the disk takes none


class Spool:
    def __init__(self, settings: Usage, metrics: Metrics) -> None:
        self._folder = Path(settings.folder)
        self._settings = settings
        self._metrics = metrics
        self._ids = ids()
        self._waiting = bytearray()
        self._count = 0  # records that wait
        self._scheduled = False
        self._fd = -1
        self._begun = 0.0
        self._size = 0  # of the segment
        self._total = 0  # of the whole spool, as last seen, and what was written since
        self._unsynced = False
        self._number = 0
        self._minute = 0
        self._refused: dict[str, int] = {}  # of this minute, by principal
        self._keeper: asyncio.Task[None] | None = None
        # a disk that hangs in fsync holds up nothing but itself
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="spool")
        metrics.spool_bytes.set_function(lambda: self._total)

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._total = size_of(self._folder)
        self._keeper = asyncio.create_task(self._keep(), name="spool")

    def report(self) -> dict[str, Any]:
        full = self._total >= self._settings.most_bytes
        return {"status": "full" if full else "healthy", "spooled_bytes": self._total}

    def sink(self) -> Sink:
        def keep(record: Record) -> None:
            exchange = record.exchange
            if exchange.model is None:
                return
            if record.status == 429 and not exchange.upstream_started and self._repeats(exchange.principal.id):
                self._metrics.dropped_usage.labels("refused").inc()
                return
            line = orjson.dumps(entry(record, next(self._ids)))
            self._waiting += b"%08x %b\n" % (zlib.crc32(line), line)
            self._count += 1
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._write)

        return keep

    def _repeats(self, principal: str) -> bool:
        """Whether it was refused so often in this minute that one refusal more says nothing. Who never stops asking
        would fill the spool with them, and the database."""
        minute = int(time.monotonic() / 60)
        if minute != self._minute:
            self._minute = minute
            self._refused.clear()
        count = self._refused.get(principal, 0) + 1
        if count > _REFUSALS or (count == 1 and len(self._refused) >= _REFUSED):
            return True
        self._refused[principal] = count
        return False

    def _write(self) -> None:
        self._scheduled = False
        if not self._waiting:
            return
        if self._total + len(self._waiting) > self._settings.most_bytes:
            self._drop("full")
            return
        try:
            if self._fd < 0:
                self._begin()
            written = os.write(self._fd, self._waiting)
        except OSError:
            if len(self._waiting) > _HELD:
                self._drop("disk")
            return
        self._size += written
        self._total += written
        self._unsynced = True
        if written < len(self._waiting):
            # the disk is full: what is there is cut off, and the rest goes whole into another segment
            end = bytes(self._waiting).rfind(b"\n", 0, written) + 1
            self._forget(end)
            self._end()
            return
        self._waiting.clear()
        self._metrics.spooled.inc(self._count)
        self._count = 0
        if self._size >= _SEGMENT:
            self._end()

    def _forget(self, end: int) -> None:
        whole = self._waiting.count(b"\n", 0, end)
        del self._waiting[:end]
        self._count -= whole
        self._metrics.spooled.inc(whole)

    def _drop(self, reason: str) -> None:
        self._metrics.dropped_usage.labels(reason).inc(self._count)
        self._waiting.clear()
        self._count = 0

    def _begin(self) -> None:
        self._number += 1
        path = self._folder / f"{time.time_ns():020d}-{os.getpid()}-{self._number}{SUFFIX}"
        hidden = path.with_suffix(".new")
        fd = os.open(hidden, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # whoever reads knows by it that more may come; nobody sees it yet
            hidden.rename(path)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        self._begun = time.monotonic()
        self._size = 0

    def _end(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._disk.submit(_closed, fd)

    async def _keep(self) -> None:
        """What need not happen with a request: the disk's own cache, long segments, what others have deleted."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._settings.sync)
            if self._waiting:
                self._write()
            if self._unsynced and self._fd >= 0:
                self._unsynced = False
                fd = os.dup(self._fd)
                await loop.run_in_executor(self._disk, _closed, fd)
            if self._fd >= 0 and time.monotonic() - self._begun > _LONGEST_SEGMENT:
                self._end()
            before = self._total
            try:
                found = await loop.run_in_executor(self._disk, size_of, self._folder)
            except OSError:
                continue  # a folder that nobody can look into keeps the size that it had
            self._total = found + self._total - before

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        self._write()
        if self._count:
            self._drop("disk")
        self._end()
        await asyncio.get_running_loop().run_in_executor(None, self._disk.shutdown)


def _closed(fd: int) -> None:
    try:
        os.fdatasync(fd)
    except OSError:
        pass  # what the disk lost it will say again when it is written to
    finally:
        os.close(fd)


def size_of(folder: Path) -> int:
    total = 0
    with os.scandir(folder) as found:
        for each in found:
            if each.name.endswith(SUFFIX):
                try:
                    total += each.stat().st_size
                except FileNotFoundError:
                    continue
    return total


def ids() -> Iterator[str]:
    """UUIDs of version 8: random for each process, counted within it; making one costs no system call."""
    start = os.urandom(9).hex()
    prefix = f"{start[:8]}-{start[8:12]}-8{start[12:15]}-8{start[15:18]}-"
    for number in itertools.count():
        yield f"{prefix}{number:012x}"


def entry(record: Record, ident: str) -> dict[str, Any]:
    """What is known of a request and worth keeping; never a prompt."""
    exchange = record.exchange
    first = record.first
    return {
        "id": ident,
        "request_id": exchange.id,
        "time": time.time(),
        "model": record.model,
        "replica": exchange.replica.name if exchange.replica is not None else None,
        "endpoint": exchange.endpoint,
        "user": exchange.principal.id,
        "tier": exchange.principal.tier_name,
        "address": exchange.address,
        "stream": exchange.stream,
        "status": record.status,
        "error": exchange.error_code,
        "prompt_tokens": exchange.prompt_tokens,
        "completion_tokens": exchange.completion_tokens,
        "cached_tokens": exchange.cached_tokens,
        "exact": exchange.usage_exact,
        "charged": exchange.charged,
        "latency_ms": _ms(record.seconds),
        "queue_ms": _ms(exchange.queued),
        "first_ms": _ms(first) if first is not None else None,
        "retries": exchange.retries,
        "cache": exchange.cache or None,
    }


def _ms(seconds: float) -> float:
    return int(seconds * 1e6) / 1e3  # round() costs twice as much


# what reads


def segments(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(folder.glob(f"{'[0-9]' * 20}-*{SUFFIX}"))


def age(segment: Path) -> float:
    """Seconds since it was begun."""
    return max(0.0, time.time() - int(segment.name[:20]) / 1e9)


def is_written(segment: Path) -> bool:
    """Whether its gateway may still add to it."""
    with segment.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read(segment: Path, offset: int, most: int, torn: Callable[[int], None]) -> tuple[list[dict[str, Any]], int]:
    """Records from `offset` on, and where the next one begins. A line that is cut off or was altered is passed over and
    told; the last one may only be half written yet, and is read again."""
    found: list[dict[str, Any]] = []
    with segment.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            checksum, _, told = line[:-1].partition(b" ")
            if checksum == b"%08x" % zlib.crc32(told):
                found.append(orjson.loads(told))
            else:
                torn(len(line))
            if len(found) == most:
                break
    return found, offset
