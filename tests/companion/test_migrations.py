"""PostgreSQL as it comes to be ours: beside what others have, once, and never by an edited file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from citadel_companion.migrate import Migration, MigrationError, migrate, migrations
from citadel_companion.postgres import Postgres
from citadel_companion.records import Row, row_of
from citadel_companion.store import StoreError
from tests.companion.databases import Cluster
from tests.companion.test_shipping import told

DOCUMENTED = {
    "request_id": "uuid",
    "model_name": "character varying",
    "timestamp": "timestamp with time zone",
    "user_id": "character varying",
    "prompt_tokens": "integer",
    "completion_tokens": "integer",
    "total_tokens": "integer",
    "latency_ms": "integer",
    "status": "character varying",
    "error_message": "text",
}


def opened(cluster: Cluster, name: str, folder: Path) -> Postgres:
    config = cluster.config(name, folder)
    assert config.database is not None
    return Postgres(config, config.database)


def test_the_tables_have_the_documents_columns(postgres: Cluster, tmp_path: Path) -> None:
    name = postgres.database()
    store = opened(postgres, name, tmp_path)
    assert store.prepare() == [one.name for one in migrations()]
    assert store.prepare() == []
    store.close()
    with postgres.connect(name) as connection:
        for schema in ("phi3", "mixtral"):
            rows = connection.execute(
                "SELECT column_name, data_type FROM information_schema.columns "
                "WHERE table_schema = %s AND table_name = 'llm_model_requests' ORDER BY ordinal_position",
                (schema,),
            ).fetchall()
            assert dict(rows).items() >= DOCUMENTED.items()
            assert [name for name, _ in rows] == list(Row._fields)


def test_two_that_migrate_at_once_do_it_once(postgres: Cluster) -> None:
    name = postgres.database()

    def one(_: int) -> list[str]:
        with postgres.connect(name) as connection:
            return migrate(connection)

    with ThreadPoolExecutor(4) as pool:
        done = [name for names in pool.map(one, range(4)) for name in names]
    assert sorted(done) == [one.name for one in migrations()]


def test_an_edited_migration_is_refused_and_a_failed_one_leaves_nothing(postgres: Cluster) -> None:
    first = Migration(1, "0001_a.sql", "CREATE TABLE citadel.a (b INTEGER)")
    broken = Migration(2, "0002_b.sql", "CREATE TABLE citadel.c (d INTEGER); SELECT nothing_of_the_kind()")
    with postgres.connect(postgres.database()) as connection:
        assert migrate(connection, [first]) == ["0001_a.sql"]
        with pytest.raises(MigrationError, match=r"0002_b\.sql failed: function nothing_of_the_kind\(\)"):
            migrate(connection, [first, broken])
        assert connection.execute("SELECT to_regclass('citadel.c')").fetchone() == (None,)
        edited = first._replace(text="CREATE TABLE citadel.a (b BIGINT)")
        with pytest.raises(MigrationError, match=r"0001_a\.sql is applied with another text"):
            migrate(connection, [edited])


def test_a_table_of_somebody_else_is_not_taken(postgres: Cluster, tmp_path: Path) -> None:
    name = postgres.database()
    with postgres.connect(name) as connection:
        connection.execute("CREATE SCHEMA phi3")
        connection.execute("CREATE TABLE phi3.llm_model_requests (theirs TEXT)")
        connection.execute("INSERT INTO phi3.llm_model_requests VALUES ('precious')")
    store = opened(postgres, name, tmp_path)
    with pytest.raises(
        StoreError, match=r"phi3.llm_model_requests is there already and is not of this product: rename"
    ):
        store.prepare()
    store.close()
    with postgres.connect(name) as connection:
        assert connection.execute("SELECT theirs FROM phi3.llm_model_requests").fetchall() == [("precious",)]


def test_a_model_that_comes_later_gets_a_schema_of_its_own(postgres: Cluster, tmp_path: Path) -> None:
    name = postgres.database()
    store = opened(postgres, name, tmp_path)
    store.prepare()
    store.add([row_of(told(0, model="New Model/7b"))])
    store.close()
    with postgres.connect(name) as connection:
        assert connection.execute("SELECT count(*) FROM new_model_7b.llm_model_requests").fetchone() == (1,)


def test_aggregates_are_computed_once_for_each_period(postgres: Cluster, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    name = postgres.database()
    store = opened(postgres, name, tmp_path)
    store.prepare()
    now = datetime(2026, 11, 25, 12, 7, tzinfo=UTC)
    at = datetime(2026, 11, 25, 12, 1, tzinfo=UTC).timestamp()
    store.add([row_of(told(2 * number, time=at, status=500 if number == 0 else 200)) for number in range(4)])
    for _ in range(2):
        store.aggregate(now)
    store.add([row_of(told(100, time=at))])  # late, from a spool
    store.aggregate(now)
    store.close()
    with postgres.connect(name) as connection:
        rows = connection.execute(
            "SELECT period_seconds, requests, error_rate, requests_per_second, completion_tokens, timestamp "
            "FROM public.llm_model_performance WHERE model_name = 'phi-3-mini'"
        ).fetchall()
    assert [(row[0], row[1], row[2], round(row[3], 4), row[4]) for row in rows] == [(300, 5, 0.2, 0.0167, 35)]
    assert rows[0][5] == datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
