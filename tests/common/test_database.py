"""Databases by URL: the schema comes whole whoever starts first, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import secrets
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.database import migrate, open_engine
from services.ingest import schema as ingest_schema
from services.keyvault import schema as keyvault_schema
from tests.postgres import Postgres

SCHEMAS = {
    "services.ingest": ingest_schema.METADATA,
    "services.keyvault": keyvault_schema.METADATA,
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that nobody has used."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.make_database(f"d{secrets.token_hex(6)}")


@pytest.mark.parametrize("package", SCHEMAS)
def test_processes_that_start_together_make_one_whole_schema(url: str, package: str) -> None:
    """The steps of the migrations end where the code's tables are, column by column."""

    # Processes, as it is in life: Alembic is not made for threads.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_start, [url] * 2, [package] * 2))
    engine = open_engine(url)
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
