"""A PostgreSQL of the tests' own, on a socket in a folder of its own; each test gets an empty database in it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from citadel_companion.config import Config, Database
from citadel_companion.postgres import Postgres
from citadel_companion.store import Store

PROGRAMS = Path("/usr/lib/postgresql")
SCHEMAS = {"phi-3-mini": "phi3", "mixtral-8x7b": "mixtral"}


@dataclass(frozen=True)
class Opened:
    """A store, as often as somebody wants it, and the ids that are in it."""

    another: Callable[[], Store]
    ids: Callable[[], list[Any]]


class Cluster:
    def __init__(self, folder: Path, user: str | None) -> None:
        self.folder, self.user = folder, user
        self._programs = max(PROGRAMS.iterdir(), key=lambda path: float(path.name)) / "bin"
        self._numbers = count(1)

    def run(self, program: str, *words: str) -> None:
        # it refuses to be root
        before = ["runuser", "-u", self.user, "--"] if self.user else []
        done = subprocess.run(
            [*before, self._programs / program, *words], capture_output=True, text=True, check=False, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, *, durable: bool = False) -> None:
        self.run(
            "initdb", "--pgdata", str(self.folder / "data"), "--auth=trust", "--username=citadel_admin", "--no-sync"
        )
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync={durable}"
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "--wait", "--pgdata", str(self.folder / "data"), "--options", options, "--log", log)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "--wait", "--mode=immediate", "--pgdata", str(self.folder / "data"))

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="citadel_admin", dbname=name, autocommit=True)

    def database(self) -> str:
        name = f"test_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return name

    def config(self, name: str, folder: Path) -> Config:
        database = Database(host=str(self.folder), port=5432, name=name, user="citadel_admin", tls="disable")
        return Config(socket="", state=str(folder), spool=str(folder), database=database, schemas=SCHEMAS)

    def fresh(self, folder: Path) -> Iterator[Opened]:
        name = self.database()
        config = self.config(name, folder)
        assert config.database is not None
        database = config.database

        def ids() -> list[Any]:
            with self.connect(name) as connection:
                found = connection.execute("SELECT schema_name FROM citadel.model_schemas").fetchall()
                tables = " UNION ALL ".join(f"SELECT request_id FROM {one}.llm_model_requests" for (one,) in found)
                return connection.execute(tables.encode()).fetchall()

        yield Opened(lambda: Postgres(config, database), ids)


@contextlib.contextmanager
def running(*, durable: bool = False) -> Iterator[Cluster]:
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="citadel-postgres-", dir="/var/tmp"))
    if user:
        owner = pwd.getpwnam(user)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    cluster = Cluster(folder, user)
    try:
        cluster.start(durable=durable)
        yield cluster
        cluster.stop()
    finally:
        shutil.rmtree(folder)
