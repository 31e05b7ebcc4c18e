"""When an ingestion was last listed from the beginning."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the column; what is there already is due at its next run."""
    op.add_column("ingestions", sa.Column("full_ms", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    """Removes the column."""
    op.drop_column("ingestions", "full_ms")
