"""PostgreSQL, through Pgpool-II. One connection, since Pgpool pools sessions and each taken is one less for others."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from citadel_companion.config import Config, Database, schema_of
from citadel_companion.migrate import LOCK, MigrationError, migrate, said
from citadel_companion.records import Row
from citadel_companion.store import CHANGE, Feedback, StoreError, Thing, Version, changed

Result = TypeVar("Result")
PERIODS = (300, 3600, 86_400, 604_800)  # seconds
ORIGIN = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday, so that a week is one
LATE = timedelta(hours=1)  # what the spool may bring later than its period
NAMESPACE = uuid.UUID("6f3a1c52-6f0b-5d5e-8a51-c17ade100001")
TYPES = {
    "request_id": "uuid",
    "timestamp": "timestamptz",
    "exact": "boolean",
    "stream": "boolean",
    **dict.fromkeys(
        ("prompt_tokens", "completion_tokens", "total_tokens", "latency_ms", "status_code", "first_token_ms"), "integer"
    ),
    **dict.fromkeys(("queue_ms", "cached_tokens", "charged_tokens", "retries"), "integer"),
}
# an escaped zero, unless its backslash is escaped itself
_ZERO = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class Postgres:
    def __init__(self, config: Config, database: Database) -> None:
        self._config = config
        self._database = database
        self._connection: psycopg.Connection | None = None
        self._schemas: set[str] = set()
        self._partitions: set[tuple[str, date]] = set()

    def prepare(self) -> list[str]:
        def work(connection: psycopg.Connection) -> list[str]:
            done = migrate(connection)
            for model in self._config.schemas:
                self._schema(connection, model)
            return done

        return self._do(work)

    def add(self, rows: Sequence[Row]) -> int:
        """One statement for each model, whatever their number; those that are there already stay as they are."""
        by_model: dict[str, list[Row]] = {}
        for row in rows:
            by_model.setdefault(row.model_name, []).append(row)

        def work(connection: psycopg.Connection) -> int:
            added = 0
            for model, some in by_model.items():
                schema = self._schema(connection, model)
                for month in {row.timestamp.astimezone(UTC).date().replace(day=1) for row in some}:
                    self._partition(connection, schema, month)
                columns = [list(column) for column in zip(*some, strict=True)]
                added += connection.execute(_insert(schema), columns).rowcount
            return added

        return self._do(work)

    def usage(self, user: str, since: datetime, until: datetime) -> list[dict[str, Any]]:
        question = (
            "SELECT model_name, count(*), count(*) FILTER (WHERE status = 'error'), sum(prompt_tokens), "
            "sum(completion_tokens), avg(latency_ms)::float FROM {} "
            "WHERE user_id = %s AND timestamp >= %s AND timestamp < %s GROUP BY model_name"
        )
        names = ("model", "requests", "errors", "prompt_tokens", "completion_tokens", "mean_latency_ms")

        def work(connection: psycopg.Connection) -> list[dict[str, Any]]:
            found = []
            for table in self._tables(connection):
                rows = connection.execute(sql.SQL(question).format(table), (user, since, until)).fetchall()
                found += [dict(zip(names, row, strict=True)) for row in rows]
            return sorted(found, key=lambda one: str(one["model"]))

        return self._do(work)

    def model_of(self, user: str, visible_id: str) -> str | None:
        question = "SELECT model_name FROM {} WHERE user_id = %s AND visible_id = %s LIMIT 1"

        def work(connection: psycopg.Connection) -> str | None:
            for table in self._tables(connection):
                found = connection.execute(sql.SQL(question).format(table), (user, visible_id)).fetchone()
                if found is not None:
                    return str(found[0])
            return None

        return self._do(work)

    def give(self, feedback: Feedback, model: str) -> None:
        fields = (*Feedback._fields, "model_name")
        change = ", ".join(f"{field} = excluded.{field}" for field in fields[2:])
        statement = (
            f"INSERT INTO citadel.feedback ({', '.join(fields)}) VALUES ({', '.join(['%s'] * len(fields))}) "
            f"ON CONFLICT (user_id, visible_id) DO UPDATE SET {change}, given_at = now()"
        )
        self._do(lambda connection: connection.execute(statement.encode(), (*feedback, model)))

    def put(self, thing: Thing) -> None:
        statement = (
            "INSERT INTO citadel.things VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (kind, id) DO UPDATE SET "
            "created_at = excluded.created_at, expires_at = excluded.expires_at, body = excluded.body "
            "WHERE things.owner = excluded.owner"
        )
        self._do(lambda connection: connection.execute(statement, (*thing[:5], Jsonb(thing.body, dumps=_dumps))))

    def get(self, kind: str, ident: str, owner: str) -> Thing | None:
        found = self._things("kind = %(kind)s AND id = %(id)s AND owner = %(owner)s", kind=kind, id=ident, owner=owner)
        return found[0] if found else None

    def listed(self, kind: str, owner: str | None, after: str | None = None, limit: int = 100) -> list[Thing]:
        of = "kind = %(kind)s"
        if owner is not None:
            of += " AND owner = %(owner)s"
        if after is not None:
            of += " AND (created_at, id) < (SELECT created_at, id FROM citadel.things "
            of += "WHERE kind = %(kind)s AND id = %(id)s)"
        return self._things(of, limit, kind=kind, owner=owner, id=after)

    def _things(self, of: LiteralString, limit: int = 1, **told: Any) -> list[Thing]:
        question = (
            f"SELECT kind, id, owner, created_at, expires_at, body FROM citadel.things WHERE {of} "
            "AND (expires_at IS NULL OR expires_at > now()) ORDER BY created_at DESC, id DESC LIMIT %(limit)s"
        )
        rows = self._do(lambda connection: connection.execute(question, {**told, "limit": limit}).fetchall())
        return [Thing(*row) for row in rows]

    def drop(self, kind: str, ident: str, owner: str) -> bool:
        statement = "DELETE FROM citadel.things WHERE kind = %s AND id = %s AND owner = %s"
        return bool(self._do(lambda connection: connection.execute(statement, (kind, ident, owner)).rowcount))

    def configure(self, version: Version, settings: Mapping[str, Any]) -> int:
        def work(connection: psycopg.Connection) -> int:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            question = f"SELECT name, value FROM ({_LAST}) AS last WHERE value IS NOT NULL AND host = %s"
            known: dict[str, Any] = dict(connection.execute(question, (version.host,)).fetchall())
            names = changed(known, settings)
            for name in names:
                values = (Jsonb(one[name]) if name in one else None for one in (settings, known))
                connection.execute(_CHANGE, (*version, name, *values))
            return len(names)

        return self._do(work)

    def configuration(self, name: str) -> list[dict[str, Any]]:
        question = f"SELECT * FROM ({_LAST}) AS last WHERE value IS NOT NULL AND {_BELOW} ORDER BY name"
        return self._changes(question, {"name": name})

    def changes(self, name: str, after: int | None, limit: int) -> list[dict[str, Any]]:
        question = (
            f"SELECT {_COLUMNS} FROM citadel.configuration "
            f"WHERE {_BELOW} AND (%(after)s::bigint IS NULL OR number < %(after)s) ORDER BY number DESC LIMIT %(limit)s"
        )
        return self._changes(question, {"name": name, "after": after, "limit": limit})

    def _changes(self, question: LiteralString, told: dict[str, Any]) -> list[dict[str, Any]]:
        rows = self._do(lambda connection: connection.execute(question, told).fetchall())
        found = [dict(zip(CHANGE, row, strict=True)) for row in rows]
        return [one | {"changed_at": one["changed_at"].isoformat()} for one in found]

    def thin(self, kind: str, owner: str, most: int, most_bytes: int) -> int:
        told = {"kind": kind, "owner": owner, "most": most, "bytes": most_bytes}
        statement = (
            "DELETE FROM citadel.things WHERE kind = %(kind)s AND owner = %(owner)s AND id IN (SELECT id FROM ("
            "SELECT id, row_number() OVER newest AS place, sum(pg_column_size(body)) OVER newest AS total "
            "FROM citadel.things WHERE kind = %(kind)s AND owner = %(owner)s "
            "WINDOW newest AS (ORDER BY created_at DESC, id DESC ROWS UNBOUNDED PRECEDING)"
            ") AS placed WHERE place > %(most)s OR total > %(bytes)s)"
        )
        return int(self._do(lambda connection: connection.execute(statement, told).rowcount))

    def aggregate(self, now: datetime) -> None:
        def work(connection: psycopg.Connection) -> None:
            for table in self._tables(connection):
                for period in PERIODS:
                    begin = now - max(LATE, timedelta(seconds=2 * period))
                    values = {"period": period, "origin": ORIGIN, "begin": begin, "now": now, "namespace": NAMESPACE}
                    connection.execute(sql.SQL(_AGGREGATE).format(table), values)

        self._do(work)

    def expire(self, now: datetime, retention: Mapping[str, int]) -> None:
        """Requests go by month, and within the last one by day; aggregates by their age."""

        def work(connection: psycopg.Connection) -> None:
            before = now - timedelta(days=retention["requests"])
            month = before.astimezone(UTC).date().replace(day=1)
            for schema in self._ours(connection):
                rows = connection.execute(
                    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
                    "WHERE i.inhparent = to_regclass(%s)",
                    (f'"{schema}".llm_model_requests',),
                ).fetchall()
                for (name,) in rows:
                    if name < f"llm_model_requests_{month:%Y_%m}":
                        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, name)))
                        self._partitions.clear()
                table = sql.Identifier(schema, "llm_model_requests")
                connection.execute(sql.SQL("DELETE FROM {} WHERE timestamp < %s").format(table), (before,))
            connection.execute("DELETE FROM citadel.things WHERE expires_at <= %s", (now,))
            connection.execute(
                "DELETE FROM public.llm_model_performance WHERE timestamp < %s AND period_seconds < 86400",
                (now - timedelta(days=retention["aggregates"]),),
            )
            connection.execute(
                "DELETE FROM public.llm_model_performance WHERE timestamp < %s",
                (now - timedelta(days=retention["reports"]),),
            )

        self._do(work)

    def forget(self, user: str) -> int:
        def work(connection: psycopg.Connection) -> int:
            gone = connection.execute("DELETE FROM citadel.feedback WHERE user_id = %s", (user,)).rowcount
            gone += connection.execute("DELETE FROM citadel.things WHERE owner = %s", (user,)).rowcount
            for table in self._tables(connection):
                gone += connection.execute(sql.SQL("DELETE FROM {} WHERE user_id = %s").format(table), (user,)).rowcount
            return gone

        return self._do(work)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # how it is asked

    def _do(self, work: Callable[[psycopg.Connection], Result]) -> Result:
        """In one transaction. Whatever goes wrong, the next attempt begins with a new connection."""
        try:
            connection = self._connected()
            with connection.transaction():
                return work(connection)
        except MigrationError as error:
            self.close()
            raise StoreError(str(error)) from error
        except (psycopg.Error, OSError) as error:
            self.close()
            self._schemas.clear()
            self._partitions.clear()
            where = f"{self._database.host}:{self._database.port}"
            told = said(error) if isinstance(error, psycopg.Error) else str(error)
            raise StoreError(f"PostgreSQL at {where}: {told}") from error

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            database = self._database
            password = Path(database.password_file).read_text().strip() if database.password_file else None
            self._connection = psycopg.connect(
                host=database.host,
                port=database.port,
                dbname=database.name,
                user=database.user,
                password=password,
                sslmode=database.tls,
                sslrootcert=database.tls_authorities,
                connect_timeout=database.connect_timeout,
                application_name="citadel-companion",
                autocommit=True,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=round(database.statement_timeout * 1000),
            )
            self._connection.execute(f"SET statement_timeout = {round(database.statement_timeout * 1000)}".encode())
        return self._connection

    def _schema(self, connection: psycopg.Connection, model: str) -> str:
        schema = schema_of(model, self._config.schemas)
        if schema not in self._schemas:
            connection.execute("SELECT citadel.make_model_schema(%s)", (schema,))
            self._schemas.add(schema)
        return schema

    def _partition(self, connection: psycopg.Connection, schema: str, month: date) -> None:
        if (schema, month) not in self._partitions:
            connection.execute("SELECT citadel.make_partition(%s, %s)", (schema, month))
            self._partitions.add((schema, month))

    @staticmethod
    def _ours(connection: psycopg.Connection) -> list[str]:
        return [name for (name,) in connection.execute("SELECT schema_name FROM citadel.model_schemas").fetchall()]

    def _tables(self, connection: psycopg.Connection) -> list[sql.Identifier]:
        return [sql.Identifier(schema, "llm_model_requests") for schema in self._ours(connection)]


_COLUMNS: LiteralString = "number, host, version, changed_by, changed_from, changed_at, name, value, previous"
_LAST: LiteralString = (
    f"SELECT DISTINCT ON (host, name) {_COLUMNS} FROM citadel.configuration ORDER BY host, name, number DESC"
)
# of a setting or what is below it
_BELOW: LiteralString = "(%(name)s = '' OR name = %(name)s OR starts_with(name, %(name)s || '.'))"
_CHANGE: LiteralString = (
    "INSERT INTO citadel.configuration "
    "(host, version, changed_by, changed_from, changed_at, name, value, previous) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
)


def _dumps(body: Any) -> str:
    """PostgreSQL has no text with a zero byte, in JSON neither."""
    return _ZERO.sub(r"\1\\ufffd", json.dumps(body))


def _insert(schema: str) -> sql.Composed:
    arrays = ", ".join(f"%s::{TYPES.get(name, 'text')}[]" for name in Row._fields)
    statement = f"INSERT INTO {{}} ({', '.join(Row._fields)}) SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING"
    return sql.SQL(statement).format(sql.Identifier(schema, "llm_model_requests"))


_AGGREGATE = """
INSERT INTO public.llm_model_performance (
    metric_id, model_name, timestamp, avg_latency_ms, requests_per_second, error_rate, period_seconds, requests,
    prompt_tokens, completion_tokens
)
SELECT
    md5(%(namespace)s::text || model_name || %(period)s || moment)::uuid, model_name, moment, avg(latency_ms),
    count(*)::float / %(period)s, avg((status = 'error')::int), %(period)s, count(*),
    coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0)
FROM (
    SELECT *, date_bin(make_interval(secs => %(period)s), timestamp, %(origin)s) AS moment FROM {}
    WHERE timestamp >= date_bin(make_interval(secs => %(period)s), %(begin)s, %(origin)s)
        AND timestamp < date_bin(make_interval(secs => %(period)s), %(now)s, %(origin)s)
) AS of_period
GROUP BY model_name, moment
ON CONFLICT (metric_id) DO UPDATE SET
    avg_latency_ms = excluded.avg_latency_ms, requests_per_second = excluded.requests_per_second,
    error_rate = excluded.error_rate, requests = excluded.requests, prompt_tokens = excluded.prompt_tokens,
    completion_tokens = excluded.completion_tokens
"""
