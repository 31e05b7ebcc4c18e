"""What the operator's commands ask the services' databases: numbers and ids, nothing that is sealed.

The other half of that store. Each question is answered from one state of one database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.common.database import open_engine
from services.gateway.schema import accounts
from services.ingest.schema import INGESTIONS, ITEMS
from services.keyvault.schema import ACCOUNTS, AGED, DATA_KEYS
from services.keyvault.store import Store
from services.standalone.admin.store import reading
from services.vectorstore.schema import collections, log, replicas, snapshots

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Log:
    """What there is of a collection's log, and the snapshots that its database names (lsn to object key)."""

    collection: str
    head_lsn: int
    first_lsn: int
    last_lsn: int
    records: int
    snapshots: Mapping[int, str]


def accounts_of(url: str) -> list[Row]:
    """Id, state and time of creation of every account, the oldest first, from the gateway's database."""
    c = accounts.c
    return _rows(
        url, sa.select(c.id, c.state, c.suspended, c.create_time_ms).order_by(c.create_time_ms, c.id)
    )


def keys_by_account(url: str) -> dict[str, Row]:
    """State, version and number of data keys, those that were replaced apart, from keyvault's database."""
    of = DATA_KEYS.c.account == ACCOUNTS.c.id
    aged = sa.select(sa.func.count()).where(of, DATA_KEYS.c.state == AGED).scalar_subquery()
    c = ACCOUNTS.c
    query = sa.select(c.id.label("account"), c.state, c.version, c.data_keys, aged.label("aged"))
    return _by_account(_rows(url, query))


def held_by_account(url: str) -> dict[str, Row]:
    """How many collections, points, documents and bytes, from vectorstore's database."""
    c = collections.c
    sums = [sa.func.sum(column).label(name) for name, column in _AMOUNTS.items()]
    query = sa.select(c.account, sa.func.count().label("collections"), *sums).group_by(c.account)
    return _by_account(_rows(url, query))


_AMOUNTS = {
    "points": collections.c.points,
    "documents": collections.c.documents,
    "bytes": collections.c.size_bytes,
}


def logs(url: str, account: str) -> list[Log]:
    """The log of every collection, of one account or of all (empty)."""
    c, lsn = collections.c, log.c.lsn
    extent = sa.select(
        log.c.collection,
        sa.func.min(lsn).label("first"),
        sa.func.max(lsn).label("last"),
        sa.func.count().label("records"),
    )
    extents = extent.group_by(log.c.collection).subquery()
    query = sa.select(c.id, c.head_lsn, extents.c.first, extents.c.last, extents.c.records)
    query = query.join(extents, extents.c.collection == c.id, isouter=True).order_by(c.sequence)
    named = sa.select(snapshots.c.collection, snapshots.c.lsn, snapshots.c.object_key)
    if account:
        query = query.where(c.account == account)
        named = named.join(collections, c.id == snapshots.c.collection).where(c.account == account)
    by_collection: dict[str, dict[int, str]] = {}
    with reading(url) as connection:
        found = connection.execute(query).all()
        for collection, at, key in connection.execute(named):
            by_collection.setdefault(collection, {})[at] = key
    return [
        Log(
            one.id,
            one.head_lsn,
            one.first or 0,
            one.last or 0,
            one.records or 0,
            by_collection.get(one.id, {}),
        )
        for one in found
    ]


def replicas_of(url: str) -> list[Row]:
    """The vectorstores that share the database, until when each is believed, and what it holds."""
    c = replicas.c
    held = sa.select(sa.func.count()).where(collections.c.holder == c.id).scalar_subquery()
    query = sa.select(c.id.label("replica"), c.address, c.leaving, c.until_us, held.label("collections"))
    return _rows(url, query.order_by(c.address, c.id))


def originals(url: str, account: str) -> list[str]:
    """The object keys of what ingestions keep up to date, of one account or of all (empty)."""
    query = sa.select(ITEMS.c.object_key).where(ITEMS.c.object_key != "")
    if account:
        query = query.join(INGESTIONS, INGESTIONS.c.id == ITEMS.c.ingestion_id)
        query = query.where(INGESTIONS.c.account == account)
    return [row["object_key"] for row in _rows(url, query)]


def audit_store(url: str) -> Store:
    """Keyvault's store as it is: opened in the usual way it would bring the schema up to date."""
    with reading(url):
        return Store(open_engine(url))


def _rows(url: str, query: sa.Select[Any]) -> list[Row]:
    with reading(url) as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _by_account(rows: Iterable[Row]) -> dict[str, Row]:
    return {row["account"]: row for row in rows}
