"""The embedded database: a file of SQLite, for a host whose estate has no PostgreSQL, and for a laptop."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from citadel_companion.config import Config
from citadel_companion.records import Row
from citadel_companion.store import CHANGE, Feedback, StoreError, Thing, Version, changed

TABLES = f"""
CREATE TABLE IF NOT EXISTS llm_model_requests ({", ".join(Row._fields)}, PRIMARY KEY (request_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS of_user ON llm_model_requests (user_id, timestamp);
CREATE INDEX IF NOT EXISTS of_visible ON llm_model_requests (visible_id);
CREATE INDEX IF NOT EXISTS of_time ON llm_model_requests (timestamp);
CREATE TABLE IF NOT EXISTS feedback (
    {", ".join(Feedback._fields)}, model_name, given_at DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (user_id, visible_id)
);
CREATE TABLE IF NOT EXISTS things ({", ".join(Thing._fields)}, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS things_of_owner ON things (kind, owner, created_at, id);
CREATE INDEX IF NOT EXISTS things_by_expiry ON things (expires_at);
CREATE TABLE IF NOT EXISTS configuration (number INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(CHANGE[1:])});
CREATE INDEX IF NOT EXISTS configuration_of_host ON configuration (host, name, number);
"""

_LAST = (
    "FROM configuration AS one WHERE number = "
    "(SELECT max(number) FROM configuration AS other WHERE other.host = one.host AND other.name = one.name)"
)
# of a setting or what is below it
_BELOW = "(:name = '' OR name = :name OR substr(name, 1, length(:name) + 1) = :name || '.')"
_VALID = "(expires_at IS NULL OR expires_at > ?)"


class Embedded:
    def __init__(self, config: Config) -> None:
        self._path = Path(config.state) / "usage.sqlite"
        self._connection: sqlite3.Connection | None = None

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = sqlite3.connect(self._path, check_same_thread=False, timeout=5.0)
                self._connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {TABLES}")
            except (OSError, sqlite3.Error) as error:
                self.close()
                raise StoreError(f"{self._path}: {error}") from error
        return self._connection

    def prepare(self) -> list[str]:
        _ = self._open
        return []

    def _run(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        try:
            with self._open as connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self.close()
            raise StoreError(f"{self._path}: {error}") from error

    def add(self, rows: Sequence[Row]) -> int:
        marks = ", ".join("?" * len(Row._fields))
        told = [(str(row.request_id), row[1], row.timestamp.isoformat(), *row[3:]) for row in rows]
        try:
            with self._open as connection:
                before = connection.total_changes
                connection.executemany(f"INSERT OR IGNORE INTO llm_model_requests VALUES ({marks})", told)
                return connection.total_changes - before
        except sqlite3.Error as error:
            self.close()
            raise StoreError(f"{self._path}: {error}") from error

    def usage(self, user: str, since: datetime, until: datetime) -> list[dict[str, Any]]:
        rows = self._run(
            "SELECT model_name, count(*), sum(status = 'error'), sum(prompt_tokens), sum(completion_tokens), "
            "avg(latency_ms) FROM llm_model_requests WHERE user_id = ? AND timestamp >= ? AND timestamp < ? "
            "GROUP BY model_name ORDER BY model_name",
            (user, since.isoformat(), until.isoformat()),
        )
        names = ("model", "requests", "errors", "prompt_tokens", "completion_tokens", "mean_latency_ms")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def model_of(self, user: str, visible_id: str) -> str | None:
        rows = self._run(
            "SELECT model_name FROM llm_model_requests WHERE user_id = ? AND visible_id = ? LIMIT 1", (user, visible_id)
        )
        return str(rows[0][0]) if rows else None

    def give(self, feedback: Feedback, model: str) -> None:
        marks = ", ".join("?" * (len(Feedback._fields) + 1))
        fields = f"{', '.join(Feedback._fields)}, model_name"
        self._run(f"INSERT OR REPLACE INTO feedback ({fields}) VALUES ({marks})", (*feedback, model))

    def put(self, thing: Thing) -> None:
        expires = _text(thing.expires_at) if thing.expires_at is not None else None
        told = (thing.kind, thing.id, thing.owner, _text(thing.created_at), expires, json.dumps(thing.body))
        self._run(
            "INSERT INTO things VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET "
            "created_at = excluded.created_at, expires_at = excluded.expires_at, body = excluded.body "
            "WHERE owner = excluded.owner",
            told,
        )

    def get(self, kind: str, ident: str, owner: str) -> Thing | None:
        rows = self._run(
            f"SELECT * FROM things WHERE kind = ? AND id = ? AND owner = ? AND {_VALID}",
            (kind, ident, owner, _text(datetime.now(UTC))),
        )
        return _thing(rows[0]) if rows else None

    def listed(self, kind: str, owner: str | None, after: str | None = None, limit: int = 100) -> list[Thing]:
        told = {"kind": kind, "owner": owner, "now": _text(datetime.now(UTC)), "after": after, "limit": limit}
        rows = self._run(
            "SELECT * FROM things WHERE kind = :kind AND (:owner IS NULL OR owner = :owner) "
            "AND (expires_at IS NULL OR expires_at > :now) AND (:after IS NULL OR (created_at, id) < "
            "(SELECT created_at, id FROM things WHERE kind = :kind AND id = :after)) "
            "ORDER BY created_at DESC, id DESC LIMIT :limit",
            told,
        )
        return [_thing(row) for row in rows]

    def drop(self, kind: str, ident: str, owner: str) -> bool:
        rows = self._run(
            "DELETE FROM things WHERE kind = ? AND id = ? AND owner = ? RETURNING id", (kind, ident, owner)
        )
        return bool(rows)

    def configure(self, version: Version, settings: Mapping[str, Any]) -> int:
        rows = self._run(f"SELECT name, value {_LAST} AND value IS NOT NULL AND host = ?", (version.host,))
        known = {name: json.loads(value) for name, value in rows}
        names = changed(known, settings)
        said = (version.host, version.version, version.changed_by, version.changed_from, _text(version.changed_at))
        told = [
            (*said, name, *(json.dumps(one[name]) if name in one else None for one in (settings, known)))
            for name in names
        ]
        statement = f"INSERT INTO configuration ({', '.join(CHANGE[1:])}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        try:
            with self._open as connection:
                connection.executemany(statement, told)
        except sqlite3.Error as error:
            self.close()
            raise StoreError(f"{self._path}: {error}") from error
        return len(told)

    def configuration(self, name: str) -> list[dict[str, Any]]:
        rows = self._run(
            f"SELECT {', '.join(CHANGE)} {_LAST} AND value IS NOT NULL AND {_BELOW} ORDER BY name", {"name": name}
        )
        return [_change(row) for row in rows]

    def changes(self, name: str, after: int | None, limit: int) -> list[dict[str, Any]]:
        rows = self._run(
            f"SELECT {', '.join(CHANGE)} FROM configuration WHERE {_BELOW} AND (:after IS NULL OR number < :after) "
            "ORDER BY number DESC LIMIT :limit",
            {"name": name, "after": after, "limit": limit},
        )
        return [_change(row) for row in rows]

    def thin(self, kind: str, owner: str, most: int, most_bytes: int) -> int:
        told = {"kind": kind, "owner": owner, "most": most, "bytes": most_bytes}
        rows = self._run(
            "DELETE FROM things WHERE kind = :kind AND owner = :owner AND id IN (SELECT id FROM ("
            "SELECT id, row_number() OVER newest AS place, sum(length(body)) OVER newest AS total FROM things "
            "WHERE kind = :kind AND owner = :owner "
            "WINDOW newest AS (ORDER BY created_at DESC, id DESC ROWS UNBOUNDED PRECEDING)"
            ") WHERE place > :most OR total > :bytes) RETURNING id",
            told,
        )
        return len(rows)

    def aggregate(self, now: datetime) -> None:
        """A file is small enough to be asked each time."""

    def expire(self, now: datetime, retention: Mapping[str, int]) -> None:
        before = (now - timedelta(days=retention["requests"])).isoformat()
        self._run("DELETE FROM llm_model_requests WHERE timestamp < ?", (before,))
        self._run("DELETE FROM things WHERE expires_at <= ?", (_text(now),))

    def forget(self, user: str) -> int:
        try:
            with self._open as connection:
                before = connection.total_changes
                for table, column in (("llm_model_requests", "user_id"), ("feedback", "user_id"), ("things", "owner")):
                    connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (user,))
                return connection.total_changes - before
        except sqlite3.Error as error:
            self.close()
            raise StoreError(f"{self._path}: {error}") from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _text(moment: datetime) -> str:
    """As text, moments of one zone are in their order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _thing(row: Sequence[Any]) -> Thing:
    kind, ident, owner, created, expires, body = row
    until = datetime.fromisoformat(expires) if expires is not None else None
    return Thing(kind, ident, owner, datetime.fromisoformat(created), until, json.loads(body))


def _change(row: Sequence[Any]) -> dict[str, Any]:
    *said, value, previous = row
    values = (json.loads(one) if one is not None else None for one in (value, previous))
    return dict(zip(CHANGE, (*said, *values), strict=True))
