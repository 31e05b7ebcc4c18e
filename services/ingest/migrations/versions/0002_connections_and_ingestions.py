"""Connections to sources, connections that were begun, ingestions and their items."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "connections",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("account", sa.String(32), nullable=False),
        sa.Column("create_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("description", sa.LargeBinary, nullable=False),
        sa.Column("credential", sa.LargeBinary, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("refresh_fence", sa.BigInteger, nullable=False),
        sa.Column("refresh_until_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("connections_by_account", "connections", ["account", "create_ms", "id"])
    op.create_table(
        "connection_flows",
        sa.Column("state_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("account", sa.String(32), nullable=False),
        sa.Column("connection_id", sa.String(32), nullable=False),
        sa.Column("expire_ms", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_index("flows_by_account", "connection_flows", ["account", "expire_ms"])
    op.create_table(
        "ingestions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("account", sa.String(32), nullable=False),
        sa.Column("collection_id", sa.String(32), nullable=False),
        sa.Column("connection_id", sa.String(32), nullable=False),
        sa.Column("create_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("grant_id", sa.String(32), nullable=False),
        sa.Column("grant_text", sa.Text, nullable=False),
        sa.Column("holder", sa.String(32), nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before_ms", sa.BigInteger, nullable=False),
        sa.Column("next_run_ms", sa.BigInteger),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("listed", sa.Boolean, nullable=False),
        sa.Column("found", sa.BigInteger, nullable=False),
        sa.Column("fetched", sa.BigInteger, nullable=False),
        sa.Column("unchanged", sa.BigInteger, nullable=False),
        sa.Column("indexed", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("removed", sa.BigInteger, nullable=False),
        sa.Column("start_ms", sa.BigInteger, nullable=False),
        sa.Column("finish_ms", sa.BigInteger, nullable=False),
        sa.Column("tag_key_id", sa.String(32), nullable=False),
        sa.Column("idempotency_tag", sa.LargeBinary(32)),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("cursor", sa.LargeBinary),
        sa.UniqueConstraint("account", "collection_id", "idempotency_tag", name="ingestions_idempotency"),
    )
    op.create_index("ingestions_by_account", "ingestions", ["account", "create_ms", "id"])
    op.create_index("ingestions_by_collection", "ingestions", ["account", "collection_id"])
    op.create_index("ingestions_by_connection", "ingestions", ["account", "connection_id"])
    op.create_index("ingestions_by_state", "ingestions", ["state", "not_before_ms"])
    op.create_index("ingestions_by_schedule", "ingestions", ["next_run_ms"])
    op.create_table(
        "ingestion_items",
        sa.Column("ingestion_id", sa.String(32), primary_key=True),
        sa.Column("tag", sa.LargeBinary(32), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("version_tag", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("object_key", sa.String(128), nullable=False),
        sa.Column("next_key", sa.String(128), nullable=False),
        sa.Column("fetched", sa.LargeBinary),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("items_by_state", "ingestion_items", ["ingestion_id", "state", "attempts"])


def downgrade() -> None:
    """Removes the tables."""
    for table in ("ingestion_items", "ingestions", "connection_flows", "connections"):
        op.drop_table(table)
