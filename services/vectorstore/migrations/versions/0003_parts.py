"""Snapshots in parts: where each part is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes the table; a collection's next snapshot is written in parts."""
    op.create_table(
        "parts",
        sa.Column("collection", sa.String(26), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("object_key", sa.String(256), nullable=False),
        sa.Column("key_id", sa.String(26), nullable=False),
    )


def downgrade() -> None:
    """Removes the table; snapshots that are in parts do not open then."""
    op.drop_table("parts")
