"""Which replica holds each collection, and until when each replica is believed to live."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the column and the table; nothing is held yet."""
    op.add_column("collections", sa.Column("holder", sa.String(26)))
    op.create_index("collections_by_holder", "collections", ["holder"])
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("address", sa.String(256), nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("leaving", sa.Boolean, nullable=False),
    )


def downgrade() -> None:
    """Removes both."""
    op.drop_table("replicas")
    op.drop_index("collections_by_holder", "collections")
    op.drop_column("collections", "holder")
