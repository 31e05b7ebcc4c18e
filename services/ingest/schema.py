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

# Connections to sources. What they are and what opens them is sealed under a key of each one's own.
CONNECTIONS = sa.Table(
    "connections",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("create_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("description", sa.LargeBinary, nullable=False),
    sa.Column("credential", sa.LargeBinary, nullable=False),
    # Goes up with each new credential, whose seal names it.
    sa.Column("version", sa.BigInteger, nullable=False),
    # One refresher at a time: who holds the newest fence, until when.
    sa.Column("refresh_fence", sa.BigInteger, nullable=False),
    sa.Column("refresh_until_ms", sa.BigInteger, nullable=False),
    sa.Index("connections_by_account", "account", "create_ms", "id"),
)

# Connections that were begun: found by the hash of a state that is nowhere else.
FLOWS = sa.Table(
    "connection_flows",
    METADATA,
    sa.Column("state_hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("connection_id", sa.String(32), nullable=False),
    sa.Column("expire_ms", sa.BigInteger, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Index("flows_by_account", "account", "expire_ms"),
)

# Ingestions. There is no column for a temporary token, and there must never be one.
INGESTIONS = sa.Table(
    "ingestions",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("collection_id", sa.String(32), nullable=False),
    # Empty: it runs with a temporary token.
    sa.Column("connection_id", sa.String(32), nullable=False),
    sa.Column("create_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    # What lets the work go on when nobody calls; opens nothing without this service's certificate.
    sa.Column("grant_id", sa.String(32), nullable=False),
    sa.Column("grant_text", sa.Text, nullable=False),
    # The process that holds the lease, or the token.
    sa.Column("holder", sa.String(32), nullable=False),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    # Starts without progress in between.
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("not_before_ms", sa.BigInteger, nullable=False),
    # Of a schedule; null: none.
    sa.Column("next_run_ms", sa.BigInteger),
    sa.Column("run", sa.Integer, nullable=False),
    # The run's listing has ended.
    sa.Column("listed", sa.Boolean, nullable=False),
    sa.Column("full_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("found", sa.BigInteger, nullable=False),
    sa.Column("fetched", sa.BigInteger, nullable=False),
    sa.Column("unchanged", sa.BigInteger, nullable=False),
    sa.Column("indexed", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("removed", sa.BigInteger, nullable=False),
    sa.Column("start_ms", sa.BigInteger, nullable=False),
    sa.Column("finish_ms", sa.BigInteger, nullable=False),
    # The key of its tags, the same for its whole life.
    sa.Column("tag_key_id", sa.String(32), nullable=False),
    sa.Column("idempotency_tag", sa.LargeBinary(32)),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("cursor", sa.LargeBinary),
    sa.Index("ingestions_by_account", "account", "create_ms", "id"),
    sa.Index("ingestions_by_collection", "account", "collection_id"),
    sa.Index("ingestions_by_connection", "account", "connection_id"),
    sa.Index("ingestions_by_state", "state", "not_before_ms"),
    sa.Index("ingestions_by_schedule", "next_run_ms"),
    sa.UniqueConstraint("account", "collection_id", "idempotency_tag", name="ingestions_idempotency"),
)

# The items of an ingestion, found by a tag of their id.
ITEMS = sa.Table(
    "ingestion_items",
    METADATA,
    sa.Column("ingestion_id", sa.String(32), primary_key=True),
    sa.Column("tag", sa.LargeBinary(32), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    # Counted before the work, so that what kills its worker is counted too.
    sa.Column("attempts", sa.Integer, nullable=False),
    # The run that saw it last.
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("version_tag", sa.LargeBinary(32), nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    # The object of the version that can be searched, and of the one that is on its way.
    sa.Column("object_key", sa.String(128), nullable=False),
    sa.Column("next_key", sa.String(128), nullable=False),
    sa.Column("fetched", sa.LargeBinary),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Index("items_by_state", "ingestion_id", "state", "attempts"),
)
