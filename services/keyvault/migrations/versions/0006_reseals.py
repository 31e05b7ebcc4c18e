"""Leave to seal data anew while its owner does not call."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds the table."""
    op.create_table(
        "reseals",
        sa.Column("account", sa.String(32), primary_key=True),
        sa.Column("peer", sa.String(32), primary_key=True),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("next_us", sa.BigInteger, nullable=False),
        sa.Column("after", sa.String(32), nullable=False),
    )
    op.create_index("reseals_by_next", "reseals", ["peer", "next_us"])


def downgrade() -> None:
    """Removes the table."""
    op.drop_table("reseals")
