"""The rows of connections and of those that were begun: sealed bytes, ids, times and states.

Every look-up names the account. A state is found by its hash, so the table gives none away. Methods
block; call them off the event loop.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import sqlalchemy as sa

from services.common.errors import ResourceExhausted
from services.ingest.connections.records import ConnectionState
from services.ingest.schema import CONNECTIONS, FLOWS
from services.ingest.store import Database

CONNECTIONS_MAX = 500
_FLOWS_MAX = 20


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A connection as it is kept."""

    id: str
    account: str
    create_ms: int
    state: ConnectionState
    description: bytes = field(repr=False)
    credential: bytes = field(repr=False)
    version: int = 1


@dataclass(frozen=True, slots=True)
class FlowRow:
    """A begun connection as it is kept."""

    state_hash: bytes
    account: str
    connection_id: str
    expire_ms: int
    sealed: bytes = field(repr=False)


def hash_of(state: str) -> bytes:
    """What a state is found by."""
    return hashlib.sha256(state.encode()).digest()


class ConnectionStore:
    """Connections and flows in ingest's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Flows.

    def add_flow(self, row: FlowRow, now_ms: int) -> None:
        """Adds a flow. Raises ResourceExhausted when too many of the account wait."""
        with self._database.begin() as connection:
            waiting = sa.select(sa.func.count()).where(
                FLOWS.c.account == row.account, FLOWS.c.expire_ms > now_ms
            )
            if connection.execute(waiting).scalar_one() >= _FLOWS_MAX:
                raise ResourceExhausted(
                    "too many connections were begun and not completed; wait for some to expire",
                    reason="CONNECTIONS_PENDING",
                    retry_after_s=60.0,
                )
            connection.execute(sa.insert(FLOWS).values(_values(row)))

    def find_flow(self, account: str, state_hash: bytes, now_ms: int) -> FlowRow | None:
        """The account's flow with a state that has not expired."""
        query = sa.select(FLOWS).where(*_this_flow(account, state_hash), FLOWS.c.expire_ms > now_ms)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else FlowRow(**row)

    def take_flow(self, account: str, state_hash: bytes) -> bool:
        """Uses a flow up; False if somebody else was faster."""
        with self._database.begin() as connection:
            gone = connection.execute(sa.delete(FLOWS).where(*_this_flow(account, state_hash)))
        return gone.rowcount == 1

    def expired_flows(self, account: str, now_ms: int) -> list[FlowRow]:
        """The account's flows that nobody can complete any more."""
        query = sa.select(FLOWS).where(FLOWS.c.account == account, FLOWS.c.expire_ms <= now_ms)
        with self._database.reading() as connection:
            return [FlowRow(**row) for row in connection.execute(query.limit(100)).mappings()]

    # Connections.

    def add(self, row: ConnectionRow) -> None:
        """Adds a connection. Raises ResourceExhausted when the account has too many."""
        with self._database.begin() as connection:
            count = sa.select(sa.func.count()).where(CONNECTIONS.c.account == row.account)
            if connection.execute(count).scalar_one() >= CONNECTIONS_MAX:
                raise ResourceExhausted(
                    f"the account has {CONNECTIONS_MAX} connections; disconnect some",
                    reason="CONNECTIONS_MAX",
                )
            values = _values(row) | {"state": row.state.value, "refresh_fence": 0, "refresh_until_ms": 0}
            connection.execute(sa.insert(CONNECTIONS).values(values))

    def get(self, account: str, id_: str) -> ConnectionRow | None:
        """The account's connection with an id."""
        with self._database.reading() as connection:
            found = connection.execute(sa.select(*_COLUMNS).where(*_this(account, id_))).mappings()
            row = found.one_or_none()
        return None if row is None else _row(row)

    def page(self, account: str, after: tuple[int, str], size: int) -> list[ConnectionRow]:
        """The account's connections in order of creation, those after a position."""
        place = sa.tuple_(CONNECTIONS.c.create_ms, CONNECTIONS.c.id)
        query = (
            sa.select(*_COLUMNS)
            .where(CONNECTIONS.c.account == account, place > after)
            .order_by(CONNECTIONS.c.create_ms, CONNECTIONS.c.id)
            .limit(size)
        )
        with self._database.reading() as connection:
            return [_row(row) for row in connection.execute(query).mappings()]

    def begin_disconnecting(self, account: str, id_: str) -> None:
        """From here on nothing uses the connection."""
        with self._database.begin() as connection:
            connection.execute(
                sa.update(CONNECTIONS)
                .where(*_this(account, id_))
                .values(state=ConnectionState.DISCONNECTING.value)
            )

    def remove(self, account: str, id_: str) -> None:
        """Forgets a connection."""
        with self._database.begin() as connection:
            connection.execute(sa.delete(CONNECTIONS).where(*_this(account, id_)))

    def remove_account(self, account: str) -> None:
        """Forgets everything of an account whose keys are destroyed."""
        with self._database.begin() as connection:
            for table in (CONNECTIONS, FLOWS):
                connection.execute(sa.delete(table).where(table.c.account == account))

    # Refreshing.

    def lease_refresh(self, row: ConnectionRow, now_ms: int, until_ms: int) -> int | None:
        """The fence of the one who may refresh this version; None while somebody else does or did."""
        free = (CONNECTIONS.c.version == row.version, CONNECTIONS.c.refresh_until_ms <= now_ms)
        fence = CONNECTIONS.c.refresh_fence
        with self._database.begin() as connection:
            taken = connection.execute(
                sa.update(CONNECTIONS)
                .where(*_connected(row.account, row.id), *free)
                .values(refresh_fence=fence + 1, refresh_until_ms=until_ms)
            )
            if taken.rowcount != 1:
                return None
            return int(connection.execute(sa.select(fence).where(CONNECTIONS.c.id == row.id)).scalar_one())

    def store_credential(self, row: ConnectionRow, fence: int, sealed: bytes) -> bool:
        """Replaces the credential; False for a fence that is no longer the newest."""
        values = {"credential": sealed, "version": row.version + 1, "refresh_until_ms": 0}
        return self._end_refresh(row, fence, values)

    def release_refresh(self, row: ConnectionRow, fence: int) -> bool:
        """Gives the lease back: nothing was changed at the provider."""
        return self._end_refresh(row, fence, {"refresh_until_ms": 0})

    def mark_refused(self, row: ConnectionRow, fence: int) -> bool:
        """The provider refused the grant: nobody needs to try again."""
        return self._end_refresh(row, fence, {"refresh_until_ms": 0, "state": ConnectionState.REFUSED.value})

    def _end_refresh(self, row: ConnectionRow, fence: int, values: dict[str, object]) -> bool:
        mine = (CONNECTIONS.c.refresh_fence == fence, CONNECTIONS.c.version == row.version)
        with self._database.begin() as connection:
            done = connection.execute(
                sa.update(CONNECTIONS).where(*_connected(row.account, row.id), *mine).values(values)
            )
        return done.rowcount == 1


_COLUMNS = [CONNECTIONS.c[name] for name in ConnectionRow.__slots__]


def _values(row: ConnectionRow | FlowRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__slots__}


def _row(row: sa.RowMapping) -> ConnectionRow:
    return ConnectionRow(**({**row} | {"state": ConnectionState(row["state"])}))


def _this(account: str, id_: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (CONNECTIONS.c.account == account, CONNECTIONS.c.id == id_)


def _connected(account: str, id_: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (*_this(account, id_), CONNECTIONS.c.state == ConnectionState.CONNECTED.value)


def _this_flow(account: str, state_hash: bytes) -> tuple[sa.ColumnElement[bool], ...]:
    return (FLOWS.c.account == account, FLOWS.c.state_hash == state_hash)
