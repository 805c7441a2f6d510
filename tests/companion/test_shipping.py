"""From the spool into a store: once, whatever is interrupted."""

from __future__ import annotations

import json
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from citadel_companion.records import Row, row_of
from citadel_companion.shipping import Shipper
from citadel_companion.store import Feedback, Store, StoreError
from citadel_gateway import spool
from tests.companion.databases import Opened

MODELS = ("phi-3-mini", "mixtral-8x7b")


def told(number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": str(uuid.UUID(int=number + 1)),
        "request_id": f"req-{number}",
        "time": time.time(),
        "model": MODELS[number % 2],
        "replica": "phi-3-mini",
        "endpoint": "chat",
        "user": f"key:{number % 3}",
        "tier": "basic",
        "address": "127.0.0.1",
        "stream": False,
        "status": 200,
        "error": None,
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "cached_tokens": 0,
        "exact": True,
        "charged": 12,
        "latency_ms": 12.5,
        "queue_ms": 0.2,
        "first_ms": None,
        "retries": 0,
        **more,
    }


def segment(folder: Path, records: Sequence[dict[str, Any]], old: float = 0.0) -> Path:
    path = folder / f"{time.time_ns() - round(old * 1e9):020d}-1-1.usage"
    lines = [json.dumps(record).encode() for record in records]
    path.write_bytes(b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for line in lines))
    return path


def shipper(folder: Path, store: Store) -> Shipper:
    return Shipper(folder, store, {"requests": 30, "aggregates": 365, "reports": 1825})


def test_what_is_sent_again_is_kept_once(tmp_path: Path, store: Store, opened: Opened) -> None:
    records = [told(number) for number in range(2500)]
    segment(tmp_path, records)
    one = shipper(tmp_path, store)
    one.ship()
    assert not spool.segments(tmp_path), "what is kept is gone from the spool"
    segment(tmp_path, [*records, told(2500)])
    one.ship()
    assert one.shipped == len(opened.ids()) == 2501


def test_a_segment_that_is_written_stays_and_goes_on(tmp_path: Path, store: Store, opened: Opened) -> None:
    import fcntl

    path = segment(tmp_path, [told(0)])
    one = shipper(tmp_path, store)
    with path.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        one.ship()
        assert len(opened.ids()) == 1
        assert path.exists()
        line = json.dumps(told(1)).encode()
        writer.write(b"%08x %b" % (zlib.crc32(line), line[:10]))
        writer.flush()
        one.ship()
        assert len(opened.ids()) == 1, "half a line is none"
        writer.write(line[10:] + b"\n")
        writer.flush()
        one.ship()
        assert len(opened.ids()) == 2
        assert one.behind() == 0.0
    one.ship()
    assert not path.exists()


class Failing:
    """A store that is away after so many batches, as often as it is told."""

    def __init__(self, store: Store, fails: Callable[[], bool]) -> None:
        self._store, self._fails = store, fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def add(self, rows: Sequence[Row]) -> int:
        if self._fails():
            raise StoreError("it is away")
        return self._store.add(rows)


def test_a_store_that_comes_and_goes_loses_nothing(tmp_path: Path, store: Store, opened: Opened) -> None:
    turns = iter([False, True, False, True, True, False, False, False, False])
    one = shipper(tmp_path, Failing(store, lambda: next(turns)))
    segment(tmp_path, [told(number) for number in range(1500)])
    segment(tmp_path, [told(number) for number in range(1500, 3000)])
    for _ in range(4):
        try:
            one.ship()
        except StoreError:
            continue
    assert len(opened.ids()) == 3000
    assert not spool.segments(tmp_path)


def test_a_companion_that_begins_anew_repeats_and_doubles_nothing(tmp_path: Path, store: Store, opened: Opened) -> None:
    records = [told(number) for number in range(1200)]
    segment(tmp_path, records)
    store.add([row_of(record) for record in records[:700]])  # and was killed before it could tell
    one = shipper(tmp_path, store)
    one.ship()
    assert len(opened.ids()) == 1200
    assert one.shipped == 500


def test_a_line_that_is_no_record_is_told_and_hurts_no_other(tmp_path: Path, store: Store, opened: Opened) -> None:
    path = segment(tmp_path, [told(0), {"id": "what"}, told(2)])
    path.write_bytes(path.read_bytes() + b"deadbeef {}\n0000")
    one = shipper(tmp_path, store)
    one.ship()
    assert len(opened.ids()) == 2
    assert one.torn == 2
    assert not path.exists()


def test_the_thread_waits_for_a_store_and_says_so(tmp_path: Path, opened: Opened) -> None:
    away = threading.Event()
    away.set()
    one = shipper(tmp_path, Failing(opened.another(), away.is_set))
    segment(tmp_path, [told(0)], old=10)
    one.start()
    try:
        until(lambda: one.trouble == "it is away")
        assert one.behind() >= 10
        away.clear()
        until(lambda: not one.trouble and one.shipped == 1, 60)
    finally:
        one.stop()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_usage_is_summed_by_model_for_its_user_alone(store: Store) -> None:
    store.add([row_of(told(number, status=500 if number == 3 else 200)) for number in range(12)])
    now = datetime.now(UTC)
    found = store.usage("key:0", now - timedelta(days=1), now + timedelta(minutes=1))
    assert [(one["model"], one["requests"], one["errors"]) for one in found] == [
        ("mixtral-8x7b", 2, 1),
        ("phi-3-mini", 2, 0),
    ]
    assert found[0]["completion_tokens"] == 14
    assert store.usage("key:9", now - timedelta(days=1), now) == []


def test_feedback_is_of_ones_own_request_and_can_be_changed(store: Store) -> None:
    store.add([row_of(told(0))])
    assert store.model_of("key:0", "req-0") == "phi-3-mini"
    assert store.model_of("key:1", "req-0") is None
    for score in (3.0, 9.0):
        store.give(Feedback("key:0", "req-0", score, None, None, "it's"), "phi-3-mini")
    assert store.forget("key:0") == 2
    assert store.model_of("key:0", "req-0") is None


def test_what_has_expired_goes(store: Store, opened: Opened) -> None:
    now = datetime.now(UTC)
    old = (now - timedelta(days=100)).timestamp()
    store.add([row_of(told(0, time=old)), row_of(told(1)), row_of(told(2, time=now.timestamp() - 86400 * 31))])
    store.aggregate(now)
    store.expire(now, {"requests": 30, "aggregates": 365, "reports": 1825})
    assert len(opened.ids()) == 1
    store.add([row_of(told(3))])
    assert len(opened.ids()) == 2


def test_texts_that_no_database_likes_are_kept(store: Store) -> None:
    store.add([row_of(told(0, user="a\0b" + "ä" * 200, error="x" * 10_000, request_id="'; DROP TABLE x; --"))])
    now = datetime.now(UTC)
    assert store.usage("ab" + "ä" * 98, now - timedelta(days=1), now + timedelta(minutes=1))[0]["requests"] == 1
