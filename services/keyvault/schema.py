"""The tables of keyvault's database. Nothing in them opens anything without the KMS."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()
# A data key is sealed with while it is current, and opened with for as long as anything is sealed under it.
CURRENT = "current"
AGED = "aged"

INSTALLATION = sa.Table(
    "installation",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

ACCOUNTS = sa.Table(
    "accounts",
    METADATA,
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

ACCOUNT_KEYS = sa.Table(
    "account_keys",
    METADATA,
    sa.Column("account", sa.String(32), sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("provider", sa.String(16), nullable=False),
    sa.Column("handle", sa.LargeBinary, nullable=False, unique=True),
)

DATA_KEYS = sa.Table(
    "data_keys",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("resource", sa.String(32), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    # As the current one: how often a service took it to seal with.
    sa.Column("releases", sa.BigInteger, nullable=False, server_default="0"),
    # When it stopped being current; 0: it is.
    sa.Column("aged_us", sa.BigInteger, nullable=False, server_default="0"),
    sa.ForeignKeyConstraint(["account", "version"], ["account_keys.account", "account_keys.version"]),
    sa.Index("data_keys_by_resource", "account", "resource"),
    sa.Index("data_keys_by_version", "account", "version"),
    # One current key for each resource and purpose, whoever asks first.
    sa.Index(
        "data_keys_current",
        "account",
        "resource",
        "purpose",
        unique=True,
        sqlite_where=sa.text("state = 'current'"),
        postgresql_where=sa.text("state = 'current'"),
    ),
)

# An account on its way to another key: made already, and in force for nothing until all is re-wrapped.
KEY_MOVES = sa.Table(
    "key_moves",
    METADATA,
    sa.Column("account", sa.String(32), sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("provider", sa.String(16), nullable=False),
    sa.Column("handle", sa.LargeBinary, nullable=False),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    # What the audit chain is to say of it, also after a restart.
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("peer", sa.String(64), nullable=False),
    sa.Column("token_id", sa.String(64), nullable=False),
    sa.Column("method", sa.String(200), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
)

# Data keys wrapped under the key that their account moves to, beside their present wrapping.
REWRAPPED = sa.Table(
    "rewrapped",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Index("rewrapped_by_account", "account"),
)

# Keys with nothing under them that their KMS has not destroyed yet.
RETIRED_KEYS = sa.Table(
    "retired_keys",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("provider", sa.String(16), nullable=False),
    sa.Column("handle", sa.LargeBinary, nullable=False),
)

# Destroyed for good: resource ids are never used again, so no key is ever made again under one.
DESTROYED_RESOURCES = sa.Table(
    "destroyed_resources",
    METADATA,
    sa.Column("account", sa.String(32), primary_key=True),
    sa.Column("resource", sa.String(32), primary_key=True),
    sa.Column("destroy_us", sa.BigInteger, nullable=False),
)

# What a deletion destroyed, for its receipt; an empty resource: the account itself. Ids alone.
DESTRUCTIONS = sa.Table(
    "destructions",
    METADATA,
    sa.Column("account", sa.String(32), primary_key=True),
    sa.Column("resource", sa.String(32), primary_key=True),
    sa.Column("facts", sa.Text, nullable=False),
)

# The same in order, for services that were not there to be told.
DESTROYED = sa.Table(
    "destroyed",
    METADATA,
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("account", sa.String(32), nullable=False),
    sa.Column("resource", sa.String(32), nullable=False),
    sqlite_autoincrement=True,
)

# How far each service has removed what it had of that.
REMOVED = sa.Table(
    "removed",
    METADATA,
    sa.Column("peer", sa.String(32), primary_key=True),
    sa.Column("place", sa.BigInteger, nullable=False),
)

KEY_DELETIONS = sa.Table(
    "key_deletions",
    METADATA,
    sa.Column("account", sa.String(32), primary_key=True),
    sa.Column("schedule_us", sa.BigInteger, nullable=False),
    sa.Column("due_us", sa.BigInteger, nullable=False),
    sa.Index("key_deletions_by_due", "due_us"),
)

# A service's leave to seal an account's data anew: when it is handed out next, and after which resource.
RESEALS = sa.Table(
    "reseals",
    METADATA,
    sa.Column("account", sa.String(32), primary_key=True),
    sa.Column("peer", sa.String(32), primary_key=True),
    sa.Column("job_id", sa.String(32), nullable=False),
    sa.Column("token_id", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("next_us", sa.BigInteger, nullable=False),
    sa.Column("after", sa.String(32), nullable=False),
    sa.Index("reseals_by_next", "peer", "next_us"),
)

PERMITS = sa.Table(
    "permits",
    METADATA,
    sa.Column("account", sa.String(32), primary_key=True),
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("peer", sa.String(32), nullable=False),
    sa.Column("expires_us", sa.BigInteger, nullable=False),
    sa.Column("ended", sa.Boolean, nullable=False),
    sa.Index("permits_by_expiry", "expires_us"),
)

AUDIT_EVENTS = sa.Table(
    "audit_events",
    METADATA,
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
