"""The first schema: originals that are not settled, and removals that are not finished."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "unsettled_originals",
        sa.Column("object_key", sa.String(128), primary_key=True),
        sa.Column("account", sa.String(32), nullable=False),
        sa.Column("collection_id", sa.String(32), nullable=False),
        sa.Column("document_id", sa.String(32), nullable=False),
        sa.Column("settle_after_ms", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "unsettled_by_collection", "unsettled_originals", ["account", "collection_id", "settle_after_ms"]
    )
    op.create_table("removals", sa.Column("prefix", sa.String(128), primary_key=True))


def downgrade() -> None:
    """Removes the tables."""
    for table in ("removals", "unsettled_originals"):
        op.drop_table(table)
