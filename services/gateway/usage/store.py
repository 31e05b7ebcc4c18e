"""Usage per account and day in SQL; every writer adds, so several processes may."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from services.gateway.schema import accounts, usage, usage_reports
from services.gateway.usage.amounts import Amounts, Used, first_of_month

_COUNTS = (usage.c.calls, usage.c.refusals, usage.c.points, usage.c.documents, usage.c.bytes)
_KEPT_DAYS = 400
# A process that reported nothing for this long has ended.
_REPORTS_KEPT_DAYS = 7

Deltas = Sequence[tuple[str, int, Amounts]]


class UsageStore:
    """Counts of accounts by day. Blocking."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reads = engine.execution_options(read_only=True)
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    def add(self, deltas: Deltas) -> None:
        """Adds counts of accounts and days."""
        with self._engine.begin() as connection:
            self._add(connection, deltas)

    def add_report(self, reporter: str, sequence: int, day: int, deltas: Deltas) -> bool:
        """Adds a process's numbered report once, however often it comes; whether it was new."""
        with self._engine.begin() as connection:
            row = self._insert(usage_reports).values(reporter=reporter, sequence=sequence, day=day)
            newer = row.on_conflict_do_update(
                index_elements=["reporter"],
                set_={"sequence": sequence, "day": day},
                where=usage_reports.c.sequence < sequence,
            )
            if connection.execute(newer.returning(usage_reports.c.sequence)).first() is None:
                return False
            self._add(connection, deltas)
            return True

    def used(self, account: str, day: int) -> Used:
        """What an account used on a day and in its month so far."""
        today = [sa.func.sum(sa.case((usage.c.day == day, count), else_=0)) for count in _COUNTS]
        month = [sa.func.sum(count) for count in _COUNTS]
        query = sa.select(*today, *month).where(
            usage.c.account == account, usage.c.day >= first_of_month(day), usage.c.day <= day
        )
        with self._reads.connect() as connection:
            sums = [int(value or 0) for value in connection.execute(query).one()]
        return Used(Amounts(*sums[:5]), Amounts(*sums[5:]))

    def days(self, account: str, since_day: int) -> list[tuple[int, Amounts]]:
        """What an account used on each day since one, newest first; days without use are not there."""
        query = (
            sa.select(usage.c.day, *_COUNTS)
            .where(usage.c.account == account, usage.c.day >= since_day)
            .order_by(usage.c.day.desc())
        )
        with self._reads.connect() as connection:
            return [(row[0], Amounts(*row[1:])) for row in connection.execute(query)]

    def forget(self, today: int) -> None:
        """Deletes what is older than 400 days, and what belongs to no account any more."""
        known = sa.select(accounts.c.id)
        with self._engine.begin() as connection:
            connection.execute(
                usage.delete().where(sa.or_(usage.c.day < today - _KEPT_DAYS, usage.c.account.not_in(known)))
            )
            connection.execute(usage_reports.delete().where(usage_reports.c.day < today - _REPORTS_KEPT_DAYS))

    def _add(self, connection: sa.Connection, deltas: Iterable[tuple[str, int, Amounts]]) -> None:
        # In one order, so that two processes cannot wait for each other.
        for account, day, amounts in sorted(deltas, key=lambda delta: delta[:2]):
            values = {count.name: getattr(amounts, count.name) for count in _COUNTS}
            row = self._insert(usage).values(account=account, day=day, **values)
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=["account", "day"],
                    set_={count.name: count + row.excluded[count.name] for count in _COUNTS},
                )
            )
