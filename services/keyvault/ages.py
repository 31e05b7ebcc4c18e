"""The statements about data keys that others took the place of: a part of keyvault's transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from services.keyvault.records import AgedKey, ResealRecord, Wrapping
from services.keyvault.schema import ACCOUNTS, AGED, CURRENT, DATA_KEYS, RESEALS, REWRAPPED

_COUNT_RELEASE = (
    sa.update(DATA_KEYS)
    .where(DATA_KEYS.c.id == sa.bindparam("key_id"))
    .values(releases=DATA_KEYS.c.releases + 1)
)


class AgeStatements:
    """What Transaction inherits. Values only: nothing here decides."""

    _connection: sa.Connection

    def count_release(self, key_id: str) -> None:
        """Counts a release of a current data key."""
        self._connection.execute(_COUNT_RELEASE, {"key_id": key_id})

    def age_data_keys(self, account: str, purposes: Collection[str], now_us: int) -> int:
        """Makes the account's current data keys of some purposes aged ones; how many there were."""
        statement = sa.update(DATA_KEYS).where(
            DATA_KEYS.c.account == account, DATA_KEYS.c.purpose.in_(purposes), DATA_KEYS.c.state == CURRENT
        )
        return self._connection.execute(statement.values(state=AGED, aged_us=now_us)).rowcount

    def age_data_key(self, key_id: str, now_us: int) -> None:
        """Makes one current data key an aged one."""
        statement = sa.update(DATA_KEYS).where(DATA_KEYS.c.id == key_id, DATA_KEYS.c.state == CURRENT)
        self._connection.execute(statement.values(state=AGED, aged_us=now_us))

    def count_aged(self, account: str, purposes: Collection[str] = ()) -> int:
        """How many aged data keys an account has; of some purposes where they are named."""
        query = sa.select(sa.func.count()).where(DATA_KEYS.c.account == account, DATA_KEYS.c.state == AGED)
        if purposes:
            query = query.where(DATA_KEYS.c.purpose.in_(purposes))
        return int(self._connection.execute(query).scalar_one())

    def aged_data_keys(self, wrapping: Wrapping) -> list[AgedKey]:
        """The aged data keys of a resource and purpose, the oldest first."""
        query = (
            sa.select(DATA_KEYS.c.id, DATA_KEYS.c.aged_us)
            .where(
                DATA_KEYS.c.account == wrapping.account,
                DATA_KEYS.c.resource == wrapping.resource,
                DATA_KEYS.c.purpose == wrapping.purpose,
                DATA_KEYS.c.state == AGED,
            )
            .order_by(DATA_KEYS.c.aged_us, DATA_KEYS.c.id)
        )
        return [AgedKey(row.id, row.aged_us) for row in self._connection.execute(query)]

    def aged_resources(self, account: str, purposes: Collection[str], after: str, limit: int) -> list[str]:
        """Resources with aged data keys of some purposes, in order, those after one."""
        query = (
            sa.select(DATA_KEYS.c.resource)
            .where(
                DATA_KEYS.c.account == account,
                DATA_KEYS.c.state == AGED,
                DATA_KEYS.c.purpose.in_(purposes),
                DATA_KEYS.c.resource > after,
            )
            .distinct()
            .order_by(DATA_KEYS.c.resource)
            .limit(limit)
        )
        return list(self._connection.execute(query).scalars())

    # Leave to seal anew.

    def reseal(self, account: str, peer: str) -> ResealRecord | None:
        """The leave of a service for an account."""
        query = sa.select(RESEALS).where(RESEALS.c.account == account, RESEALS.c.peer == peer)
        row = self._connection.execute(query).one_or_none()
        return None if row is None else _reseal(row)

    def reseals_due(self, peer: str, now_us: int, limit: int) -> list[ResealRecord]:
        """What is due for a service, the longest due first."""
        query = (
            sa.select(RESEALS)
            .where(RESEALS.c.peer == peer, RESEALS.c.next_us <= now_us)
            .order_by(RESEALS.c.next_us)
            .limit(limit)
        )
        return [_reseal(row) for row in self._connection.execute(query)]

    def add_reseal(self, reseal: ResealRecord) -> None:
        """Adds leave where there is none."""
        self._connection.execute(sa.insert(RESEALS).values(**asdict(reseal)))

    def put_off_reseal(self, account: str, peer: str, next_us: int, after: str) -> None:
        """Sets when leave is handed out next, and after which resource it goes on."""
        statement = sa.update(RESEALS).where(RESEALS.c.account == account, RESEALS.c.peer == peer)
        self._connection.execute(statement.values(next_us=next_us, after=after))

    def delete_reseal(self, account: str, peer: str) -> None:
        """Ends leave."""
        self._connection.execute(
            sa.delete(RESEALS).where(RESEALS.c.account == account, RESEALS.c.peer == peer)
        )

    def destroy_data_keys(self, account: str, key_ids: Sequence[str]) -> None:
        """Deletes data keys of an account, for good."""
        self._connection.execute(sa.delete(REWRAPPED).where(REWRAPPED.c.id.in_(key_ids)))
        gone = self._connection.execute(
            sa.delete(DATA_KEYS).where(DATA_KEYS.c.account == account, DATA_KEYS.c.id.in_(key_ids))
        )
        self._connection.execute(
            sa.update(ACCOUNTS)
            .where(ACCOUNTS.c.id == account)
            .values(data_keys=ACCOUNTS.c.data_keys - gone.rowcount)
        )


def _reseal(row: Any) -> ResealRecord:
    return ResealRecord(
        row.account, row.peer, row.job_id, row.token_id, row.request_id, row.after, row.next_us
    )
