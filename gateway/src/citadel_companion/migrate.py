"""Migrations of PostgreSQL: files of SQL, in their order, each in a transaction of its own and under one lock.

They only add, since a rollback of the release does not undo them. A file that was edited after it had been applied is
refused: what a database has would no longer be what the file says.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

import psycopg

LOCK = 0x63697461  # of this product, among the advisory locks of a database
MARKS = """
CREATE SCHEMA IF NOT EXISTS citadel;
CREATE TABLE IF NOT EXISTS citadel.migrations (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
"""


class MigrationError(Exception):
    """One sentence with what to do."""


class Migration(NamedTuple):
    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations() -> list[Migration]:
    folder = resources.files("citadel_companion") / "migrations"
    found = (path for path in folder.iterdir() if path.name.endswith(".sql"))
    return sorted(Migration(int(path.name[:4]), path.name, path.read_text(encoding="utf-8")) for path in found)


def pending(connection: psycopg.Connection, known: list[Migration]) -> list[Migration]:
    """What the database has not; refuses one that has another text, and a database that is ahead of this release only
    if an older companion could not work with it, which adding never causes."""
    rows = connection.execute("SELECT number, checksum FROM citadel.migrations").fetchall()
    applied = {int(number): str(checksum) for number, checksum in rows}
    for migration in known:
        if migration.number in applied and applied[migration.number] != migration.checksum:
            raise MigrationError(
                f"The migration {migration.name} is applied with another text than this release has: give the change a "
                "file of its own, with the next number."
            )
    return [migration for migration in known if migration.number not in applied]


def migrate(connection: psycopg.Connection, known: list[Migration] | None = None) -> list[str]:
    """The names of what was applied now."""
    known = migrations() if known is None else known
    done = []
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        connection.execute(MARKS)
    for migration in known:
        with connection.transaction():
            # whoever was first has done it meanwhile
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            if migration not in pending(connection, known):
                continue
            try:
                connection.execute(migration.text.encode())
            except psycopg.Error as error:
                raise MigrationError(f"The migration {migration.name} failed: {said(error)}.") from error
            connection.execute(
                "INSERT INTO citadel.migrations (number, name, checksum) VALUES (%s, %s, %s)",
                (migration.number, migration.name, migration.checksum),
            )
            done.append(migration.name)
    return done


def said(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error) or type(error).__name__).strip().rstrip(".")
