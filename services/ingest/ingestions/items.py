"""The rows of an ingestion's items, moved from state to state under the ingestion's lease.

    PENDING -> FETCHED -> INDEXED          counted, sealed, committed
    any of these -> FAILED                 set aside after three starts, or at once if it can never work
    INDEXED -> GONE -> no row              the document goes first, then the row

A start is counted before the work. The key of the object that is on its way stands in the row before the
object is written, so none is ever lost; the object that a new version replaces is remembered in the same
transaction, until it is removed. Methods block; call them off the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.ingest.ingestions.records import ItemRow, ItemState, Row
from services.ingest.ingestions.store import UNREAD, Lease, add_unsettled, guard
from services.ingest.schema import INGESTIONS, ITEMS
from services.ingest.store import Database

STARTS_MAX = 3
_C = ITEMS.c
_FIELDS = tuple(ItemRow.__slots__)


@dataclass(frozen=True, slots=True)
class Seen:
    """An item that a listing named."""

    tag: bytes
    version_tag: bytes
    sealed: bytes


class ItemStore:
    """Items in ingest's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_batch(
        self,
        lease: Lease,
        run: int,
        seen: Sequence[Seen],
        gone: Iterable[bytes],
        unread: Sequence[tuple[Seen, str]],
        cursor: bytes,
        *,
        listed: bool,
        full: bool,
    ) -> None:
        """Takes one batch of a listing in, with the cursor after it; all or nothing."""
        with self._database.begin() as connection:
            guard(connection, lease)
            counts = dict.fromkeys(("found", "unchanged", "failed"), 0)
            for item in seen:
                fresh, same = _see(connection, lease.ingestion_id, run, item)
                counts["found"] += fresh
                counts["unchanged"] += fresh and same
            for item, reason in unread:
                _set_aside(connection, lease.ingestion_id, run, item, reason)
                counts["found"] += 1
                counts["failed"] += 1
            for tag in gone:
                connection.execute(
                    sa.update(ITEMS)
                    .where(_C.ingestion_id == lease.ingestion_id, _C.tag == tag)
                    .values(state=ItemState.GONE.value, attempts=0)
                )
            if full:
                # What a whole listing did not name is not there any more.
                connection.execute(
                    sa.update(ITEMS)
                    .where(_C.ingestion_id == lease.ingestion_id, _C.run < run)
                    .values(state=ItemState.GONE.value, attempts=0)
                )
            _count(connection, lease, counts, cursor=cursor, listed=listed)

    def restart_listing(self, lease: Lease) -> None:
        """Forgets the cursor: the source no longer knows it."""
        with self._database.begin() as connection:
            guard(connection, lease, cursor=None)

    def waiting(
        self, ingestion_id: str, state: ItemState, size: int, busy: Sequence[bytes] = ()
    ) -> list[ItemRow]:
        """Items of a state, those first that were started least often."""
        query = (
            sa.select(ITEMS)
            .where(_C.ingestion_id == ingestion_id, _C.state == state.value, _C.tag.not_in(busy))
            .order_by(_C.attempts, _C.tag)
            .limit(size)
        )
        with self._database.reading() as connection:
            return [_row(row) for row in connection.execute(query).mappings()]

    def page(self, ingestion_id: str, state: ItemState, after: bytes, size: int) -> list[ItemRow]:
        """Items of a state in order of their tags, those after one."""
        query = (
            sa.select(ITEMS)
            .where(_C.ingestion_id == ingestion_id, _C.state == state.value, _C.tag > after)
            .order_by(_C.tag)
            .limit(size)
        )
        with self._database.reading() as connection:
            return [_row(row) for row in connection.execute(query).mappings()]

    def count_documents(self, ingestion_ids: Sequence[str]) -> int:
        """How many documents the ingestions have brought that are there."""
        query = sa.select(sa.func.count()).where(_C.ingestion_id.in_(ingestion_ids), _C.object_key != "")
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def start(
        self, lease: Lease, row: Row, item: ItemRow, next_key: str = "", settle_after_ms: int = 0
    ) -> None:
        """Counts a start, before the work. `next_key` names the object that is about to be written."""
        values: dict[str, Any] = {"attempts": _C.attempts + 1}
        if next_key:
            values["next_key"] = next_key
        with self._database.begin() as connection:
            guard(connection, lease, progress=False)
            if next_key and item.next_key:
                # Of a start that came to nothing.
                add_unsettled(connection, row, item.next_key, settle_after_ms)
            connection.execute(sa.update(ITEMS).where(*_this(item)).values(values))

    def forgive(self, lease: Lease, item: ItemRow) -> None:
        """Takes a start back that was not the item's fault."""
        with self._database.begin() as connection:
            guard(connection, lease, progress=False)
            connection.execute(
                sa.update(ITEMS).where(*_this(item), _C.attempts > 0).values(attempts=_C.attempts - 1)
            )

    def fetched(self, lease: Lease, item: ItemRow, sealed: bytes, size_bytes: int) -> None:
        """The content is sealed and durable."""
        values = {
            "state": ItemState.FETCHED.value,
            "attempts": 0,
            "fetched": sealed,
            "size_bytes": size_bytes,
        }
        self._move(lease, item, values, {"fetched": 1})

    def indexed(self, lease: Lease, row: Row, item: ItemRow, settle_after_ms: int) -> None:
        """The document is committed; the object it replaced is to be removed."""
        values = {
            "state": ItemState.INDEXED.value,
            "reason": "",
            "attempts": 0,
            "object_key": item.next_key,
            "next_key": "",
            "fetched": None,
        }
        replaced = (item.object_key,) if item.object_key != item.next_key else ()
        self._move(lease, item, values, {"indexed": 1}, row, replaced, settle_after_ms)

    def set_aside(self, lease: Lease, row: Row, item: ItemRow, reason: str, settle_after_ms: int) -> None:
        """The item failed for good, and no version of it is there any more."""
        values = {
            "state": ItemState.FAILED.value,
            "reason": reason,
            "object_key": "",
            "next_key": "",
            "fetched": None,
        }
        left = (item.object_key, item.next_key)
        self._move(lease, item, values, {"failed": 1}, row, left, settle_after_ms)

    def gone(self, lease: Lease, item: ItemRow) -> None:
        """The item is to be removed."""
        self._move(lease, item, {"state": ItemState.GONE.value, "attempts": 0}, {})

    def removed(self, lease: Lease, row: Row, item: ItemRow, settle_after_ms: int) -> None:
        """The item's document is gone; so is its row now."""
        with self._database.begin() as connection:
            guard(connection, lease)
            for key in filter(None, (item.object_key, item.next_key)):
                add_unsettled(connection, row, key, settle_after_ms)
            connection.execute(sa.delete(ITEMS).where(*_this(item)))
            _count(connection, lease, {"removed": 1 if item.object_key else 0})

    def _move(
        self,
        lease: Lease,
        item: ItemRow,
        values: dict[str, Any],
        counts: dict[str, int],
        row: Row | None = None,
        unsettled: Sequence[str] = (),
        settle_after_ms: int = 0,
    ) -> None:
        with self._database.begin() as connection:
            guard(connection, lease)
            for key in filter(None, unsettled):
                if row is not None:
                    add_unsettled(connection, row, key, settle_after_ms)
            connection.execute(sa.update(ITEMS).where(*_this(item)).values(values))
            _count(connection, lease, counts)


def _see(connection: sa.Connection, ingestion_id: str, run: int, item: Seen) -> tuple[bool, bool]:
    """Records an item; whether this run had not seen it yet, and whether it is as it was."""
    this = (_C.ingestion_id == ingestion_id, _C.tag == item.tag)
    known = connection.execute(sa.select(_C.state, _C.version_tag, _C.run).where(*this)).one_or_none()
    values: dict[str, Any] = {"run": run, "version_tag": item.version_tag, "sealed": item.sealed}
    anew = {"state": ItemState.PENDING.value, "reason": "", "attempts": 0}
    if known is None:
        row = ItemRow(ingestion_id, item.tag, ItemState.PENDING, "", 0, run, item.version_tag, item.sealed)
        connection.execute(sa.insert(ITEMS).values(_values(row)))
        return True, False
    same = known.version_tag == item.version_tag and known.state != ItemState.GONE.value
    connection.execute(sa.update(ITEMS).where(*this).values(values if same else values | anew))
    return known.run < run, same and known.state == ItemState.INDEXED.value


def _set_aside(connection: sa.Connection, ingestion_id: str, run: int, item: Seen, reason: str) -> None:
    """Something that could not be listed: what is known of it stays as it is."""
    this = (_C.ingestion_id == ingestion_id, _C.tag == item.tag)
    if connection.execute(sa.update(ITEMS).where(*this).values(run=run)).rowcount:
        return
    row = ItemRow(ingestion_id, item.tag, ItemState.FAILED, reason, 1, run, UNREAD, item.sealed)
    connection.execute(sa.insert(ITEMS).values(_values(row)))


def _count(connection: sa.Connection, lease: Lease, counts: dict[str, int], **values: Any) -> None:
    columns = INGESTIONS.c
    changes = {name: columns[name] + int(number) for name, number in counts.items() if number} | values
    if changes:
        connection.execute(sa.update(INGESTIONS).where(columns.id == lease.ingestion_id).values(changes))


def _this(item: ItemRow) -> tuple[sa.ColumnElement[bool], ...]:
    return (_C.ingestion_id == item.ingestion_id, _C.tag == item.tag)


def _values(row: ItemRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _FIELDS} | {"state": row.state.value}


def _row(row: sa.RowMapping) -> ItemRow:
    return ItemRow(**({name: row[name] for name in _FIELDS} | {"state": ItemState(row["state"])}))
