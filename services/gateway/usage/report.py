"""Says what an account used: its own to its administrators, anybody's to an operator."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common import ids
from services.common.clock import Clock
from services.common.context import current_caller
from services.common.errors import NotFound, invalid
from services.gateway.records import ACTIVE, AccountRow
from services.gateway.usage.amounts import Amounts, date_of, day_of, first_of_month
from services.gateway.usage.meter import Meters
from services.gateway.usage.store import UsageStore

_DAYS = 30
_DAYS_MAX = 400
_ACCOUNTS_MAX = 1000


class Accounts(Protocol):
    """Where accounts are."""

    def account(self, account_id: str) -> AccountRow | None:
        """One account in any state. Blocking."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Use by the day, newest first, and of the month so far; dates as YYYY-MM-DD."""

    days: list[tuple[str, Amounts]]
    month: tuple[str, Amounts]


class UsageReports:
    """Reads the usage of accounts."""

    def __init__(self, accounts: Accounts, usage: UsageStore, meters: Meters, clock: Clock) -> None:
        self._accounts = accounts
        self._usage = usage
        self._meters = meters
        self._clock = clock

    async def of(self, account_id: str, days: int) -> Usage:
        """The usage of an account, or of the caller's for an empty id. Raises NotFound."""
        if days > _DAYS_MAX:
            raise invalid("days", f"must be at most {_DAYS_MAX}")
        account = await self._account(account_id)
        # So that what this process counted is in the answer.
        await self._meters.write()
        today = day_of(self._clock.now_s())
        found = await asyncio.to_thread(self._usage.days, account, today - (days or _DAYS) + 1)
        used = await asyncio.to_thread(self._usage.used, account, today)
        month = (date_of(first_of_month(today)), used.month)
        return Usage([(date_of(day), amounts) for day, amounts in found], month)

    async def take(self, reporter: str, sequence: int, amounts: Sequence[tuple[str, Amounts]]) -> None:
        """Counts what a service's process reports, once however often it comes."""
        if not ids.is_id(reporter) or len(amounts) > _ACCOUNTS_MAX:
            raise invalid("reporter", "must be an id, with at most a thousand accounts")
        today = day_of(self._clock.now_s())
        deltas = [(account, today, amount) for account, amount in amounts if ids.is_id(account)]
        await asyncio.to_thread(self._usage.add_report, reporter, sequence, today, deltas)

    async def _account(self, account_id: str) -> str:
        own = current_caller().context.account
        if own:
            # Whoever it is, another's account is as if it did not exist.
            if account_id not in ("", own):
                raise _no_such_account()
            return own
        if not account_id:
            raise invalid("id", "must name an account")
        row = await asyncio.to_thread(self._accounts.account, account_id) if ids.is_id(account_id) else None
        if row is None or row.state != ACTIVE:
            raise _no_such_account()
        return account_id


def _no_such_account() -> NotFound:
    return NotFound("no such account", reason="ACCOUNT_NOT_FOUND")
