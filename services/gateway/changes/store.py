"""The numbered changes in the gateway's database, and PostgreSQL's push that there are new ones.

Whoever changes an account or a token writes a numbered row in the same transaction, so that a
change and its number are seen together or not at all. What is pushed says only "look": the rows
are the truth, and who reads them every half second needs no push.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import sqlalchemy as sa

from services.gateway.schema import change_counter, changes

ACCOUNT, TOKEN = "account", "token"
_CHANNEL = "sealcomb_changes"
_KEPT = 10_000
_READ_MAX = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """What changed: an account (with all its tokens) or one token."""

    kind: str
    subject: str


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes up to a position. `lost`: some are no longer there, so anything may have changed."""

    position: int
    changes: tuple[Change, ...]
    lost: bool


def note_change(connection: sa.Connection, kind: str, subject: str) -> None:
    """Numbers a change within the transaction that makes it; call it last, as it locks the counter."""
    bump = change_counter.update().values(sequence=change_counter.c.sequence + 1)
    sequence = connection.execute(bump.returning(change_counter.c.sequence)).scalar_one()
    connection.execute(changes.insert().values(sequence=sequence, kind=kind, subject=subject))
    connection.execute(changes.delete().where(changes.c.sequence <= sequence - _KEPT))
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(_CHANNEL, "")))


class ChangeLog:
    """Reads the changes of one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reads = engine.execution_options(read_only=True)

    @property
    def pushes(self) -> bool:
        """Whether `wakeups` ever gives anything."""
        return self._engine.dialect.name == "postgresql"

    def position(self) -> int:
        """The number of the last change."""
        with self._reads.connect() as connection:
            return int(connection.execute(sa.select(change_counter.c.sequence)).scalar_one())

    def since(self, position: int) -> Changes:
        """The changes after a position, in order; more than a thousand are lost."""
        query = (
            sa.select(changes.c.sequence, changes.c.kind, changes.c.subject)
            .where(changes.c.sequence > position)
            .order_by(changes.c.sequence.desc())
            .limit(_READ_MAX)
        )
        with self._reads.connect() as connection:
            last = int(connection.execute(sa.select(change_counter.c.sequence)).scalar_one())
            rows = connection.execute(query).all() if last > position else []
        if not rows:
            # A database that was put back from a copy may be behind what was seen of it.
            return Changes(last, (), lost=last != position)
        found = tuple(Change(kind, subject) for _, kind, subject in reversed(rows))
        return Changes(rows[0][0], found, lost=rows[-1][0] != position + 1)

    async def wakeups(self) -> AsyncIterator[None]:
        """Gives something at once, and then whenever the database says that there may be changes."""
        import psycopg  # only there where PostgreSQL is used

        _, options = self._engine.dialect.create_connect_args(self._engine.url)
        connection = await psycopg.AsyncConnection.connect(
            **{
                **options,
                "autocommit": True,
                "connect_timeout": 3,
                "keepalives_idle": 5,
                "keepalives_interval": 2,
            }
        )
        async with connection:
            await connection.execute(f"LISTEN {_CHANNEL}")
            yield
            async for _notification in connection.notifies():
                yield
