"""The vectorstore's tables, and their rows as the code has them.

Everything a caller sent is sealed before it comes here: a column that is not is a number, a time or an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

metadata = sa.MetaData()
_Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

collections = sa.Table(
    "collections",
    metadata,
    # The order of creation.
    sa.Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(26), nullable=False, unique=True),
    sa.Column("account", sa.String(64), nullable=False),
    # The catalog key that sealed the descriptor and made the tags.
    sa.Column("key_id", sa.String(26), nullable=False),
    sa.Column("name_tag", sa.LargeBinary(32), nullable=False),
    sa.Column("idempotency_tag", sa.LargeBinary(32)),
    sa.Column("descriptor", sa.LargeBinary, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("head_lsn", sa.BigInteger, nullable=False),
    sa.Column("head", sa.LargeBinary, nullable=False),
    sa.Column("points", sa.BigInteger, nullable=False),
    sa.Column("documents", sa.BigInteger, nullable=False),
    # In memory, at the last write.
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    # The replica that reads and writes it, where there are several (holders/store.py).
    sa.Column("holder", sa.String(26)),
    sa.UniqueConstraint("account", "name_tag", name="one_name_an_account"),
    sa.UniqueConstraint("account", "idempotency_tag", name="one_idempotency_key_an_account"),
    sa.Index("collections_by_holder", "holder"),
)
replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("address", sa.String(256), nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sa.Column("leaving", sa.Boolean, nullable=False),
)
log = sa.Table(
    "log",
    metadata,
    sa.Column("collection", sa.String(26), primary_key=True),
    sa.Column("lsn", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)
snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("collection", sa.String(26), primary_key=True),
    sa.Column("lsn", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("object_key", sa.String(256), nullable=False),
    sa.Column("key_id", sa.String(26), nullable=False),
)
# Objects that a snapshot's manifest names, and those of others that a crash left.
parts = sa.Table(
    "parts",
    metadata,
    sa.Column("collection", sa.String(26), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("object_key", sa.String(256), nullable=False),
    sa.Column("key_id", sa.String(26), nullable=False),
)


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A collection as stored."""

    sequence: int
    id: str
    account: str
    key_id: str
    descriptor: bytes
    epoch: int
    head_lsn: int
    head: bytes
    points: int
    documents: int


@dataclass(frozen=True, slots=True)
class NewCollection:
    """A collection to store."""

    id: str
    account: str
    key_id: str
    name_tag: bytes
    idempotency_tag: bytes | None
    descriptor: bytes
    head: bytes
    head_lsn: int = 0
    points: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Append:
    """A move of one collection's head, with the records up to it and what a snapshot made superfluous."""

    collection: str
    epoch: int
    expected_lsn: int
    lsn: int
    head: bytes
    points: int
    documents: int
    size_bytes: int
    records: Sequence[tuple[int, bytes]] = ()
    trim_to: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """Where a snapshot is, complete or not."""

    lsn: int
    object_key: str
    key_id: str


@dataclass(frozen=True, slots=True)
class PartRow:
    """Where a part of a snapshot is, complete or not."""

    name: str
    object_key: str
    key_id: str


def now_us(dialect: str) -> sa.ColumnElement[int]:
    """The database's own clock, at the statement and not at the transaction's beginning."""
    if dialect == "postgresql":
        return sa.literal_column("(extract(epoch from clock_timestamp()) * 1000000)::bigint", sa.BigInteger)
    return sa.literal_column("CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)", sa.BigInteger)
