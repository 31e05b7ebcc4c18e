"""The first schema: collections, their logs and their snapshots."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "collections",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(26), nullable=False, unique=True),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(26), nullable=False),
        sa.Column("name_tag", sa.LargeBinary(32), nullable=False),
        sa.Column("idempotency_tag", sa.LargeBinary(32)),
        sa.Column("descriptor", sa.LargeBinary, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("head_lsn", sa.BigInteger, nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("points", sa.BigInteger, nullable=False),
        sa.Column("documents", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("account", "name_tag", name="one_name_an_account"),
        sa.UniqueConstraint("account", "idempotency_tag", name="one_idempotency_key_an_account"),
    )
    op.create_table(
        "log",
        sa.Column("collection", sa.String(26), primary_key=True),
        sa.Column("lsn", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "snapshots",
        sa.Column("collection", sa.String(26), primary_key=True),
        sa.Column("lsn", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("object_key", sa.String(256), nullable=False),
        sa.Column("key_id", sa.String(26), nullable=False),
    )


def downgrade() -> None:
    """Removes the tables."""
    for table in ("snapshots", "log", "collections"):
        op.drop_table(table)
