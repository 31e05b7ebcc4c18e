"""Replicas and what they hold, in SQL: the one place where two of them are told apart.

A replica is believed until a moment by the database's own clock, which it moves on while it lives. A
collection's row names its holder; whoever takes it over raises its epoch in the same transaction, and every
append checks the epoch, so a holder that was replaced cannot write whatever it believes. A replica whose time
is over is removed by whoever finds it, so that it cannot move its time on after others have acted on its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from services.vectorstore.schema import collections, now_us, replicas
from services.vectorstore.store import LeasesLost, storage_errors


@dataclass(frozen=True, slots=True)
class Held:
    """The asking replica holds the collection, in an epoch; whether it did not before."""

    epoch: int
    gained: bool


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another replica holds it, or is to take it."""

    replica: str
    address: str


class HolderStore:
    """The rows. Its methods block."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._now_us = now_us(engine.dialect.name)

    def register(self, replica: str, address: str, life_us: int) -> None:
        """Adds a replica; an earlier one of the address is gone, since this one listens there."""
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(replicas.delete().where(replicas.c.address == address))
            connection.execute(
                replicas.insert().values(
                    id=replica, address=address, until_us=self._now_us + life_us, leaving=False
                )
            )

    def renew(self, replica: str, life_us: int) -> bool:
        """Moves a replica's time on; False where it is over."""
        mine = sa.and_(replicas.c.id == replica, replicas.c.until_us > self._now_us)
        with storage_errors(), self._engine.begin() as connection:
            renewed = connection.execute(
                replicas.update().where(mine).values(until_us=self._now_us + life_us)
            )
            return bool(renewed.rowcount)

    def leave(self, replica: str) -> None:
        """A replica that leaves takes nothing more while there are others."""
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(replicas.update().where(replicas.c.id == replica).values(leaving=True))

    def remove(self, replica: str) -> None:
        """Ends a replica; what it held is free."""
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(replicas.delete().where(replicas.c.id == replica))

    def others(self, replica: str) -> list[Elsewhere]:
        """The replicas that live and stay, without one."""
        with storage_errors(), self._engine.connect() as connection:
            return self._others(connection, replica)

    def claim(self, account: str, collection: str, replica: str) -> Held | Elsewhere | None:
        """Makes a replica the holder unless another one lives; None: there is no such collection.

        Raises LeasesLost for a replica whose time is over.
        """
        mine = sa.and_(collections.c.account == account, collections.c.id == collection)
        row = sa.select(collections.c.holder, collections.c.epoch).where(mine)
        with storage_errors(), self._engine.begin() as connection:
            # Looked at without a lock first: most that is asked for is held by somebody who lives.
            found = connection.execute(row).one_or_none()
            if found is not None and found.holder not in (None, replica):
                holder = self._living(connection, found.holder)
                if holder is not None:
                    return holder
            found = connection.execute(row.with_for_update()).one_or_none()
            if found is None:
                return None
            if found.holder == replica:
                return Held(int(found.epoch), gained=False)
            if found.holder is not None:
                holder = self._living(connection, found.holder, lock=True)
                if holder is not None:
                    return holder
                # Whoever is judged dead stays dead.
                connection.execute(replicas.delete().where(replicas.c.id == found.holder))
            return self._take(connection, collection, replica, int(found.epoch) + 1)

    def is_held_by(self, collection: str, replica: str) -> bool:
        """Whether a replica holds a collection, and lives."""
        holder = sa.select(collections.c.holder).where(collections.c.id == collection)
        with storage_errors(), self._engine.connect() as connection:
            held = connection.execute(holder).scalar_one_or_none() == replica
            return held and self._living(connection, replica) is not None

    def release(self, held: Sequence[str], replica: str) -> None:
        """Gives collections back; those that another took meanwhile stay its."""
        mine = sa.and_(collections.c.id.in_(held), collections.c.holder == replica)
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(collections.update().where(mine).values(holder=None))

    def is_over(self, replica: str) -> bool:
        """Whether a replica's time is over, for good: what it was to make it never makes."""
        with storage_errors(), self._engine.begin() as connection:
            if self._living(connection, replica, lock=True) is not None:
                return False
            # Whoever is judged dead stays dead.
            connection.execute(replicas.delete().where(replicas.c.id == replica))
            return True

    def counts(self) -> list[tuple[str, int]]:
        """The address of each replica that lives, and how many collections it holds."""
        living = replicas.c.until_us > self._now_us
        query = (
            sa.select(replicas.c.address, sa.func.count(collections.c.id))
            .select_from(replicas.outerjoin(collections, collections.c.holder == replicas.c.id))
            .where(living)
            .group_by(replicas.c.address)
            .order_by(replicas.c.address)
        )
        with storage_errors(), self._engine.connect() as connection:
            return [(str(address), int(count)) for address, count in connection.execute(query)]

    def _take(self, connection: sa.Connection, collection: str, replica: str, epoch: int) -> Held | Elsewhere:
        me = sa.select(replicas.c.until_us > self._now_us, replicas.c.leaving)
        own = connection.execute(me.where(replicas.c.id == replica).with_for_update()).one_or_none()
        if own is None or not own[0]:
            raise LeasesLost
        if own[1] and (others := self._others(connection, replica)):
            # One and the same for all of a collection, so that no two are asked at once.
            return others[int.from_bytes(collection.encode(), "big") % len(others)]
        connection.execute(
            collections.update().where(collections.c.id == collection).values(holder=replica, epoch=epoch)
        )
        return Held(epoch, gained=True)

    def _living(self, connection: sa.Connection, replica: str, *, lock: bool = False) -> Elsewhere | None:
        # Judged here and not in the condition: a lock may wait for a renewal, which then must be seen.
        query = sa.select(replicas.c.address, replicas.c.until_us > self._now_us)
        query = query.where(replicas.c.id == replica)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        return Elsewhere(replica, row[0]) if row is not None and row[1] else None

    def _others(self, connection: sa.Connection, replica: str) -> list[Elsewhere]:
        staying = sa.and_(
            replicas.c.id != replica, replicas.c.until_us > self._now_us, sa.not_(replicas.c.leaving)
        )
        query = sa.select(replicas.c.id, replicas.c.address).where(staying).order_by(replicas.c.id)
        return [Elsewhere(*row) for row in connection.execute(query)]
