"""The statements about destroyed keys and scheduled deletions: a part of keyvault's transaction."""

from __future__ import annotations

import json

import sqlalchemy as sa

from services.keyvault.records import KeyState
from services.keyvault.schema import (
    ACCOUNT_KEYS,
    ACCOUNTS,
    DATA_KEYS,
    DESTROYED,
    DESTROYED_RESOURCES,
    DESTRUCTIONS,
    INSTALLATION,
    KEY_DELETIONS,
    KEY_MOVES,
    REMOVED,
)

_MARK = "mark"


class DestructionStatements:
    """What Transaction inherits. Values only: nothing here decides."""

    _connection: sa.Connection
    # What this transaction destroys: account, resource, when. The ledger gets it after the commit.
    destroyed: list[tuple[str, str, int]]

    def destruction(self, account: str, resource: str) -> str | None:
        """The facts of a destruction; of the account itself where `resource` is empty."""
        query = sa.select(DESTRUCTIONS.c.facts).where(
            DESTRUCTIONS.c.account == account, DESTRUCTIONS.c.resource == resource
        )
        return self._connection.execute(query).scalar_one_or_none()

    def add_destruction(self, account: str, resource: str, facts: str) -> None:
        """Remembers the facts of a destruction, for good."""
        self._connection.execute(
            sa.insert(DESTRUCTIONS).values(account=account, resource=resource, facts=facts)
        )
        self._connection.execute(sa.insert(DESTROYED).values(account=account, resource=resource))
        self.destroyed.append((account, resource, int(json.loads(facts)["destroy_us"])))

    def everything_destroyed(self) -> list[tuple[str, str, int]]:
        """Every destruction: account, resource, when (0: before that was kept)."""
        found = {
            (row.account, row.resource): int(json.loads(row.facts)["destroy_us"])
            for row in self._connection.execute(sa.select(DESTRUCTIONS))
        }
        for row in self._connection.execute(sa.select(DESTROYED_RESOURCES)):
            found.setdefault((row.account, row.resource), row.destroy_us)
        gone = sa.select(ACCOUNTS.c.id).where(ACCOUNTS.c.state == KeyState.DESTROYED.value)
        for account in self._connection.execute(gone).scalars():
            found.setdefault((account, ""), 0)
        return [(account, resource, when) for (account, resource), when in sorted(found.items())]

    def account_ids(self) -> list[str]:
        """The ids of all accounts, destroyed ones included."""
        return list(self._connection.execute(sa.select(ACCOUNTS.c.id).order_by(ACCOUNTS.c.id)).scalars())

    # The mark: how far this database has come.

    def mark(self) -> tuple[int, bytes]:
        """Counter and nonce; 0 where there is none yet."""
        query = sa.select(INSTALLATION.c.value).where(INSTALLATION.c.name == _MARK)
        value = self._connection.execute(query).scalar_one_or_none()
        return (0, b"") if value is None else (int.from_bytes(value[:8], "big"), value[8:])

    def set_mark(self, counter: int, nonce: bytes) -> None:
        """Replaces the mark."""
        self._connection.execute(sa.delete(INSTALLATION).where(INSTALLATION.c.name == _MARK))
        value = counter.to_bytes(8, "big") + nonce
        self._connection.execute(sa.insert(INSTALLATION).values(name=_MARK, value=value))

    def removed_up_to(self, peer: str) -> int:
        """How far a service has removed what was destroyed."""
        query = sa.select(REMOVED.c.place).where(REMOVED.c.peer == peer)
        return self._connection.execute(query).scalar_one_or_none() or 0

    def set_removed_up_to(self, peer: str, place: int) -> None:
        """Remembers that."""
        if not self._connection.execute(
            sa.update(REMOVED).where(REMOVED.c.peer == peer).values(place=place)
        ).rowcount:
            self._connection.execute(sa.insert(REMOVED).values(peer=peer, place=place))

    def last_destroyed(self) -> int:
        """The place of what was destroyed last."""
        return self._connection.execute(sa.select(sa.func.max(DESTROYED.c.place))).scalar_one() or 0

    def destroyed_after(self, place: int, limit: int) -> list[tuple[int, str, str]]:
        """What was destroyed after a place: its place, account and resource, in order."""
        query = sa.select(DESTROYED).where(DESTROYED.c.place > place).order_by(DESTROYED.c.place).limit(limit)
        return [(row.place, row.account, row.resource) for row in self._connection.execute(query)]

    def data_key_ids(self, account: str, resource: str) -> list[str]:
        """The ids of a resource's data keys, in order; of all the account's where it is empty."""
        query = sa.select(DATA_KEYS.c.id).where(DATA_KEYS.c.account == account)
        if resource:
            query = query.where(DATA_KEYS.c.resource == resource)
        return sorted(self._connection.execute(query).scalars())

    def account_key_handles(self, account: str) -> list[tuple[int, str, bytes]]:
        """The versions of an account's key, each with its provider and handle; one to come included."""
        found: list[tuple[int, str, bytes]] = []
        for table in (ACCOUNT_KEYS, KEY_MOVES):
            query = sa.select(table.c.version, table.c.provider, table.c.handle).where(
                table.c.account == account
            )
            found += [(row.version, row.provider, row.handle) for row in self._connection.execute(query)]
        return sorted(found)

    def deletion_due_us(self, account: str) -> int | None:
        """When the account's key is to be destroyed, if that is scheduled."""
        query = sa.select(KEY_DELETIONS.c.due_us).where(KEY_DELETIONS.c.account == account)
        return self._connection.execute(query).scalar_one_or_none()

    def schedule_deletion(self, account: str, now_us: int, due_us: int) -> None:
        """Schedules a deletion where there is none."""
        self._connection.execute(
            sa.insert(KEY_DELETIONS).values(account=account, schedule_us=now_us, due_us=due_us)
        )

    def unschedule_deletion(self, account: str) -> None:
        """Forgets a scheduled deletion."""
        self._connection.execute(sa.delete(KEY_DELETIONS).where(KEY_DELETIONS.c.account == account))

    def accounts_due(self, now_us: int, limit: int) -> list[str]:
        """Accounts whose deletion is due, the longest due first."""
        query = (
            sa.select(KEY_DELETIONS.c.account)
            .where(KEY_DELETIONS.c.due_us <= now_us)
            .order_by(KEY_DELETIONS.c.due_us)
            .limit(limit)
        )
        return list(self._connection.execute(query).scalars())
