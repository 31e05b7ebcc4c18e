"""The rows of ingestions: a table of leases with fences.

Who works on an ingestion holds its lease under the newest fence, and every write of the work carries that
fence: a worker that lost its lease (it was slow, another process took over, the ingestion was
cancelled) changes nothing any more and learns it by LeaseLost. All look-ups for callers name the account.
Methods block; call them off the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from services.common.errors import Aborted, AlreadyExists, ResourceExhausted
from services.ingest.ingestions.records import ENDED, LIVE, Counts, ItemState, Row, State
from services.ingest.schema import INGESTIONS, ITEMS, UNSETTLED
from services.ingest.store import Database

LIVE_MAX = 1000
# However well a source tells its changes, so often it is listed from the beginning.
FULL_EVERY_MS = 7 * 86_400_000
_C = INGESTIONS.c
_COUNTS = tuple(found.name for found in fields(Counts))
_PLAIN = tuple(name for name in Row.__slots__ if name != "counts")
# The version of what could not be listed.
UNREAD = bytes(32)
_WORK = (State.RUNNING.value, State.REMOVING.value)


class LeaseLost(Aborted):
    """Somebody else works on the ingestion now, or nobody may any more."""

    reason = "LEASE_LOST"

    def __init__(self) -> None:
        super().__init__("the ingestion was taken over or ended")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on an ingestion, while its fence is the newest."""

    ingestion_id: str
    fence: int


class IngestionStore:
    """Ingestions in ingest's database; see items.py for what belongs to one."""

    def __init__(self, database: Database, full_every_ms: int = FULL_EVERY_MS) -> None:
        self.database = database
        self._full_every_ms = full_every_ms

    # For callers.

    def add(self, row: Row) -> None:
        """Adds an ingestion. Raises AlreadyExists for its idempotency tag, ResourceExhausted."""
        with self.database.begin() as connection:
            live = sa.select(sa.func.count()).where(
                _C.account == row.account,
                sa.or_(_C.state.in_(_values(LIVE)), _C.next_run_ms.is_not(None)),
            )
            if connection.execute(live).scalar_one() >= LIVE_MAX:
                raise ResourceExhausted(
                    f"the account has {LIVE_MAX} ingestions in progress; cancel some or wait",
                    reason="INGESTIONS_MAX",
                )
            values = {name: getattr(row, name) for name in _PLAIN} | asdict(row.counts)
            try:
                connection.execute(sa.insert(INGESTIONS).values(values | {"state": row.state.value}))
            except IntegrityError:
                raise AlreadyExists("there is an ingestion of this idempotency key") from None

    def get(self, account: str, id_: str) -> Row | None:
        """The account's ingestion with an id."""
        return self._one(_C.account == account, _C.id == id_)

    def by_idempotency(self, account: str, collection_id: str, tags: Sequence[bytes]) -> Row | None:
        """The ingestion that was made under an idempotency key."""
        return self._one(
            _C.account == account, _C.collection_id == collection_id, _C.idempotency_tag.in_(tags)
        )

    def tag_key_ids(self, account: str, collection_id: str) -> list[str]:
        """The keys that a collection's ingestions are tagged under."""
        query = sa.select(_C.tag_key_id).where(_C.account == account, _C.collection_id == collection_id)
        with self.database.reading() as connection:
            return list(connection.execute(query.distinct()).scalars())

    def page(self, account: str, after: tuple[int, str], size: int) -> list[Row]:
        """The account's ingestions in order of creation, those after a position."""
        query = (
            sa.select(INGESTIONS)
            .where(_C.account == account, sa.tuple_(_C.create_ms, _C.id) > after)
            .order_by(_C.create_ms, _C.id)
            .limit(size)
        )
        with self.database.reading() as connection:
            return [_row(row) for row in connection.execute(query).mappings()]

    def of_connection(self, account: str, connection_id: str) -> list[Row]:
        """The ingestions of a connection."""
        query = sa.select(INGESTIONS).where(_C.account == account, _C.connection_id == connection_id)
        with self.database.reading() as connection:
            return [_row(row) for row in connection.execute(query).mappings()]

    def change(self, row: Row, states: frozenset[State], values: Mapping[str, Any]) -> bool:
        """Changes an ingestion from outside its work, whose lease ends; False if its state is another now."""
        with self.database.begin() as connection:
            return _change(connection, row, states, values)

    def cancel(
        self, row: Row, states: frozenset[State], values: Mapping[str, Any], settle_after_ms: int
    ) -> bool:
        """Changes an ingestion that does not go on: what was on its way is left to be removed."""
        with self.database.begin() as connection:
            done = _change(connection, row, states, values)
            if done:
                _settle_objects(connection, row, settle_after_ms)
            return done

    def retry(self, row: Row, states: frozenset[State], values: Mapping[str, Any], now_ms: int) -> bool:
        """Begins another run, in which what failed is tried anew."""
        with self.database.begin() as connection:
            done = _change(connection, row, states, self._next_run(row, now_ms) | dict(values))
            if done:
                _revive_items(connection, row.id)
            return done

    def begin_removal(self, row: Row, values: Mapping[str, Any]) -> bool:
        """Turns an ingestion into the removal of all that it brought."""
        with self.database.begin() as connection:
            done = _change(connection, row, frozenset(State), {"state": State.REMOVING, **values})
            if done:
                connection.execute(
                    sa.update(ITEMS)
                    .where(ITEMS.c.ingestion_id == row.id)
                    .values(state=ItemState.GONE.value, attempts=0)
                )
            return done

    # For workers.

    def claim(self, holder: str, now_ms: int, until_ms: int, busy: Sequence[str] = ()) -> Row | None:
        """Takes the lease of an ingestion that can be worked on; its start is counted before any work.

        Those with a temporary token are for the process that holds it, until that process is gone.
        """
        with self.database.begin() as connection:
            query = (
                sa.select(INGESTIONS)
                .where(_claimable(holder, now_ms), _C.id.not_in(busy))
                .order_by(_C.not_before_ms, _C.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            found = connection.execute(query).mappings().one_or_none()
            if found is None:
                return None
            row = _row(found)
            values = _claimed(row, holder, now_ms, until_ms)
            if row.state in ENDED:
                # The next run of a schedule.
                values |= self._next_run(row, now_ms) | {"attempts": 1, "start_ms": now_ms}
            connection.execute(sa.update(INGESTIONS).where(_C.id == row.id).values(values))
            if row.state in ENDED:
                _revive_items(connection, row.id)
            return _row(
                connection.execute(sa.select(INGESTIONS).where(_C.id == found["id"])).mappings().one()
            )

    def extend(self, leases: Sequence[Lease], until_ms: int) -> list[Lease]:
        """Extends leases; those that are lost."""
        lost = []
        with self.database.begin() as connection:
            for lease in leases:
                done = connection.execute(
                    sa.update(INGESTIONS).where(*held(lease)).values(lease_until_ms=until_ms)
                )
                if done.rowcount != 1:
                    lost.append(lease)
        return lost

    def keep_tokens(self, holder: str, ids: Sequence[str], until_ms: int) -> None:
        """Says that this process still holds the temporary tokens of ingestions that wait."""
        if ids:
            with self.database.begin() as connection:
                connection.execute(
                    sa.update(INGESTIONS)
                    .where(_C.id.in_(ids), _C.holder == holder, _C.state == State.QUEUED.value)
                    .values(lease_until_ms=until_ms)
                )

    def release(self, lease: Lease, values: Mapping[str, Any]) -> bool:
        """Ends the work under a lease; False if it was lost."""
        with self.database.begin() as connection:
            done = connection.execute(sa.update(INGESTIONS).where(*held(lease)).values(dict(values)))
        return done.rowcount == 1

    def remove_collection(self, account: str, collection_id: str) -> list[str]:
        """Ends what belongs to a collection that is destroyed; the ids."""
        return self._end(State.FAILED, "COLLECTION_NOT_FOUND", account, _C.collection_id == collection_id)

    def remove_account(self, account: str) -> None:
        """Forgets everything of an account whose keys are destroyed."""
        mine = sa.select(_C.id).where(_C.account == account)
        with self.database.begin() as connection:
            connection.execute(sa.delete(ITEMS).where(ITEMS.c.ingestion_id.in_(mine)))
            connection.execute(sa.delete(INGESTIONS).where(_C.account == account))

    def _end(self, state: State, reason: str, account: str, *which: sa.ColumnElement[bool]) -> list[str]:
        with self.database.begin() as connection:
            query = sa.select(_C.id).where(_C.account == account, *which)
            ids = list(connection.execute(query).scalars())
            connection.execute(sa.delete(ITEMS).where(ITEMS.c.ingestion_id.in_(ids)))
            connection.execute(
                sa.update(INGESTIONS)
                .where(_C.id.in_(ids), _C.state != State.CANCELLED.value)
                .values(state=state.value, reason=reason, fence=_C.fence + 1, next_run_ms=None, grant_text="")
            )
        return ids

    def _next_run(self, row: Row, now_ms: int) -> dict[str, Any]:
        counts = dict.fromkeys(_COUNTS, 0)
        fresh = {"run": row.run + 1, "listed": False, "next_run_ms": None, "start_ms": 0, "finish_ms": 0}
        if not row.listed or now_ms - row.full_ms >= self._full_every_ms:
            # A listing that broke off named its items in an earlier run: gone on with, they would be
            # missing in this one. And what a source forgot to tell is noticed by a whole listing alone.
            fresh |= {"cursor": None, "full_ms": now_ms}
        return {**counts, **fresh, "attempts": 0, "reason": ""}

    def _one(self, *conditions: sa.ColumnElement[bool]) -> Row | None:
        with self.database.reading() as connection:
            row = connection.execute(sa.select(INGESTIONS).where(*conditions)).mappings().first()
        return None if row is None else _row(row)


def held(lease: Lease) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition of a write under a lease."""
    return (_C.id == lease.ingestion_id, _C.fence == lease.fence, _C.state.in_(_WORK))


def guard(connection: sa.Connection, lease: Lease, *, progress: bool = True, **values: Any) -> None:
    """Begins a write under a lease, whose row it locks. Raises LeaseLost.

    With progress the starts are counted anew: whatever killed earlier ones, this one came further.
    """
    values["attempts"] = 0 if progress else _C.attempts
    done = connection.execute(sa.update(INGESTIONS).where(*held(lease)).values(values))
    if done.rowcount != 1:
        raise LeaseLost


def add_unsettled(connection: sa.Connection, row: Row, object_key: str, settle_after_ms: int) -> None:
    """Remembers an object that no document names any more, until it is removed."""
    known = sa.select(UNSETTLED.c.object_key).where(UNSETTLED.c.object_key == object_key)
    if connection.execute(known).first() is None:
        connection.execute(
            sa.insert(UNSETTLED).values(
                object_key=object_key,
                account=row.account,
                collection_id=row.collection_id,
                # An object's own id, which no document has: so nothing keeps it.
                document_id=object_key.rpartition("/")[2],
                settle_after_ms=settle_after_ms,
            )
        )


def _claimable(holder: str, now_ms: int) -> sa.ColumnElement[bool]:
    due = _C.not_before_ms <= now_ms
    lapsed = _C.lease_until_ms <= now_ms
    mine = sa.or_(_C.connection_id != "", _C.holder == holder, lapsed)
    return sa.or_(
        sa.and_(_C.state == State.QUEUED.value, due, mine),
        sa.and_(_C.state == State.RUNNING.value, lapsed),
        sa.and_(_C.state == State.REMOVING.value, lapsed, due),
        sa.and_(_C.state.in_(_values(ENDED - {State.CANCELLED})), _C.next_run_ms <= now_ms),
    )


def _claimed(row: Row, holder: str, now_ms: int, until_ms: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "start_ms": row.start_ms or now_ms,
        "holder": holder,
        "lease_until_ms": until_ms,
        "fence": row.fence + 1,
        "attempts": row.attempts + 1,
    }
    if row.state is not State.REMOVING:
        values |= {"state": State.RUNNING.value, "reason": ""}
    return values


def _change(connection: sa.Connection, row: Row, states: frozenset[State], values: Mapping[str, Any]) -> bool:
    changed = dict(values)
    if isinstance(changed.get("state"), State):
        changed["state"] = changed["state"].value
    done = connection.execute(
        sa.update(INGESTIONS)
        .where(_C.account == row.account, _C.id == row.id, _C.state.in_(_values(states)))
        .values(changed | {"fence": _C.fence + 1})
    )
    return done.rowcount == 1


def _settle_objects(connection: sa.Connection, row: Row, settle_after_ms: int) -> None:
    mine = (ITEMS.c.ingestion_id == row.id, ITEMS.c.next_key != "")
    for key in connection.execute(sa.select(ITEMS.c.next_key).where(*mine)).scalars().all():
        add_unsettled(connection, row, key, settle_after_ms)
    waiting = sa.update(ITEMS).where(*mine, ITEMS.c.state == ItemState.FETCHED.value)
    connection.execute(waiting.values(state=ItemState.PENDING.value, fetched=None))
    connection.execute(sa.update(ITEMS).where(*mine).values(next_key=""))


def _revive_items(connection: sa.Connection, ingestion_id: str) -> None:
    """What failed in an earlier run is tried anew; what could not be listed is for the listing to find."""
    failed = (ITEMS.c.ingestion_id == ingestion_id, ITEMS.c.state == ItemState.FAILED.value)
    unread = sa.delete(ITEMS).where(*failed, ITEMS.c.version_tag == UNREAD)
    if connection.execute(unread).rowcount:
        connection.execute(sa.update(INGESTIONS).where(_C.id == ingestion_id).values(cursor=None))
    connection.execute(
        sa.update(ITEMS).where(*failed).values(state=ItemState.PENDING.value, reason="", attempts=0)
    )


def _row(row: sa.RowMapping) -> Row:
    plain = {name: row[name] for name in _PLAIN}
    counts = Counts(**{name: row[name] for name in _COUNTS})
    return Row(**(plain | {"state": State(row["state"]), "counts": counts}))


def _values(states: frozenset[State]) -> list[str]:
    return sorted(state.value for state in states)
