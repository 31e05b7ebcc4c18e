"""The first schema: accounts, their keys, data keys, permits and the audit chain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "installation",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    _create_accounts()
    _create_data_keys()
    op.create_table(
        "destroyed_resources",
        sa.Column("account", sa.String(32), primary_key=True),
        sa.Column("resource", sa.String(32), primary_key=True),
        sa.Column("destroy_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "permits",
        sa.Column("account", sa.String(32), primary_key=True),
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("peer", sa.String(32), nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
    )
    op.create_index("permits_by_expiry", "permits", ["expires_us"])
    _create_audit()


def _create_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("suspended", sa.Boolean, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("data_keys", sa.Integer, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("rotate_us", sa.BigInteger, nullable=False),
        sa.Column("audit_sequence", sa.BigInteger, nullable=False),
        sa.Column("audit_hash", sa.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "account_keys",
        sa.Column("account", sa.String(32), sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("provider", sa.String(16), nullable=False),
        sa.Column("handle", sa.LargeBinary, nullable=False, unique=True),
    )


def _create_data_keys() -> None:
    op.create_table(
        "data_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("account", sa.String(32), nullable=False),
        sa.Column("resource", sa.String(32), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["account", "version"], ["account_keys.account", "account_keys.version"]),
    )
    op.create_index("data_keys_by_resource", "data_keys", ["account", "resource"])
    op.create_index("data_keys_by_version", "data_keys", ["account", "version"])
    op.create_index(
        "data_keys_current",
        "data_keys",
        ["account", "resource", "purpose"],
        unique=True,
        sqlite_where=sa.text("state = 'current'"),
        postgresql_where=sa.text("state = 'current'"),
    )


def _create_audit() -> None:
    op.create_table(
        "audit_events",
        sa.Column("account", sa.String(32), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("method", sa.String(200), nullable=False),
        sa.Column("resource", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
    )


def downgrade() -> None:
    """Removes the tables."""
    for table in (
        "permits",
        "destroyed_resources",
        "audit_events",
        "data_keys",
        "account_keys",
        "accounts",
        "installation",
    ):
        op.drop_table(table)
