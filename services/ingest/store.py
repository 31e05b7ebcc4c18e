"""Ingest's store: which originals are not settled and which removals are not finished.

It holds ids and times, never a name, a text or a key. Its methods block; call them off the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from services.common.database import database_id, migrate, open_engine
from services.common.errors import ResourceExhausted, Unavailable
from services.common.sealing import HEADER_BYTES, key_id_of
from services.ingest.schema import INGESTIONS, ITEMS, REMOVALS, UNSETTLED

_SWEEP_ROWS_MAX = 100


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An original that a document record may or may not name."""

    object_key: str
    account: str
    collection_id: str
    document_id: str
    settle_after_ms: int


class Database:
    """Transactions on ingest's database, whose failures are the project's own errors."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction that is durable once the block has ended. Raises ResourceExhausted, Unavailable."""
        with _storage_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that only reads."""
        with _storage_errors(), self._engine.connect().execution_options(read_only=True) as connection:
            yield connection


class Store:
    """The tables of originals behind one database URL."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self.database = Database(engine)

    @classmethod
    def open(cls, url: str) -> Store:
        """The store behind a database URL, its schema brought up to date."""
        engine = open_engine(url)
        migrate(engine, "services.ingest")
        return cls(engine)

    @property
    def database_id(self) -> str:
        """Names this database among all; its objects belong to it."""
        return database_id(self._engine)

    def add_unsettled(self, row: Unsettled) -> None:
        """Remembers an original, durably, before it is written or its record deleted; once."""
        values = {
            "object_key": row.object_key,
            "account": row.account,
            "collection_id": row.collection_id,
            "document_id": row.document_id,
            "settle_after_ms": row.settle_after_ms,
        }
        try:
            self._write(sa.insert(UNSETTLED).values(values))
        except IntegrityError:
            # An interrupted deletion is repeated; the first row serves both.
            return

    def remove_unsettled(self, *object_keys: str) -> None:
        """Forgets originals that are settled."""
        self._write(sa.delete(UNSETTLED).where(UNSETTLED.c.object_key.in_(object_keys)))

    def unsettled_before(self, account: str, collection_id: str, now_ms: int) -> list[Unsettled]:
        """Originals of a collection that can be settled now, oldest first, some at a time."""
        query = (
            sa.select(UNSETTLED)
            .where(
                UNSETTLED.c.account == account,
                UNSETTLED.c.collection_id == collection_id,
                UNSETTLED.c.settle_after_ms < now_ms,
            )
            .order_by(UNSETTLED.c.settle_after_ms)
            .limit(_SWEEP_ROWS_MAX)
        )
        with self.database.reading() as connection:
            return [Unsettled(**row) for row in connection.execute(query).mappings()]

    def sealing_keys(self, account: str, collection_id: str) -> set[str]:
        """The data keys that the ingestions of a collection name in what they sealed."""
        mine = sa.and_(INGESTIONS.c.account == account, INGESTIONS.c.collection_id == collection_id)
        of_mine = sa.select(INGESTIONS.c.id).where(mine)
        sealed = [
            (INGESTIONS.c.payload, mine),
            (INGESTIONS.c.cursor, mine),
            (ITEMS.c.sealed, ITEMS.c.ingestion_id.in_(of_mine)),
            (ITEMS.c.fetched, ITEMS.c.ingestion_id.in_(of_mine)),
        ]
        with self.database.reading() as connection:
            named = set(connection.execute(sa.select(INGESTIONS.c.tag_key_id).where(mine)).scalars())
            for column, whose in sealed:
                query = sa.select(sa.func.substr(column, 1, HEADER_BYTES)).where(whose, column.is_not(None))
                named |= {key_id_of(bytes(head)) for head in connection.execute(query.distinct()).scalars()}
        return named

    def add_removal(self, prefix: str) -> None:
        """Remembers, durably, that the objects below a prefix are to go."""
        try:
            self._write(sa.insert(REMOVALS).values(prefix=prefix))
        except IntegrityError:
            return

    def finish_removal(self, prefix: str, account: str, collection_id: str) -> None:
        """Forgets a removal and what was unsettled below it; no collection id means all of the account's."""
        rows = sa.delete(UNSETTLED).where(UNSETTLED.c.account == account)
        if collection_id:
            rows = rows.where(UNSETTLED.c.collection_id == collection_id)
        self._write(rows, sa.delete(REMOVALS).where(REMOVALS.c.prefix == prefix))

    def removals(self) -> list[str]:
        """Prefixes whose removal was begun and not finished."""
        with self.database.reading() as connection:
            return list(connection.execute(sa.select(REMOVALS.c.prefix)).scalars())

    def close(self) -> None:
        """Closes the database."""
        self._engine.dispose()

    def _write(self, *statements: sa.Executable) -> None:
        with self.database.begin() as connection:
            for statement in statements:
                connection.execute(statement)


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, InternalError, NoConnection) as error:
        # SQLite's words and PostgreSQL's.
        if any(words in str(error) for words in ("disk is full", "No space left on device")):
            raise ResourceExhausted(
                "the storage is full; nothing was written", reason="STORAGE_FULL"
            ) from error
        raise Unavailable("the storage failed; try again", reason="STORAGE_FAILED") from error
