"""What was destroyed in order, and how far each service has removed what it had of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Makes the tables, and lists what receipts are kept of."""
    op.create_table(
        "destroyed",
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("account", sa.String(32), nullable=False),
        sa.Column("resource", sa.String(32), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "removed",
        sa.Column("peer", sa.String(32), primary_key=True),
        sa.Column("place", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO destroyed (account, resource) SELECT account, resource FROM destructions")


def downgrade() -> None:
    """Removes the tables."""
    for table in ("removed", "destroyed"):
        op.drop_table(table)
