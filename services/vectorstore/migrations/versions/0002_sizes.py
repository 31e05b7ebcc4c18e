"""How much memory a collection takes, known without opening it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the column; a collection's own next write sets it."""
    op.add_column("collections", sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    """Removes the column."""
    op.drop_column("collections", "size_bytes")
