"""The statements about several accounts' keys that change together: a part of keyvault's transaction."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from services.keyvault.records import AccountKey, DataKeyRecord, Wrapping
from services.keyvault.schema import ACCOUNT_KEYS, ACCOUNTS, DATA_KEYS, KEY_MOVES

_NAMES: sa.BindParameter[list[str]] = sa.bindparam("accounts", expanding=True)
_KEYS_OF = sa.select(ACCOUNT_KEYS).where(ACCOUNT_KEYS.c.account.in_(_NAMES))
_DATA_KEYS_OF = sa.select(
    DATA_KEYS.c.account,
    DATA_KEYS.c.resource,
    DATA_KEYS.c.purpose,
    DATA_KEYS.c.id,
    DATA_KEYS.c.version,
    DATA_KEYS.c.wrapped,
).where(DATA_KEYS.c.account.in_(_NAMES))
_IDS_OF = sa.select(DATA_KEYS.c.account, DATA_KEYS.c.id).where(DATA_KEYS.c.account.in_(_NAMES))
_MOVING = sa.select(KEY_MOVES.c.account).where(KEY_MOVES.c.account.in_(_NAMES))
_ADD_KEYS = sa.insert(ACCOUNT_KEYS)
_DELETE_KEYS = sa.delete(ACCOUNT_KEYS).where(
    ACCOUNT_KEYS.c.account == sa.bindparam("key"), ACCOUNT_KEYS.c.version < sa.bindparam("new_version")
)
_REWRAP = (
    sa.update(DATA_KEYS)
    .where(DATA_KEYS.c.id == sa.bindparam("key"))
    .values(version=sa.bindparam("new_version"), wrapped=sa.bindparam("new_wrapped"))
)
_PUT_IN_FORCE = (
    sa.update(ACCOUNTS)
    .where(ACCOUNTS.c.id == sa.bindparam("key"))
    .values(version=sa.bindparam("new_version"), rotate_us=sa.bindparam("now_us"))
)


class RotationStatements:
    """What Transaction inherits. Values only: nothing here decides."""

    _connection: sa.Connection

    def account_keys_of(self, accounts: Sequence[str]) -> dict[str, dict[int, AccountKey]]:
        """The keys of some accounts, by account and version."""
        found: dict[str, dict[int, AccountKey]] = {account: {} for account in accounts}
        for row in self._connection.execute(_KEYS_OF, {"accounts": accounts}):
            found[row.account][row.version] = AccountKey(row.account, row.version, row.handle, row.provider)
        return found

    def data_keys_of(self, accounts: Sequence[str]) -> dict[str, list[DataKeyRecord]]:
        """All data keys of some accounts, by account."""
        found: dict[str, list[DataKeyRecord]] = {account: [] for account in accounts}
        rows = self._connection.execute(_DATA_KEYS_OF, {"accounts": accounts})
        for account, resource, purpose, key_id, version, wrapped in rows:
            record = DataKeyRecord(Wrapping(account, resource, purpose, key_id), version, wrapped)
            found[account].append(record)
        return found

    def data_key_ids_of(self, accounts: Sequence[str]) -> dict[str, set[str]]:
        """The ids of all data keys of some accounts, by account."""
        found: dict[str, set[str]] = {account: set() for account in accounts}
        for account, key_id in self._connection.execute(_IDS_OF, {"accounts": accounts}):
            found[account].add(key_id)
        return found

    def moving_among(self, accounts: Sequence[str]) -> frozenset[str]:
        """Which of some accounts are on a move."""
        return frozenset(self._connection.execute(_MOVING, {"accounts": accounts}).scalars())

    def add_account_keys(self, keys: Sequence[AccountKey]) -> None:
        """Adds versions of accounts' keys, one for each account."""
        rows = [
            {"account": key.account, "version": key.version, "provider": key.provider, "handle": key.handle}
            for key in keys
        ]
        self._connection.execute(_ADD_KEYS, rows)

    def rewrap(self, records: Sequence[DataKeyRecord]) -> None:
        """Puts new wrappings of data keys in force."""
        if records:
            rows = [
                {"key": record.wrapping.key_id, "new_version": record.version, "new_wrapped": record.wrapped}
                for record in records
            ]
            self._connection.execute(_REWRAP, rows)

    def delete_older_keys(self, keys: Sequence[AccountKey]) -> None:
        """Destroys the versions before each of these; refused where a data key still needs one."""
        rows = [{"key": key.account, "new_version": key.version} for key in keys]
        self._connection.execute(_DELETE_KEYS, rows)

    def put_in_force(self, keys: Sequence[tuple[AccountKey, int]]) -> None:
        """Makes these the versions of their accounts' keys that are in force, each since a time."""
        rows = [{"key": key.account, "new_version": key.version, "now_us": now_us} for key, now_us in keys]
        self._connection.execute(_PUT_IN_FORCE, rows)
