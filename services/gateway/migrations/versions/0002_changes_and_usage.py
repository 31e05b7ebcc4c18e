"""Changes in order, for several policy processes; usage per account and day; quotas."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("accounts") as accounts:
        accounts.add_column(sa.Column("calls_in_flight", sa.Integer))
        accounts.add_column(sa.Column("quotas", sa.JSON, nullable=False, server_default="{}"))
    counter = op.create_table(
        "change_counter",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counter, [{"id": 1, "sequence": 0}])
    op.create_table(
        "changes",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("subject", sa.String(26), nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("account", sa.String(26), primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("refusals", sa.BigInteger, nullable=False),
        sa.Column("points", sa.BigInteger, nullable=False),
        sa.Column("documents", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "usage_reports",
        sa.Column("reporter", sa.String(26), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    for table in ("usage_reports", "usage", "changes", "change_counter"):
        op.drop_table(table)
    with op.batch_alter_table("accounts") as accounts:
        accounts.drop_column("quotas")
        accounts.drop_column("calls_in_flight")
