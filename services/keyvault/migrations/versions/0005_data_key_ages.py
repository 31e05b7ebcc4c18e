"""How often a data key was released, and since when another is sealed with in its place."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("data_keys", sa.Column("releases", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("data_keys", sa.Column("aged_us", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    """Removes the columns."""
    op.drop_column("data_keys", "aged_us")
    op.drop_column("data_keys", "releases")
