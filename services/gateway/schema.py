"""The gateway's tables. Nothing a caller sent is in them but sealed or hashed.

Limits, scopes, times and counts are in clear: they are the operator's numbers and names of ours.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    # Order of creation, for pages.
    sa.Column("create_time_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("suspended", sa.Boolean, nullable=False),
    sa.Column("calls_per_second", sa.Float),
    sa.Column("burst", sa.Integer),
    sa.Column("sealed_name", sa.LargeBinary),
    # Keyed tags of the idempotency key and of the request that came with it.
    sa.Column("idempotency_tag", sa.LargeBinary(32), unique=True),
    sa.Column("request_tag", sa.LargeBinary(32)),
    sa.Column("calls_in_flight", sa.Integer),
    sa.Column("quotas", sa.JSON, nullable=False),
    sa.Index("accounts_in_order", "create_time_ms", "id"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("account", sa.String(26), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("scopes", sa.String(128), nullable=False),
    # Whether it reaches only the collections named in its sealed part.
    sa.Column("restricted", sa.Boolean, nullable=False),
    # Label and collections; absent for an operator's token.
    sa.Column("sealed", sa.LargeBinary),
    sa.Column("create_time_ms", sa.BigInteger, nullable=False),
    sa.Column("expire_time_ms", sa.BigInteger),
    sa.Column("revoke_time_ms", sa.BigInteger),
    sa.Column("used_time_ms", sa.BigInteger),
    sa.Column("idempotency_tag", sa.LargeBinary(32), unique=True),
    sa.Column("request_tag", sa.LargeBinary(32)),
    sa.Index("tokens_in_order", "account", "create_time_ms", "id"),
)

# The last number given to a change. Its one row is locked by whoever changes anything, so that
# numbers are given in the order in which transactions commit.
change_counter = sa.Table(
    "change_counter",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    # "account" or "token".
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("subject", sa.String(26), nullable=False),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("account", sa.String(26), primary_key=True),
    # Days since the Unix epoch, UTC.
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in ("calls", "refusals", "points", "documents", "bytes")
    ),
)

# The last report that each service's process has had counted.
usage_reports = sa.Table(
    "usage_reports",
    metadata,
    sa.Column("reporter", sa.String(26), primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("day", sa.Integer, nullable=False),
)
