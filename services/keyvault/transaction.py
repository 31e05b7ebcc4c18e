"""One transaction of keyvault's database, in the domain's words: the only module that says SQL.

Inside a write transaction `account` locks the account's row, so that what is checked there still
holds when the transaction commits, and so that the audit chain has one end at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.keyvault import audit
from services.keyvault.ages import AgeStatements
from services.keyvault.audit import Act, AuditRecord
from services.keyvault.destructions import DestructionStatements
from services.keyvault.movements import MoveStatements
from services.keyvault.records import (
    AccountKey,
    AccountRecord,
    DataKeyRecord,
    KeyState,
    PermitRecord,
    Wrapping,
)
from services.keyvault.rotations import RotationStatements
from services.keyvault.schema import (
    ACCOUNT_KEYS,
    ACCOUNTS,
    AUDIT_EVENTS,
    CURRENT,
    DATA_KEYS,
    DESTROYED_RESOURCES,
    INSTALLATION,
    KEY_DELETIONS,
    PERMITS,
    RESEALS,
)

# The statements of a release, built once: building them costs more than running them.
_PROVIDER = (
    sa.select(ACCOUNT_KEYS.c.provider)
    .where(ACCOUNT_KEYS.c.account == ACCOUNTS.c.id, ACCOUNT_KEYS.c.version == ACCOUNTS.c.version)
    .scalar_subquery()
)
_ACCOUNT = sa.select(ACCOUNTS, _PROVIDER.label("provider")).where(ACCOUNTS.c.id == sa.bindparam("account"))
_LOCKED_ACCOUNT = _ACCOUNT.with_for_update(of=ACCOUNTS)
# In order, so that two that lock the same accounts never wait for one another.
_SOME_ACCOUNTS = (
    sa.select(ACCOUNTS, _PROVIDER.label("provider"))
    .where(ACCOUNTS.c.id.in_(sa.bindparam("accounts", expanding=True)))
    .order_by(ACCOUNTS.c.id)
)
_SOME_LOCKED_ACCOUNTS = _SOME_ACCOUNTS.with_for_update(of=ACCOUNTS)
_ACCOUNT_KEY = sa.select(ACCOUNT_KEYS).where(
    ACCOUNT_KEYS.c.account == sa.bindparam("account"), ACCOUNT_KEYS.c.version == sa.bindparam("version")
)
_DATA_KEY = sa.select(DATA_KEYS).where(
    DATA_KEYS.c.account == sa.bindparam("account"),
    DATA_KEYS.c.resource == sa.bindparam("resource"),
    DATA_KEYS.c.purpose == sa.bindparam("purpose"),
)
_CURRENT_DATA_KEY = _DATA_KEY.where(DATA_KEYS.c.state == CURRENT)
_CERTAIN_DATA_KEY = _DATA_KEY.where(DATA_KEYS.c.id == sa.bindparam("key_id"))
_DESTROYED = sa.select(DESTROYED_RESOURCES.c.resource).where(
    DESTROYED_RESOURCES.c.account == sa.bindparam("account"),
    DESTROYED_RESOURCES.c.resource == sa.bindparam("resource"),
)
_ADD_DATA_KEY = sa.insert(DATA_KEYS)
_COUNT_DATA_KEY = (
    sa.update(ACCOUNTS)
    .where(ACCOUNTS.c.id == sa.bindparam("account"))
    .values(data_keys=ACCOUNTS.c.data_keys + 1)
)
_ADD_EVENT = sa.insert(AUDIT_EVENTS)
_MOVE_CHAIN_END = (
    sa.update(ACCOUNTS)
    .where(ACCOUNTS.c.id == sa.bindparam("key"))
    .values(audit_sequence=sa.bindparam("sequence"), audit_hash=sa.bindparam("hash"))
)


class Transaction(AgeStatements, DestructionStatements, MoveStatements, RotationStatements):
    """The statements that the domain needs. Values only: nothing here decides."""

    def __init__(self, connection: sa.Connection, *, writes: bool) -> None:
        self._connection = connection
        self._writes = writes
        self.destroyed = []

    # The installation.

    def installation_value(self, name: str) -> bytes | None:
        """A value of the installation."""
        query = sa.select(INSTALLATION.c.value).where(INSTALLATION.c.name == name)
        return self._connection.execute(query).scalar_one_or_none()

    def set_installation_value(self, name: str, value: bytes) -> None:
        """Sets a value that was not there."""
        self._connection.execute(sa.insert(INSTALLATION).values(name=name, value=value))

    # Accounts and their keys.

    def account(self, account: str) -> AccountRecord | None:
        """An account, locked where this transaction may write."""
        query = _LOCKED_ACCOUNT if self._writes else _ACCOUNT
        row = self._connection.execute(query, {"account": account}).one_or_none()
        return None if row is None else _account(row)

    def accounts(self, names: Sequence[str]) -> dict[str, AccountRecord]:
        """Those of some accounts that there are, locked where this transaction may write."""
        query = _SOME_LOCKED_ACCOUNTS if self._writes else _SOME_ACCOUNTS
        return {row.id: _account(row) for row in self._connection.execute(query, {"accounts": names})}

    def add_account(self, key: AccountKey, now_us: int) -> None:
        """Adds an account with the first version of its key."""
        self._connection.execute(
            sa.insert(ACCOUNTS).values(
                id=key.account,
                state=KeyState.ENABLED.value,
                suspended=False,
                version=key.version,
                data_keys=0,
                create_us=now_us,
                rotate_us=0,
                audit_sequence=0,
                audit_hash=audit.FIRST_HASH,
            )
        )
        self.add_account_key(key)

    def update_account(self, account: str, **values: Any) -> None:
        """Sets columns of an account."""
        self._connection.execute(sa.update(ACCOUNTS).where(ACCOUNTS.c.id == account).values(**values))

    def add_account_key(self, key: AccountKey) -> None:
        """Adds a version of an account's key."""
        self._connection.execute(
            sa.insert(ACCOUNT_KEYS).values(
                account=key.account, version=key.version, provider=key.provider, handle=key.handle
            )
        )

    def account_key(self, account: str, version: int) -> AccountKey | None:
        """A version of an account's key."""
        values = {"account": account, "version": version}
        row = self._connection.execute(_ACCOUNT_KEY, values).one_or_none()
        return None if row is None else AccountKey(account, version, row.handle, row.provider)

    def account_keys(self, account: str) -> list[AccountKey]:
        """All versions of an account's key, oldest first."""
        query = (
            sa.select(ACCOUNT_KEYS).where(ACCOUNT_KEYS.c.account == account).order_by(ACCOUNT_KEYS.c.version)
        )
        return [
            AccountKey(account, row.version, row.handle, row.provider)
            for row in self._connection.execute(query)
        ]

    def delete_account_keys_below(self, account: str, version: int) -> None:
        """Destroys the versions before one; the database refuses where a data key still needs them."""
        self._connection.execute(
            sa.delete(ACCOUNT_KEYS).where(ACCOUNT_KEYS.c.account == account, ACCOUNT_KEYS.c.version < version)
        )

    # Data keys.

    def data_key(self, wrapping: Wrapping) -> DataKeyRecord | None:
        """A certain data key; the current one of the resource and purpose where `key_id` is empty."""
        values = {"account": wrapping.account, "resource": wrapping.resource, "purpose": wrapping.purpose}
        if wrapping.key_id:
            values["key_id"] = wrapping.key_id
        query = _CERTAIN_DATA_KEY if wrapping.key_id else _CURRENT_DATA_KEY
        row = self._connection.execute(query, values).one_or_none()
        return None if row is None else _data_key(row)

    def add_data_key(self, record: DataKeyRecord, now_us: int) -> None:
        """Adds the current data key of a resource and purpose."""
        wrapping = record.wrapping
        self._connection.execute(
            _ADD_DATA_KEY,
            {
                "id": wrapping.key_id,
                "account": wrapping.account,
                "resource": wrapping.resource,
                "purpose": wrapping.purpose,
                "version": record.version,
                "wrapped": record.wrapped,
                "state": CURRENT,
                "create_us": now_us,
            },
        )
        self._connection.execute(_COUNT_DATA_KEY, {"account": wrapping.account})

    def purposes(self, account: str, resource: str) -> frozenset[str]:
        """The purposes for which a resource has data keys."""
        query = sa.select(DATA_KEYS.c.purpose).where(
            DATA_KEYS.c.account == account, DATA_KEYS.c.resource == resource
        )
        return frozenset(self._connection.execute(query).scalars())

    def is_destroyed(self, account: str, resource: str) -> bool:
        """Whether a resource was destroyed."""
        values = {"account": account, "resource": resource}
        return self._connection.execute(_DESTROYED, values).scalar_one_or_none() is not None

    def destroy_resource(self, account: str, resource: str, now_us: int) -> None:
        """Deletes a resource's data keys and remembers that it is gone."""
        self.forget_rewrapped(account, resource)
        gone = self._connection.execute(
            sa.delete(DATA_KEYS).where(DATA_KEYS.c.account == account, DATA_KEYS.c.resource == resource)
        )
        self.update_account(account, data_keys=ACCOUNTS.c.data_keys - gone.rowcount)
        if not self.is_destroyed(account, resource):
            self._connection.execute(
                sa.insert(DESTROYED_RESOURCES).values(account=account, resource=resource, destroy_us=now_us)
            )

    def destroy_account(self, account: str) -> None:
        """Deletes every key and permit of an account; its row and its audit chain stay."""
        self.end_move(account)
        for table in (DATA_KEYS, ACCOUNT_KEYS, PERMITS, RESEALS, DESTROYED_RESOURCES, KEY_DELETIONS):
            self._connection.execute(sa.delete(table).where(table.c.account == account))
        self.update_account(account, state=KeyState.DESTROYED.value, data_keys=0)

    # Permits.

    def permit(self, account: str, job_id: str) -> PermitRecord | None:
        """The permit of a job."""
        query = sa.select(PERMITS).where(PERMITS.c.account == account, PERMITS.c.job_id == job_id)
        row = self._connection.execute(query).one_or_none()
        if row is None:
            return None
        return PermitRecord(row.account, row.job_id, row.peer, row.expires_us, row.ended)

    def count_permits(self, account: str) -> int:
        """How many permits of an account are remembered."""
        query = sa.select(sa.func.count()).select_from(PERMITS).where(PERMITS.c.account == account)
        return int(self._connection.execute(query).scalar_one())

    def add_permit(self, permit: PermitRecord) -> None:
        """Adds a job's permit."""
        self._connection.execute(
            sa.insert(PERMITS).values(
                account=permit.account,
                job_id=permit.job_id,
                peer=permit.peer,
                expires_us=permit.expires_us,
                ended=permit.ended,
            )
        )

    def end_permits(self, account: str, job_id: str | None = None) -> None:
        """Ends a job's permit, or all of an account."""
        statement = sa.update(PERMITS).where(PERMITS.c.account == account).values(ended=True)
        if job_id is not None:
            statement = statement.where(PERMITS.c.job_id == job_id)
        self._connection.execute(statement)

    def shorten_permit(self, account: str, job_id: str, expires_us: int) -> None:
        """Makes a job's permit expire at a time, if it does not before."""
        of_job = (PERMITS.c.account == account, PERMITS.c.job_id == job_id, PERMITS.c.expires_us > expires_us)
        self._connection.execute(sa.update(PERMITS).where(*of_job).values(expires_us=expires_us))

    def forget_expired_permits(self, now_us: int) -> None:
        """Deletes permits that their own expiry refuses."""
        self._connection.execute(sa.delete(PERMITS).where(PERMITS.c.expires_us < now_us))

    # The audit chain.

    def append(self, account: AccountRecord, act: Act) -> None:
        """Records an act of an account that this transaction has locked; once for each `account`."""
        self.append_each([(account, act)])

    def append_each(self, acts: Sequence[tuple[AccountRecord, Act]]) -> None:
        """The same of several accounts."""
        records = [
            audit.link(account.id, account.audit_sequence + 1, account.audit_hash, act)
            for account, act in acts
        ]
        self._connection.execute(_ADD_EVENT, [_event(record) for record in records])
        ends = [
            {"key": record.account, "sequence": record.sequence, "hash": record.hash} for record in records
        ]
        self._connection.execute(_MOVE_CHAIN_END, ends)

    def events(self, account: str, after: int, limit: int) -> list[AuditRecord]:
        """The audit records of an account after a position, in order."""
        # One more than asked for in front: the hash before the first.
        query = (
            sa.select(AUDIT_EVENTS)
            .where(AUDIT_EVENTS.c.account == account, AUDIT_EVENTS.c.sequence >= after)
            .order_by(AUDIT_EVENTS.c.sequence)
            .limit(limit + 1)
        )
        records: list[AuditRecord] = []
        previous = audit.FIRST_HASH
        for row in self._connection.execute(query):
            if row.sequence > after and len(records) < limit:
                act = Act(
                    row.time_us,
                    row.action,
                    row.peer,
                    row.token_id,
                    row.method,
                    row.resource,
                    row.outcome,
                    row.request_id,
                )
                records.append(AuditRecord(account, row.sequence, act, previous, row.hash))
            previous = row.hash
        return records


def _account(row: Any) -> AccountRecord:
    return AccountRecord(
        row.id,
        KeyState(row.state),
        row.suspended,
        row.version,
        row.provider or "",
        row.data_keys,
        row.create_us,
        row.rotate_us,
        row.audit_sequence,
        row.audit_hash,
    )


def _event(record: AuditRecord) -> dict[str, Any]:
    act = record.act
    return {
        "account": record.account,
        "sequence": record.sequence,
        "time_us": act.time_us,
        "action": act.action,
        "peer": act.peer,
        "token_id": act.token_id,
        "method": act.method,
        "resource": act.resource,
        "outcome": act.outcome,
        "request_id": act.request_id,
        "hash": record.hash,
    }


def _data_key(row: Any) -> DataKeyRecord:
    wrapping = Wrapping(row.account, row.resource, row.purpose, row.id)
    return DataKeyRecord(wrapping, row.version, row.wrapped, row.releases)
