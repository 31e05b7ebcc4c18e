"""What is stored of collections: their rows, their logs, and where their snapshots and parts are.

Everything a caller sent is sealed before it comes here. A collection's row holds its head: the
sealed end of its log. Appending moves the head and adds the records in one transaction, and only if
head and epoch are what the writer believes, so a writer that lost its place cannot write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import NamedTuple

import sqlalchemy as sa

from services.common import ids
from services.common.database import readers
from services.common.errors import AlreadyExists, QuotaViolation, ResourceExhausted, Unavailable
from services.common.sealing import HEADER_BYTES, key_id_of
from services.vectorstore.schema import (
    Append,
    CollectionRow,
    NewCollection,
    PartRow,
    SnapshotRow,
    collections,
    log,
    now_us,
    parts,
    replicas,
    snapshots,
)


class LeasesLost(Unavailable):
    """The replica's time is over; it joins anew by itself, and has changed nothing."""

    reason = "LEASES_LOST"

    def __init__(self) -> None:
        super().__init__("the replica has lost its leases; try again", retry_after_s=0.2)


class Stored(NamedTuple):
    """One consistent view of a collection: its row, its snapshots with their parts, and its log."""

    row: CollectionRow
    snapshots: list[SnapshotRow]
    records: Sequence[tuple[int, bytes]]
    parts: list[PartRow]


_COLUMNS = [collections.c[name] for name in CollectionRow.__dataclass_fields__]


class Store:
    """The tables. Its methods block."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = readers(engine)
        # Whether a point read may be made where nothing must wait.
        self.is_local = engine.dialect.name == "sqlite"

    def add(self, new: NewCollection, most: int, maker: str = "") -> None:
        """Stores a new collection; AlreadyExists for a taken tag, ResourceExhausted beyond `most`.

        One that a replica has made objects for exists only if that replica's time is not over.
        """
        values = {name: getattr(new, name) for name in NewCollection.__dataclass_fields__}
        with storage_errors(), self._engine.begin() as connection:
            if maker and not self.is_local and not _lives(connection, maker):
                raise LeasesLost
            _lock_account(connection, new.account)
            owned = sa.select(sa.func.count()).where(collections.c.account == new.account)
            if connection.execute(owned).scalar_one() >= most:
                raise ResourceExhausted(
                    "the account has as many collections as it may; delete one first",
                    reason="COLLECTION_LIMIT",
                    quotas=[QuotaViolation("collections of an account", f"the limit is {most}")],
                )
            try:
                connection.execute(collections.insert().values(**values, epoch=1, documents=0))
            except sa.exc.IntegrityError:
                raise AlreadyExists(
                    "the name or idempotency key is taken", reason="COLLECTION_EXISTS"
                ) from None

    def by_tag(self, account: str, tag: bytes) -> CollectionRow | None:
        """The account's collection with a name tag."""
        return self._one(collections.c.name_tag == tag, account)

    def by_idempotency_tag(self, account: str, tag: bytes) -> CollectionRow | None:
        """The account's collection that was made under an idempotency key."""
        return self._one(collections.c.idempotency_tag == tag, account)

    def by_id(self, account: str, id_: str) -> CollectionRow | None:
        """The account's collection with an id."""
        return self._one(collections.c.id == id_, account)

    def key_ids(self, account: str) -> list[str]:
        """The catalog keys that the account's collections name."""
        query = sa.select(collections.c.key_id).where(collections.c.account == account).distinct()
        with storage_errors(), self._reader.connect() as connection:
            return list(connection.execute(query).scalars())

    def page(self, account: str, after: int, limit: int) -> list[CollectionRow]:
        """The account's collections in order of creation, those after a sequence."""
        query = (
            sa.select(*_COLUMNS)
            .where(collections.c.account == account, collections.c.sequence > after)
            .order_by(collections.c.sequence)
            .limit(limit)
        )
        with storage_errors(), self._reader.connect() as connection:
            return [CollectionRow(*row) for row in connection.execute(query)]

    def owned(self, account: str, id_: str = "") -> list[tuple[str, str]]:
        """Account and id of the account's collections, or of one of them."""
        query = sa.select(collections.c.account, collections.c.id).where(collections.c.account == account)
        if id_:
            query = query.where(collections.c.id == id_)
        with storage_errors(), self._reader.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(query)]

    def usage(self, account: str) -> list[tuple[str, int, int]]:
        """Id, points and bytes of the account's collections at their last writes."""
        columns = (collections.c.id, collections.c.points, collections.c.size_bytes)
        query = sa.select(*columns).where(collections.c.account == account)
        with storage_errors(), self._reader.connect() as connection:
            return [(row[0], int(row[1]), int(row[2])) for row in connection.execute(query)]

    def delete(self, account: str, id_: str) -> list[str]:
        """Deletes a collection's rows; returns the keys of its objects."""
        with storage_errors(), self._engine.begin() as connection:
            mine = sa.and_(collections.c.account == account, collections.c.id == id_)
            if not connection.execute(collections.delete().where(mine)).rowcount:
                return []
            connection.execute(log.delete().where(log.c.collection == id_))
            object_keys: list[str] = []
            for table in (snapshots, parts):
                keys = connection.execute(sa.select(table.c.object_key).where(table.c.collection == id_))
                object_keys += keys.scalars()
                connection.execute(table.delete().where(table.c.collection == id_))
        return object_keys

    def replace_descriptor(self, row: CollectionRow, sealed: bytes) -> bool:
        """Stores a new descriptor, unless it is no longer the row's."""
        same = sa.and_(collections.c.id == row.id, collections.c.descriptor == row.descriptor)
        with storage_errors(), self._engine.begin() as connection:
            return bool(
                connection.execute(collections.update().where(same).values(descriptor=sealed)).rowcount
            )

    def log_size(self, collection: str) -> tuple[int, int]:
        """Records and bytes of a collection's log."""
        size = sa.func.coalesce(sa.func.sum(sa.func.length(log.c.sealed)), 0)
        query = sa.select(sa.func.count(), size).where(log.c.collection == collection)
        with storage_errors(), self._reader.connect() as connection:
            records, size_bytes = connection.execute(query).one()
        return int(records), int(size_bytes)

    def append(self, appends: Sequence[Append]) -> list[bool]:
        """Makes all moves in one durable transaction; False for those whose writer lost its place."""
        with storage_errors(), self._engine.begin() as connection:
            # In one order whoever appends, so that two groups never wait for each other.
            places = sorted(range(len(appends)), key=lambda place: appends[place].collection)
            done = {place: _move(connection, appends[place]) for place in places}
        return [done[place] for place in range(len(appends))]

    def read(self, account: str, id_: str) -> Stored | None:
        """A collection as it is stored."""
        mine = sa.and_(collections.c.account == account, collections.c.id == id_)
        records = sa.select(log.c.lsn, log.c.sealed).where(log.c.collection == id_).order_by(log.c.lsn)
        with storage_errors(), self._reader.begin() as connection:
            row = connection.execute(sa.select(*_COLUMNS).where(mine)).one_or_none()
            if row is None:
                return None
            tail = [(int(record[0]), bytes(record[1])) for record in connection.execute(records)]
            return Stored(CollectionRow(*row), _snapshots(connection, id_), tail, _parts(connection, id_))

    def sealing_keys(self, collection: str) -> set[str]:
        """The data keys that anything of a collection names: head, log records, snapshots."""
        header = sa.func.substr
        with storage_errors(), self._reader.begin() as connection:
            heads = [
                *connection.execute(
                    sa.select(header(collections.c.head, 1, HEADER_BYTES)).where(
                        collections.c.id == collection
                    )
                ).scalars(),
                *connection.execute(
                    sa.select(header(log.c.sealed, 1, HEADER_BYTES))
                    .where(log.c.collection == collection)
                    .distinct()
                ).scalars(),
            ]
            noted: list[SnapshotRow | PartRow] = [
                *_snapshots(connection, collection),
                *_parts(connection, collection),
            ]
            named = {row.key_id for row in noted}
        return named | {key_id_of(bytes(head)) for head in heads}

    def plan_snapshot(
        self, collection: str, epoch: int, snapshot: SnapshotRow, new: Sequence[PartRow] = ()
    ) -> bool:
        """Notes objects before they are written, so that a crash leaves none that nobody knows.

        False for a writer that has lost its place.
        """
        mine = sa.and_(snapshots.c.collection == collection, snapshots.c.lsn == snapshot.lsn)
        with storage_errors(), self._engine.begin() as connection:
            if not _in_place(connection, collection, epoch):
                return False
            connection.execute(snapshots.delete().where(mine))
            values = {name: getattr(snapshot, name) for name in SnapshotRow.__dataclass_fields__}
            connection.execute(snapshots.insert().values(collection=collection, **values))
            if new:
                rows = [{"collection": collection, **asdict(row)} for row in new]
                connection.execute(parts.insert(), rows)
        return True

    def snapshots(self, collection: str) -> list[SnapshotRow]:
        """All snapshots that are noted."""
        with storage_errors(), self._reader.connect() as connection:
            return _snapshots(connection, collection)

    def parts(self, collection: str) -> list[PartRow]:
        """All parts that are noted."""
        with storage_errors(), self._reader.connect() as connection:
            return _parts(connection, collection)

    def orphans(self) -> dict[str, str]:
        """Collections that objects are noted for and that are not there, each with who was to make it."""
        there = sa.select(collections.c.id)
        found: dict[str, str] = {}
        with storage_errors(), self._reader.begin() as connection:
            for table in (parts, snapshots):
                query = sa.select(table.c.collection, table.c.object_key)
                for collection, object_key in connection.execute(
                    query.where(table.c.collection.not_in(there))
                ):
                    found[collection] = maker_of(object_key) if table is snapshots else ""
        return found

    def noted(self, collection: str, epoch: int) -> tuple[list[SnapshotRow], list[PartRow]]:
        """All snapshots and parts that are noted; none for a writer that has lost its place."""
        with storage_errors(), self._engine.begin() as connection:
            if not _in_place(connection, collection, epoch):
                return [], []
            return _snapshots(connection, collection), _parts(connection, collection)

    def forget_part(self, collection: str, name: str) -> None:
        """Removes the note of a part that is gone."""
        mine = sa.and_(parts.c.collection == collection, parts.c.name == name)
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(parts.delete().where(mine))

    def forget_snapshot(self, collection: str, gone: SnapshotRow) -> None:
        """Removes the note of an object that is gone; another one's of the same lsn stays."""
        mine = sa.and_(
            snapshots.c.collection == collection,
            snapshots.c.lsn == gone.lsn,
            snapshots.c.object_key == gone.object_key,
        )
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(snapshots.delete().where(mine))

    def _one(self, condition: sa.ColumnElement[bool], account: str) -> CollectionRow | None:
        query = sa.select(*_COLUMNS).where(collections.c.account == account, condition)
        with storage_errors(), self._reader.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else CollectionRow(*row)


def maker_of(manifest_key: str) -> str:
    """The replica that the manifest of a collection that it makes is named after; empty: none."""
    maker = manifest_key.rpartition("-")[2]
    return maker if ids.is_id(maker) else ""


def _lives(connection: sa.Connection, replica: str) -> bool:
    """Whether a replica's time is not over; nobody finds it to be until the transaction ends."""
    query = sa.select(replicas.c.until_us > now_us(connection.dialect.name)).where(replicas.c.id == replica)
    return bool(connection.execute(query.with_for_update()).scalar_one_or_none())


def _lock_account(connection: sa.Connection, account: str) -> None:
    """Keeps others from adding to the account until the transaction ends; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        number = sa.func.hashtextextended(f"collections of {account}", 0)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))


def _in_place(connection: sa.Connection, collection: str, epoch: int) -> bool:
    """Whether an epoch is the collection's, until the transaction ends; 0 is that of one not there yet."""
    row = sa.select(collections.c.epoch).where(collections.c.id == collection).with_for_update()
    return bool((connection.execute(row).scalar_one_or_none() or 0) == epoch)


def _move(connection: sa.Connection, append: Append) -> bool:
    place = sa.and_(
        collections.c.id == append.collection,
        collections.c.epoch == append.epoch,
        collections.c.head_lsn == append.expected_lsn,
    )
    values = {
        "head_lsn": append.lsn,
        "head": append.head,
        "points": append.points,
        "documents": append.documents,
        "size_bytes": append.size_bytes,
    }
    if not connection.execute(collections.update().where(place).values(**values)).rowcount:
        return False
    if append.records:
        rows = [{"collection": append.collection, "lsn": lsn, "sealed": raw} for lsn, raw in append.records]
        connection.execute(log.insert(), rows)
    if append.trim_to:
        old = sa.and_(log.c.collection == append.collection, log.c.lsn <= append.trim_to)
        connection.execute(log.delete().where(old))
    return True


def _snapshots(connection: sa.Connection, collection: str) -> list[SnapshotRow]:
    query = sa.select(*(snapshots.c[name] for name in SnapshotRow.__dataclass_fields__))
    rows = connection.execute(query.where(snapshots.c.collection == collection).order_by(snapshots.c.lsn))
    return [SnapshotRow(*row) for row in rows]


def _parts(connection: sa.Connection, collection: str) -> list[PartRow]:
    query = sa.select(*(parts.c[name] for name in PartRow.__dataclass_fields__))
    rows = connection.execute(query.where(parts.c.collection == collection).order_by(parts.c.name))
    return [PartRow(*row) for row in rows]


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns a database's failure into the project's own errors."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        text = str(error.orig).lower()
        # A server that ended of it may have written what it was told last.
        if not error.connection_invalidated and ("is full" in text or "no space" in text):
            raise ResourceExhausted(
                "the storage is full; nothing was written", reason="STORAGE_FULL"
            ) from error
        raise Unavailable(
            "the storage failed; try again", reason="STORAGE_FAILED", retry_after_s=1.0
        ) from error
    except sa.exc.TimeoutError as error:
        raise Unavailable(
            "the storage is busy; try again", reason="STORAGE_BUSY", retry_after_s=1.0
        ) from error
