"""What was destroyed, for receipts, and deletions that are scheduled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "destructions",
        sa.Column("account", sa.String(32), primary_key=True),
        sa.Column("resource", sa.String(32), primary_key=True),
        sa.Column("facts", sa.Text, nullable=False),
    )
    op.create_table(
        "key_deletions",
        sa.Column("account", sa.String(32), primary_key=True),
        sa.Column("schedule_us", sa.BigInteger, nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
    )
    op.create_index("key_deletions_by_due", "key_deletions", ["due_us"])


def downgrade() -> None:
    """Removes the tables."""
    for table in ("key_deletions", "destructions"):
        op.drop_table(table)
