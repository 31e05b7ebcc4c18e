"""Databases copied from one kind to the other and back: every row, and no number given twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.database import migrate, open_engine
from services.common.methods import KEYVAULT, SERVICES
from services.keyvault.schema import ACCOUNTS, DESTROYED
from services.standalone.admin import contents, store
from services.vectorstore.schema import collections, replicas
from tests.postgres import Postgres, running_postgres


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with running_postgres(tmp_path_factory.mktemp("admin")) as server:
        yield server


def new_database(url: str, service: str) -> None:
    engine = open_engine(url)
    migrate(engine, f"services.{service}")
    if service == KEYVAULT:
        with engine.begin() as connection:
            fields = {"id": "a", "state": "ENABLED", "suspended": False, "version": 1, "data_keys": 0}
            times = {"create_us": 2**52, "rotate_us": 0, "audit_sequence": 0, "audit_hash": bytes(range(32))}
            connection.execute(ACCOUNTS.insert(), fields | times)
            for resource in ("x", "y", "z"):
                connection.execute(DESTROYED.insert(), {"account": "a", "resource": resource})
            connection.execute(DESTROYED.delete().where(DESTROYED.c.resource == "z"))
    engine.dispose()


def content(url: str) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables."""
    engine = open_engine(url)
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        found = {
            name: sorted(tuple(row) for row in connection.execute(sa.select(table)))
            for name, table in tables.tables.items()
        }
    engine.dispose()
    return found


def next_number(url: str) -> int:
    engine = open_engine(url)
    with engine.begin() as connection:
        done = connection.execute(DESTROYED.insert(), {"account": "a", "resource": "n"})
        assert done.inserted_primary_key is not None
        number = int(done.inserted_primary_key[0])
    engine.dispose()
    return number


@pytest.mark.parametrize("service", SERVICES)
def test_a_database_comes_back_from_postgresql_as_it_went_there(
    postgres: Postgres, tmp_path: Path, service: str
) -> None:
    first, there, last = (
        f"sqlite:///{tmp_path}/first.db",
        postgres.make_database(service),
        tmp_path / "last.db",
    )
    new_database(first, service)
    store.copy_out(first, service, tmp_path / "copy.db")
    before = (tmp_path / "copy.db").read_bytes()
    assert store.is_new(there)
    store.copy_in(tmp_path / "copy.db", there, service)
    assert store.is_copy_of(there, tmp_path / "copy.db", service)
    assert (tmp_path / "copy.db").read_bytes() == before, "a copy is only read"
    store.copy_out(there, service, last)
    store.check(last, service)
    assert content(there) == content(f"sqlite:///{last}") == content(first)
    found = store.schema_of(there, service)
    assert (found.kind, found.revision) == ("postgresql", found.head)
    if service == KEYVAULT:
        assert next_number(there) == next_number(f"sqlite:///{last}") == 4, "3 was given to what is gone"


def test_what_is_no_database_of_the_service_is_told(postgres: Postgres, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    new_database(other, "ingest")
    (tmp_path / "text.db").write_text("no database at all, " * 400)
    with pytest.raises(store.DatabaseAway, match="ingest's"):
        store.schema_of(other, "gateway")
    with pytest.raises(store.DatabaseAway, match="not gateway's"):
        store.check(tmp_path / "other.db", "gateway")
    with pytest.raises(store.DatabaseAway, match="damaged"):
        store.check(tmp_path / "text.db", "gateway")
    with pytest.raises(store.DatabaseAway, match="there is no database"):
        store.schema_of(f"sqlite:///{tmp_path}/none.db", "gateway")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(store.DatabaseAway, match="empty"):
        store.schema_of(postgres.make_database("nothing"), "gateway")
    with pytest.raises(store.DatabaseAway):
        store.schema_of("postgresql://sealcomb@127.0.0.1:1/none", "gateway")


def test_replicas_are_listed_with_what_they_hold(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/vectorstore.db"
    new_database(url, "vectorstore")
    assert contents.replicas_of(url) == []
    engine = open_engine(url)
    with engine.begin() as connection:
        for name in ("a", "b"):
            row = {"id": name, "address": f"{name}:7443", "until_us": 5, "leaving": name == "b"}
            connection.execute(replicas.insert(), row)
        for number in range(3):
            tags = {"name_tag": bytes([number]), "descriptor": b"", "head": b"", "holder": "a"}
            counts = dict.fromkeys(("epoch", "head_lsn", "points", "documents"), 0)
            ids = {"id": str(number), "account": "one", "key_id": "k"}
            connection.execute(collections.insert(), ids | tags | counts)
    engine.dispose()
    found = [(row["replica"], row["leaving"], row["collections"]) for row in contents.replicas_of(url)]
    assert found == [("a", False, 3), ("b", True, 0)]
