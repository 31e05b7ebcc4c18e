"""The services' databases side by side: what they are, what is in them, and copies from one to another.

A copy leaves as an SQLite file, from whatever it was, in one consistent state; and goes back into either
kind. Rows are taken as they are: what was sealed stays sealed. This module changes no database but an
empty one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from services.common.database import IDENTITY, DatabaseRefused, migrate, open_engine, readers, revisions
from services.keyvault.schema import DATA_KEYS
from services.keyvault.store import DatabaseUnreadable, copy_database

_SQLITE = "sqlite:///"
_ROWS = 500
# A copy reads for as long as it takes.
_COPY_S = 24 * 3600.0


class DatabaseAway(ValueError):
    """The database does not answer, or there is none."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database is: its kind, its name, where its migrations are and where this version brings them."""

    kind: str
    id: str
    revision: str
    head: str


@contextmanager
def reading(url: str, *, statement_s: float = 30.0) -> Iterator[sa.Connection]:
    """A connection that reads one state of an existing database. Raises DatabaseAway."""
    if url.startswith(_SQLITE) and not Path(url.removeprefix(_SQLITE)).exists():
        raise DatabaseAway("there is no database")
    try:
        engine = open_engine(url, statement_s=statement_s)
        try:
            with readers(engine).connect() as connection:
                yield connection
        finally:
            engine.dispose()
    except DatabaseRefused as error:
        raise DatabaseAway(str(error)) from None
    except sa.exc.SQLAlchemyError as error:
        # Without the statement: its text is long, and says nothing to an operator.
        cause = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()
        raise DatabaseAway(cause[0] if cause else "it does not answer") from None


def schema_of(url: str, service: str) -> Schema:
    """What the database is. Raises DatabaseAway."""
    with reading(url) as connection:
        kind = connection.dialect.name
        if not sa.inspect(connection).has_table(IDENTITY.name):
            raise DatabaseAway("the database is empty, or of a version before this one")
        owner, name = connection.execute(sa.select(IDENTITY.c.service, IDENTITY.c.id)).one()
        if owner != service:
            raise DatabaseAway(f"the database is {owner}'s")
        revision, head = revisions(connection, f"services.{service}")
        return Schema(kind, name, revision, head)


def is_new(url: str) -> bool:
    """Whether nothing was ever stored there. Raises DatabaseAway where it does not answer."""
    if url.startswith(_SQLITE):
        return not Path(url.removeprefix(_SQLITE)).exists()
    with reading(url) as connection:
        return not sa.inspect(connection).has_table(IDENTITY.name)


def copy_out(url: str, service: str, target: Path) -> None:
    """Copies a database, also while it is written, into a new SQLite file. Raises DatabaseAway."""
    if url.startswith(_SQLITE):
        if not Path(url.removeprefix(_SQLITE)).exists():
            raise DatabaseAway("there is no database")
        try:
            copy_database(url, target)
        except DatabaseUnreadable as error:
            raise DatabaseAway(str(error)) from None
        return
    with reading(url, statement_s=_COPY_S) as connection:
        _copy_into(connection, f"{_SQLITE}{target}", service)


def copy_in(source: Path, url: str, service: str) -> None:
    """Copies such a file into a database of the service's that holds nothing yet. Raises DatabaseAway."""
    with _reading_file(source) as connection:
        _copy_into(connection, url, service)


def is_copy_of(url: str, source: Path, service: str) -> bool:
    """Whether the database is a copy of such a file, or what it was copied from."""
    return schema_of(url, service).id == id_of(source)


def id_of(copy: Path) -> str:
    """The name of the database that a file is a copy of; its objects belong to it."""
    with _reading_file(copy) as connection:
        return str(connection.execute(sa.select(IDENTITY.c.id)).scalar_one())


def data_keys_of(copy: Path) -> set[str]:
    """The ids of the data keys that a copy of keyvault's database has."""
    with _reading_file(copy) as connection:
        return set(connection.execute(sa.select(DATA_KEYS.c.id)).scalars())


def check(path: Path, service: str) -> None:
    """Raises DatabaseAway for a file that is not a whole database of the service."""
    with _reading_file(path) as connection:
        if list(connection.exec_driver_sql("PRAGMA integrity_check").scalars()) != ["ok"]:
            raise DatabaseAway("it is damaged")
        owners = connection.execute(sa.select(IDENTITY.c.service)).scalars().all()
        if list(owners) != [service]:
            raise DatabaseAway(f"it is not {service}'s")


@contextmanager
def _reading_file(path: Path) -> Iterator[sa.Connection]:
    """A connection to a copy that does not change its file, as opening it in the usual way would."""
    options = {"mode": "ro", "immutable": "1", "uri": "true"}
    engine = sa.create_engine(sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query=options))
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.SQLAlchemyError:
        raise DatabaseAway("it is damaged, or no database") from None
    finally:
        engine.dispose()


def _copy_into(source: sa.Connection, url: str, service: str) -> None:
    target = open_engine(url, statement_s=_COPY_S)
    try:
        revision, head = revisions(source, f"services.{service}")
        if revision != head:
            raise DatabaseAway(f"its schema is {revision}, not {head}; start this version on it once")
        migrate(target, f"services.{service}")
        with target.begin() as into:
            _copy_rows(source, into)
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseAway(f"it cannot be copied: {type(error).__name__}") from None
    finally:
        target.dispose()


def _copy_rows(source: sa.Connection, into: sa.Connection) -> None:
    theirs, ours = sa.MetaData(), sa.MetaData()
    theirs.reflect(source)
    ours.reflect(into)
    tables = [table for table in ours.sorted_tables if table.name != "alembic_version"]
    for table in reversed(tables):
        # What migrations put there, such as the database's own name.
        into.execute(table.delete())
    for table in tables:
        read = source.execution_options(yield_per=_ROWS).execute(sa.select(theirs.tables[table.name]))
        for part in read.mappings().partitions():
            into.execute(table.insert(), [dict(row) for row in part])
        last = _last_number(source, theirs.tables[table.name])
        if last:
            _go_on_after(into, table, last)


def _number_column(table: sa.Table) -> sa.Column[Any] | None:
    column = table.autoincrement_column
    return column if column is not None and column.autoincrement is not False else None


def _last_number(connection: sa.Connection, table: sa.Table) -> int:
    """The last number that the database itself gave to a row, of rows that are gone too; 0: none."""
    column = _number_column(table)
    if column is None:
        return 0
    highest = connection.execute(sa.select(sa.func.max(column))).scalar() or 0
    if connection.dialect.name == "sqlite":
        if not sa.inspect(connection).has_table("sqlite_sequence"):
            return int(highest)
        kept = "SELECT seq FROM sqlite_sequence WHERE name = :name"
        given = connection.execute(sa.text(kept), {"name": table.name}).scalar() or 0
    else:
        sequence = _sequence_of(connection, table, column)
        last: sa.Select[Any] = sa.select(sa.column("last_value")).select_from(sa.text(sequence or ""))
        given = connection.execute(last).scalar() if sequence else 0
    return max(int(highest), int(given or 0))


def _go_on_after(connection: sa.Connection, table: sa.Table, last: int) -> None:
    """Lets the database go on after a number, so that none is given twice."""
    if connection.dialect.name == "sqlite":
        if not sa.inspect(connection).has_table("sqlite_sequence"):
            return
        values = {"name": table.name, "last": last}
        done = connection.execute(
            sa.text("UPDATE sqlite_sequence SET seq = :last WHERE name = :name"), values
        )
        made = connection.execute(
            sa.text("SELECT sql FROM sqlite_master WHERE name = :name"), values
        ).scalar_one()
        if not done.rowcount and "AUTOINCREMENT" in made.upper():
            connection.execute(sa.text("INSERT INTO sqlite_sequence VALUES (:name, :last)"), values)
        return
    column = _number_column(table)
    sequence = _sequence_of(connection, table, column) if column is not None else None
    if sequence:
        connection.execute(sa.select(sa.func.setval(sequence, last)))


def _sequence_of(connection: sa.Connection, table: sa.Table, column: sa.Column[Any]) -> str | None:
    found: str | None = connection.execute(
        sa.select(sa.func.pg_get_serial_sequence(table.name, column.name))
    ).scalar()
    return found


def sync(path: Path) -> None:
    """Makes a file, or a folder's list of files, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
