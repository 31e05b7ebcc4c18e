"""The tables of ingest's database: opaque ids and times only, nothing that a caller sent."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

# Originals of which it is not certain yet whether a document record names them.
UNSETTLED = sa.Table(
    "unsettled_originals",
    METADATA,
    sa.Column("object_key", sa.String(128), primary_key=True),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("collection_id", sa.String(32), nullable=False),
    sa.Column("document_id", sa.String(32), nullable=False),
    # After this time no call can commit the document any more.
    sa.Column("settle_after_ms", sa.BigInteger, nullable=False),
    sa.Index("unsettled_by_collection", "account", "collection_id", "settle_after_ms"),
)

# Prefixes of objects whose keys are destroyed, until the objects are gone too.
REMOVALS = sa.Table("removals", METADATA, sa.Column("prefix", sa.String(128), primary_key=True))
