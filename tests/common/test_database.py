"""Databases by URL: the schema comes whole whoever starts first, on SQLite and on a real PostgreSQL.

A database of another service or of a newer version is refused in words.
"""

from __future__ import annotations

import secrets
import sqlite3
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common import database
from services.common.database import (
    IDENTITY,
    DatabaseRefused,
    database_id,
    downgrade,
    migrate,
    open_engine,
    readers,
)
from services.gateway import schema as gateway_schema
from services.ingest import schema as ingest_schema
from services.keyvault import schema as keyvault_schema
from services.vectorstore import schema as vectorstore_schema
from tests.postgres import Postgres

SCHEMAS = {
    "services.gateway": gateway_schema.metadata,
    "services.ingest": ingest_schema.METADATA,
    "services.keyvault": keyvault_schema.METADATA,
    "services.vectorstore": vectorstore_schema.metadata,
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that nobody has used."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.make_database(f"d{secrets.token_hex(6)}")


def test_processes_that_start_together_make_one_schema(url: str) -> None:
    # Processes, as it is in life: Alembic is not made for threads.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_start, [url] * 2, ["services.keyvault"] * 2))
    engine = open_engine(url)
    assert set(keyvault_schema.METADATA.tables) <= set(_columns(engine))
    engine.dispose()


@pytest.mark.parametrize("package", SCHEMAS)
def test_the_steps_of_the_migrations_end_where_the_tables_of_the_code_are(url: str, package: str) -> None:
    engine = open_engine(url)
    migrate(engine, package)
    found = sa.inspect(engine)
    for name, table in SCHEMAS[package].tables.items():
        columns = {column["name"]: column["nullable"] for column in found.get_columns(name)}
        assert columns == {column.name: bool(column.nullable) for column in table.columns}, name
        indexes = {index["name"] for index in found.get_indexes(name)}
        assert {str(index.name) for index in table.indexes} <= indexes, name
    engine.dispose()


def test_a_plain_postgresql_url_is_enough(postgres: Postgres) -> None:
    engine = open_engine(postgres.url.replace("+psycopg", ""))
    with engine.connect() as connection:
        assert connection.execute(sa.text("select 1")).scalar_one() == 1
    engine.dispose()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"sealcomb\[postgresql\]"):
        open_engine("postgresql://somebody@127.0.0.1/nothing")


def _start(url: str, package: str) -> None:
    engine = open_engine(url)
    migrate(engine, package)
    engine.dispose()


@pytest.mark.parametrize("package", SCHEMAS)
def test_migrations_go_back_to_nothing_and_forward_again(url: str, package: str) -> None:
    engine = open_engine(url)
    migrate(engine, package)
    first = _columns(engine)
    name = database_id(engine)
    downgrade(engine, package)
    migrate(engine, package)
    assert _columns(engine) == first
    downgrade(engine, package, "base")
    assert set(_columns(engine)) == {"alembic_version", IDENTITY.name}
    migrate(engine, package)
    assert _columns(engine) == first
    assert database_id(engine) == name
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(url: str) -> None:
    engine = open_engine(url)
    migrate(engine, "services.vectorstore")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    before = _columns(engine)
    with pytest.raises(DatabaseRefused, match=r"newer version \(9999; this one knows up to 0"):
        migrate(engine, "services.vectorstore")
    assert _columns(engine) == before
    engine.dispose()


def test_a_database_of_another_service_is_refused_and_left_alone(url: str) -> None:
    engine = open_engine(url)
    migrate(engine, "services.keyvault")
    before = _columns(engine)
    with pytest.raises(DatabaseRefused, match="the database is keyvault's"):
        migrate(engine, "services.vectorstore")
    assert _columns(engine) == before
    engine.dispose()


def test_a_database_from_before_there_were_marks_is_taken(url: str) -> None:
    engine = open_engine(url)
    migrate(engine, "services.ingest")
    IDENTITY.drop(engine)
    migrate(engine, "services.ingest")
    assert len(database_id(engine)) == 32
    engine.dispose()


@pytest.mark.parametrize(
    "url", ["", "mysql://user@host/name", "sqlite", "postgresql+asyncpg://host/name", "/data/keyvault.db"]
)
def test_an_unknown_kind_of_database_is_refused_by_name(url: str) -> None:
    with pytest.raises(DatabaseRefused, match="must be sqlite"):
        open_engine(url)


def test_an_acknowledged_write_is_durable_though_the_server_is_set_otherwise(postgres: Postgres) -> None:
    """F16's class, for a server; the twin is a connection of somebody else's."""
    url = postgres.make_database(f"d{secrets.token_hex(6)}")
    name = url.rpartition("/")[2]
    plain = sa.create_engine(url)
    with plain.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    plain.dispose()
    found = []
    for engine in (plain, open_engine(url)):
        with engine.connect() as connection:
            found.append(connection.exec_driver_sql("SHOW synchronous_commit").scalar_one())
        engine.dispose()
    assert found == ["off", "on"]


def test_a_statement_that_hangs_is_given_up(postgres: Postgres) -> None:
    engine = open_engine(postgres.url, statement_s=0.2)
    with engine.connect() as connection, pytest.raises(sa.exc.OperationalError, match="statement timeout"):
        connection.exec_driver_sql("SELECT pg_sleep(60)")
    engine.dispose()


def test_a_reader_sees_one_state_to_its_end(url: str) -> None:
    engine = open_engine(url)
    migrate(engine, "services.ingest")
    count = sa.text("SELECT count(*) FROM removals")
    with readers(engine).connect() as reading:
        assert reading.execute(count).scalar_one() == 0
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO removals VALUES ('a/')")
        assert reading.execute(count).scalar_one() == 0
    engine.dispose()


def _columns(engine: sa.Engine) -> dict[str, set[str]]:
    found = sa.inspect(engine)
    return {
        table: {str(column["name"]) for column in found.get_columns(table)}
        for table in found.get_table_names()
    }


def _opened_for_reading(path: Path) -> sa.Engine:
    """An engine whose first connection could not open the file for writing, as when a disk fails."""
    engine = open_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE things (id INTEGER)")
    engine.dispose()
    first = [True]

    def connect(*_arguments: object) -> sqlite3.Connection | None:
        if not first:
            return None
        first.clear()
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)

    sa.event.listen(engine, "do_connect", connect)
    return engine


def _insert(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO things VALUES (1)")


def test_a_connection_that_sqlite_opened_for_reading_alone_is_left_at_the_first_refused_write(
    tmp_path: Path,
) -> None:
    """F17: one error at the start must not refuse every write until the next start."""
    engine = _opened_for_reading(tmp_path / "some.db")
    with pytest.raises(sa.exc.DBAPIError, match="readonly"):
        _insert(engine)
    _insert(engine)
    engine.dispose()


def test_f17_twin_kept_it_refuses_for_ever(tmp_path: Path) -> None:
    engine = _opened_for_reading(tmp_path / "some.db")
    sa.event.remove(engine, "handle_error", database._leave_read_only)
    for _ in range(3):
        with pytest.raises(sa.exc.DBAPIError, match="readonly"):
            _insert(engine)
    engine.dispose()
