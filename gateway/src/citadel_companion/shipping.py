"""From the spool into the store, exactly once: a record's id is its key, so what is sent again changes nothing.

A segment goes when all of it is kept and its gateway has ended it. While the store is away all stays where it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from citadel_companion.records import Row, row_of
from citadel_companion.store import Store, StoreError, forgotten
from citadel_gateway import spool

logger = logging.getLogger("citadel_companion")

BATCH = 1000
PAUSE, LONGEST_PAUSE = 0.25, 30.0
CHORES = 60.0  # seconds between two looks at aggregates and what has expired


class Shipper:
    """A thread of its own, so that a database that hangs holds up nobody who asks for something else."""

    def __init__(
        self, folder: Path, store: Store, retention: dict[str, int], look: Callable[[], None] | None = None
    ) -> None:
        self._folder = folder
        self._store = store
        self._retention = retention
        self._look = look  # at whatever else is to be kept
        self._offsets: dict[str, int] = {}
        self._prepared = False
        self._chores_at = 0.0
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self.trouble = ""  # why the store is away, for people
        self.shipped = 0
        self.torn = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After what it is doing now."""
        self._stop.set()
        self._thread.join(timeout=10.0)
        self._store.close()

    def behind(self) -> float:
        """Seconds since the oldest segment that is not wholly taken over was begun; 0 if all is kept."""
        for segment in spool.segments(self._folder):
            try:
                if segment.stat().st_size > self._offsets.get(segment.name, 0):
                    return spool.age(segment)
            except FileNotFoundError:
                continue
        return 0.0

    def _run(self) -> None:
        pause = PAUSE
        while not self._stop.wait(pause):
            try:
                if not self._prepared:
                    for name in self._store.prepare():
                        logger.info("migration %s applied", name)
                    self._prepared = True
                self.ship()
                self._chores()
            except StoreError as error:
                if str(error) != self.trouble:
                    logger.warning("nothing is kept for now, the spool holds it: %s", error)
                self.trouble = str(error)
                self._prepared = False
                pause = min(2 * pause, LONGEST_PAUSE)
            except Exception:
                logger.exception("a bug in the companion; what it did not keep stays in the spool")
                pause = LONGEST_PAUSE
            else:
                if self.trouble:
                    logger.warning("the store is there again")
                self.trouble = ""
                pause = PAUSE

    def ship(self, stopped: Callable[[], bool] | None = None) -> None:
        """Everything that is there now."""
        stopped = stopped or self._stop.is_set
        for segment in spool.segments(self._folder):
            # asked before it is read to its end: what comes after that is read the next time
            written = spool.is_written(segment)
            while not stopped():
                offset = self._offsets.get(segment.name, 0)
                found, after = spool.read(segment, offset, BATCH, self._count_torn)
                if not found:
                    break
                rows = [row for row in map(self._row, found) if row is not None]
                if rows:
                    self._add(rows)
                self._offsets[segment.name] = after
            else:
                return
            if not written:
                segment.unlink()
                self._offsets.pop(segment.name, None)

    def settled(self) -> None:
        """Returns when no batch is on its way that was begun before."""
        with self._turn:
            pass

    def _add(self, rows: list[Row]) -> None:
        with self._turn:
            gone = forgotten(self._store)
            wanted = [row for row in rows if row.user_id not in gone or row.timestamp > gone[row.user_id]]
            if wanted:
                self.shipped += self._store.add(wanted)

    def _row(self, told: dict[str, Any]) -> Row | None:
        try:
            return row_of(told)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            self._count_torn(0)
            logger.error("a record of the spool is not understood (%s): %s", error, str(told)[:500])  # noqa: TRY400
            return None

    def _count_torn(self, size: int) -> None:
        self.torn += 1
        if size:
            logger.warning("a line of %d bytes in the spool was cut off or altered", size)

    def _chores(self) -> None:
        if self._look is not None:
            self._look()
        now = time.monotonic()
        if now < self._chores_at:
            return
        self._chores_at = now + CHORES
        moment = datetime.now(UTC)
        self._store.aggregate(moment)
        self._store.expire(moment, self._retention)
