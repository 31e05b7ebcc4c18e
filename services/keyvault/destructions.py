"""The statements about destroyed keys and scheduled deletions: a part of keyvault's transaction."""

from __future__ import annotations

import sqlalchemy as sa

from services.keyvault.schema import ACCOUNT_KEYS, DATA_KEYS, DESTRUCTIONS, KEY_DELETIONS, KEY_MOVES


class DestructionStatements:
    """What Transaction inherits. Values only: nothing here decides."""

    _connection: sa.Connection

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
