"""Deletion of all that is kept of a user: gone, and it does not come back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from citadel_companion.store import FORGOTTEN, Store, Thing, forgotten, opened
from tests.companion.beside import Beside, jsonl, request
from tests.companion.test_app import begun
from tests.companion.test_shipping import segment, shipper, told
from tests.companion.test_shipping import until as until_in_thread
from tests.gateway.simulator import eventually, until

pytestmark = pytest.mark.anyio


def mark(store: Store, user: str, until: datetime) -> None:
    body = {"until": until.isoformat()}
    store.put(Thing(FORGOTTEN, user, "citadel", until, until + timedelta(days=31), body))


async def test_nothing_is_left_and_nobody_else_is_touched(beside: Beside) -> None:
    config, gateway = beside.config, beside.gateway
    spool = Path(config.spool)
    segment(spool, [told(one, user=f"key:{'ab'[one % 2]}") for one in range(10)])
    mine, other, admin = beside.client(), beside.client("key:b"), beside.client("key:admin", "admin")
    for client in (mine, other):
        await client.over(await client.batch(jsonl(request("r"))))
        await client.upload(b"x", purpose="user_data")
    await _usage_is(beside, 5)
    given = {"request_id": "req-0", "satisfaction_score": 3}
    assert (await mine.ask("POST", "/v1/feedback", json=given)).status_code == 200
    gateway.gate.clear()
    running = await mine.batch(jsonl(*(request(f"r-{one}") for one in range(9))))
    await until(lambda: gateway.running == 2)

    answer = (await admin.ask("DELETE", "/v1/users/key:a")).json()
    assert answer["deleted"]
    # records, feedback, batches, and files: input, output, the other one, and the input of the one that ran
    assert (answer["rows"], answer["files"], answer["batches_ended"]) == (5 + 1 + 2 + 4, 4, 1)
    await until(lambda: gateway.left == 2)
    assert (await mine.get("/v1/usage"))["data"] == []
    assert (await mine.get("/v1/files"))["data"] == (await mine.get("/v1/batches"))["data"] == []
    assert (await mine.ask("GET", f"/v1/batches/{running['id']}")).status_code == 404
    left = await asyncio.to_thread(lambda: [path for path in Path(config.state, "files").rglob("*") if path.is_file()])
    assert len(left) == len((await other.get("/v1/files"))["data"]) == 3
    assert sum(one["requests"] for one in (await other.get("/v1/usage"))["data"]) == 5
    assert len((await other.get("/v1/batches"))["data"]) == 1
    # what the spool brings late is of a time that nothing is kept of; what is done later is kept
    late = [told(100 + one, user="key:a", time=time.time() - 60) for one in range(5)]
    segment(spool, [*late, told(200, user="key:a", time=time.time() + 60), told(201, user="key:b")])
    await _usage_is(beside, 6, "key:b")
    store = opened(config)
    found = store.usage("key:a", datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1))
    assert [one["requests"] for one in found] == [1]
    store.close()
    gateway.gate.set()
    again = await mine.over(await mine.batch(jsonl(request("new"))))
    assert again["status"] == "completed", "who comes again is as anybody else"


async def _usage_is(beside: Beside, count: int, user: str = "key:a") -> None:
    client = beside.client(user)

    async def reached() -> bool:
        return bool(sum(one["requests"] for one in (await client.get("/v1/usage"))["data"]) == count)

    await eventually(reached, 20)


async def test_it_is_an_administrators_to_say(beside: Beside) -> None:
    for client in (beside.client(), beside.client("key:b")):
        answer = await client.ask("DELETE", "/v1/users/key:a")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_not_allowed")
        answer = await client.ask("POST", "/forget", json={"user": "key:a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    admin = beside.client("key:admin", "admin")
    for strange in ("bob", "key:", "key:a b", "key:" + "x" * 101, "key:%00"):
        assert (await admin.ask("DELETE", f"/v1/users/{strange}")).json()["error"]["code"] == "invalid_user"


def test_the_shippers_batch_on_its_way_is_waited_for(tmp_path: Path, store: Store) -> None:
    """It was begun before it could know, and what it brings must be deleted, too."""
    segment(tmp_path, [told(0, user="key:a")])
    reached, go_on = threading.Event(), threading.Event()
    one = shipper(tmp_path, store)
    add = store.add

    def slow(rows: object) -> int:
        reached.set()
        go_on.wait(10)
        return add(rows)  # type: ignore[arg-type]

    store.add = slow  # type: ignore[method-assign]
    shipping = threading.Thread(target=one.ship)
    shipping.start()
    assert reached.wait(10)
    settled = threading.Thread(target=one.settled)
    settled.start()
    settled.join(0.1)
    assert settled.is_alive()
    go_on.set()
    settled.join(10)
    shipping.join(10)
    assert one.shipped == 1


def test_what_is_remembered_is_of_that_user_and_time(tmp_path: Path, store: Store) -> None:
    now = datetime.now(UTC)
    mark(store, "key:a", now)
    mark(store, "key:a", now + timedelta(seconds=1))
    assert forgotten(store) == {"key:a": now + timedelta(seconds=1)}
    records = [told(0, user="key:a"), told(1, user="key:a", time=time.time() + 30), told(2, user="key:b")]
    segment(tmp_path, records)
    one = shipper(tmp_path, store)
    one.ship()
    assert one.shipped == 2
    assert store.model_of("key:a", "req-0") is None
    assert store.model_of("key:a", "req-1") is not None
    assert store.forget("key:a") == 1
    assert list(forgotten(store)) == ["key:a"], "forgetting is not forgotten"


def test_the_hosts_root_says_it_by_a_verb(tmp_path: Path) -> None:
    config = {name: str(tmp_path / name) for name in ("socket", "state", "spool")}
    file = tmp_path / "companion.yml"
    file.write_text(yaml.safe_dump(config))
    (tmp_path / "spool").mkdir()
    absent = verb(file, "key:a")
    assert absent.returncode == 1
    assert "start it, and try again" in absent.stderr
    segment(tmp_path / "spool", [told(one, user="key:a") for one in range(3)])
    process = begun(file)
    try:
        until_in_thread(lambda: Path(config["socket"]).exists() and not list((tmp_path / "spool").iterdir()))
        done = verb(file, "key:a")
        assert (done.returncode, '"rows":3' in done.stdout) == (0, True), done.stdout + done.stderr
        wrong = verb(file, "bob")
        assert (wrong.returncode, wrong.stderr) == (1, "'bob' is no user: key:ID or address:IP.\n")
    finally:
        process.kill()
        process.wait()


def verb(file: Path, user: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "citadel_companion", "--config", str(file), "forget", user]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(words, env=paths, capture_output=True, text=True, check=False)
