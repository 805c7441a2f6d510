"""Faults of companion, database and network while clients ask, and afterwards each answered request once in PostgreSQL.

    make prove-usage                       on a lab that stands (`make demo`)

What cannot be played there is named in docs/companion.md.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lab.settings import ROOT, Lab
from tests.lab.clients import temporary_key
from tests.proof.estate import Estate, until, write
from tools import benchmark

COMPANION = "citadel-companion.service"
DATABASE, POOL = "postgresql@17-main", "pgpool2"
SECONDS = 10.0  # that a fault lasts
KILLS = 50
CLIENTS, PAUSE = 3, 0.2  # so that the limit of all clients together is not met
MODEL, TABLE = "phi-3-mini", "phi3.llm_model_requests"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 2}
DOCUMENT = ROOT / "docs" / "companion.md"
MARKS = "<!-- faults: begin -->", "<!-- faults: end -->"
SMALL = "/var/lib/postgresql/small"


@dataclass
class Seen:
    """By the clients, while a fault was there and a moment after it."""

    answered: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    longest: float = 0.0


class Clients:
    """Some that ask all along, each on its own connections."""

    def __init__(self, address: str, key: str) -> None:
        self._address, self._key = address, key
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.seen = Seen()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]

    def ask(self, path: str, body: dict[str, Any] | None = None, ident: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._address, 8000, timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}", "x-request-id": ident}
        try:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _ask(self) -> None:
        while not self._over.wait(PAUSE):
            ident = f"proof-{uuid.uuid4().hex}"
            began = time.monotonic()
            try:
                status, told = self.ask("/v1/chat/completions", QUESTION, ident)
                wrong = "" if status == 200 else f"{status} {told[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                wrong = repr(error)
            with self._lock:
                self.seen.longest = max(self.seen.longest, time.monotonic() - began)
                if wrong:
                    self.seen.errors.append(wrong)
                else:
                    self.seen.answered.append(ident)

    def take(self) -> Seen:
        with self._lock:
            seen, self.seen = self.seen, Seen()
        return seen

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(90)


class Database:
    """As its administrator sees it, on its own host and past Pgpool."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate

    def __call__(self, statement: str) -> str:
        quoted = statement.replace("'", "'\\''")
        return self._estate.run(
            f"cd / && runuser -u postgres -- psql -qtA -d citadel_ai -c '{quoted}'", self._estate.data
        )

    def rows(self, ids: list[str]) -> tuple[int, int]:
        """How many of them are there, and in how many rows."""
        wanted = ",".join(f"'{ident}'" for ident in ids)
        told = self(f"SELECT count(DISTINCT visible_id), count(*) FROM {TABLE} WHERE visible_id IN ({wanted})")
        known, rows = told.split("|")
        return int(known), int(rows)


Of = Callable[[Estate, Database], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def unit(estate: Estate, name: str, begin: str, end: str, *, data: bool) -> Iterator[None]:
    host = estate.data if data else estate.llm
    estate.run(begin.format(name), host)
    try:
        time.sleep(SECONDS)
        yield
    finally:
        estate.run(end.format(name), host)


def away(name: str, *, data: bool = True) -> Of:
    return lambda estate, _: unit(estate, name, "systemctl stop {}", "systemctl start {}", data=data)


def stalled(name: str, *, data: bool = True) -> Of:
    stop, go = "systemctl kill -s STOP {}", "systemctl kill -s CONT {}"
    return lambda estate, _: unit(estate, name, stop, go, data=data)


def restarted(name: str) -> Of:
    @contextlib.contextmanager
    def play(estate: Estate, _: Database) -> Iterator[None]:
        for _turn in range(3):
            estate.run(f"systemctl restart {name}", estate.data)
            time.sleep(SECONDS / 3)
        yield

    return play


@contextlib.contextmanager
def killed(estate: Estate, _: Database) -> Iterator[None]:
    for _turn in range(KILLS):
        time.sleep(random.uniform(0.0, 0.6))
        estate.run(
            f"systemctl reset-failed {COMPANION}; systemctl kill -s KILL {COMPANION} || systemctl start {COMPANION}"
        )
    yield
    estate.run(f"systemctl reset-failed {COMPANION}; systemctl start {COMPANION}")


@contextlib.contextmanager
def another_password(estate: Estate, database: Database) -> Iterator[None]:
    """Whoever is connected has to show it again."""
    before = (estate.secrets / "citadel_admin").read_text().strip()
    database("ALTER ROLE citadel_admin PASSWORD 'changed-for-a-moment'")
    database("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'citadel_admin'")
    try:
        time.sleep(SECONDS)
        yield
    finally:
        database(f"ALTER ROLE citadel_admin PASSWORD '{before}'")


@contextlib.contextmanager
def full(estate: Estate, database: Database) -> Iterator[None]:
    """The month's table on a disk of a few megabytes that has no room left."""
    table = f"{TABLE}_{datetime.now(UTC):%Y_%m}"
    indexes = database(f"SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{table}'::regclass").split()
    estate.run(f"mkdir -p {SMALL} && mount -t tmpfs -o size=64m tmpfs {SMALL} && chown postgres: {SMALL}", estate.data)
    database(f"CREATE TABLESPACE small LOCATION '{SMALL}'")
    moves = [f"TABLE {table}", *(f"INDEX {index}" for index in indexes)]
    try:
        for move in moves:
            database(f"ALTER {move} SET TABLESPACE small")
        estate.run(f"head -c 64m /dev/zero > {SMALL}/full 2>/dev/null || true", estate.data)
        try:
            time.sleep(SECONDS)
            yield
        finally:
            estate.run(f"rm {SMALL}/full", estate.data)
            for move in moves:
                database(f"ALTER {move} SET TABLESPACE pg_default")
    finally:
        database("DROP TABLESPACE small")
        estate.run(f"umount {SMALL} && rmdir {SMALL}", estate.data)


@contextlib.contextmanager
def lossy(estate: Estate, _: Database) -> Iterator[None]:
    """Every third packet to and from the database is lost. (The kernel of a lab need not have netem.)"""
    lose = "meta l4proto tcp th {} 5433 numgen random mod 3 0 drop"
    rules = "; ".join(
        f"add chain inet proof {hook} {{ type filter hook {hook} priority 0; }}; add rule inet proof {hook} "
        + lose.format(port)
        for hook, port in (("output", "dport"), ("input", "sport"))
    )
    estate.run(f"nft 'add table inet proof; {rules}'")
    try:
        time.sleep(SECONDS)
        yield
    finally:
        estate.run("nft delete table inet proof")


@contextlib.contextmanager
def newer(estate: Estate, database: Database) -> Iterator[None]:
    """A later release has added something, and the companion of this one starts anew."""
    database(f"ALTER TABLE {TABLE} ADD COLUMN of_a_later_release TEXT")
    database("INSERT INTO citadel.migrations (number, name, checksum) VALUES (9999, '9999_later.sql', 'x')")
    try:
        estate.run(f"systemctl restart {COMPANION}")
        time.sleep(SECONDS)
        yield
    finally:
        database("DELETE FROM citadel.migrations WHERE number = 9999")
        database(f"ALTER TABLE {TABLE} DROP COLUMN of_a_later_release")


FAULTS: dict[str, Of] = {
    "the companion is stopped": away(COMPANION, data=False),
    "the companion stands still (SIGSTOP)": stalled(COMPANION, data=False),
    f"the companion is killed {KILLS} times at random moments": killed,
    "PostgreSQL is stopped": away(DATABASE),
    "PostgreSQL stands still": stalled(DATABASE),
    "PostgreSQL is restarted three times": restarted(DATABASE),
    "Pgpool-II is stopped": away(POOL),
    "Pgpool-II stands still": stalled(POOL),
    "Pgpool-II is restarted three times": restarted(POOL),
    "the disk of the month's table is full": full,
    "the password is another one": another_password,
    "every third packet is lost on the way": lossy,
    "the schema is of a later release": newer,
}


@dataclass(frozen=True)
class Row:
    fault: str
    seen: Seen
    caught_up: float  # seconds from the end of the fault until each was there
    rows: int


def follow(name: str, of: Of, estate: Estate, database: Database, clients: Clients) -> Row:
    clients.take()
    with of(estate, database):
        pass
    ended = time.monotonic()
    time.sleep(2.0)
    seen = clients.take()
    there = until(lambda: database.rows(seen.answered)[0] == len(seen.answered), f"{name}: each request is kept", 180)
    return Row(name, seen, there - ended, database.rows(seen.answered)[1])


def held(estate: Estate) -> tuple[int, int]:
    """Memory in MB and open files of the companion."""
    process = estate.run(f"systemctl show -P MainPID {COMPANION}")
    memory = estate.run(f"awk '/VmRSS/ {{print $2}}' /proc/{process}/status")
    return int(memory) // 1024, int(estate.run(f"ls /proc/{process}/fd | wc -l"))


def table(rows: list[Row], before: tuple[int, int], after: tuple[int, int]) -> str:
    lines = [
        f"{benchmark.machine()}, {datetime.now(UTC).date()}: `make prove-usage` on the lab, with its PostgreSQL 17 "
        f"behind Pgpool-II. {CLIENTS} clients ask all along; a fault lasts {SECONDS:.0f} s. Everything that they were "
        "answered is looked for in the database afterwards, by its id.",
        "",
        "| fault | requests answered | errors | longest wait | in the database | all there after |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        count = len(row.seen.answered)
        kept = "each once" if row.rows == count else f"{row.rows} rows"
        cells = (row.fault, count, len(row.seen.errors), f"{row.seen.longest:.2f} s", kept, f"{row.caught_up:.0f} s")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    held_before, held_after = (f"{memory} MB and {files} open files" for memory, files in (before, after))
    lines += ["", f"The companion held {held_before} before and {held_after} afterwards."]
    return "\n".join(lines)


def main() -> int:
    estate = Estate(Lab.from_environment())
    database = Database(estate)
    rows, wrong = [], []
    chosen = [name for name in FAULTS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    with temporary_key(estate.llm) as key, Clients(estate.address, key) as clients:
        until(lambda: clients.take().answered, "the gateway knows the new key", 30)
        before = held(estate)
        for name in chosen:
            try:
                row = follow(name, FAULTS[name], estate, database, clients)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                wrong.append(f"{name}: {error}")
                print(wrong[-1], file=sys.stderr, flush=True)
                continue
            rows.append(row)
            told = f"{len(row.seen.answered)} answered, all there after {row.caught_up:.0f} s"
            print(f"{name}: {told}, longest wait {row.seen.longest:.2f} s", flush=True)
            if row.seen.errors or row.rows != len(row.seen.answered):
                wrong.append(f"{name}: {row.rows} rows of {len(row.seen.answered)}, errors {row.seen.errors[:3]}")
                print(wrong[-1], file=sys.stderr, flush=True)
        after = held(estate)
    if not wrong and chosen == list(FAULTS):
        write(DOCUMENT, MARKS, table(rows, before, after))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
