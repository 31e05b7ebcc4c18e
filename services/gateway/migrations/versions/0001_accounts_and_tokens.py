"""Accounts and tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("create_time_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("suspended", sa.Boolean, nullable=False),
        sa.Column("calls_per_second", sa.Float),
        sa.Column("burst", sa.Integer),
        sa.Column("sealed_name", sa.LargeBinary),
        sa.Column("idempotency_tag", sa.LargeBinary(32), unique=True),
        sa.Column("request_tag", sa.LargeBinary(32)),
    )
    op.create_index("accounts_in_order", "accounts", ["create_time_ms", "id"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("account", sa.String(26), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("scopes", sa.String(128), nullable=False),
        sa.Column("restricted", sa.Boolean, nullable=False),
        sa.Column("sealed", sa.LargeBinary),
        sa.Column("create_time_ms", sa.BigInteger, nullable=False),
        sa.Column("expire_time_ms", sa.BigInteger),
        sa.Column("revoke_time_ms", sa.BigInteger),
        sa.Column("used_time_ms", sa.BigInteger),
        sa.Column("idempotency_tag", sa.LargeBinary(32), unique=True),
        sa.Column("request_tag", sa.LargeBinary(32)),
    )
    op.create_index("tokens_in_order", "tokens", ["account", "create_time_ms", "id"])


def downgrade() -> None:
    op.drop_table("tokens")
    op.drop_table("accounts")
