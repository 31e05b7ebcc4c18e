"""Database and ledger brought together at a start, so that what was destroyed stays destroyed.

The database commits a destruction, then the ledger gets it, then the caller is answered. So what
the ledger has and the database has not comes from an older copy of the database, and is destroyed again
before anything is released. What the database has and the ledger has not (a crash in between, a ledger
that was restored) is added. A database that is older than the mark is refused, unless that is
what the operator wants: it has lost keys and audit records since then, and nobody else would say so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from services.common import methods
from services.common.clock import Clock
from services.keyvault import audit
from services.keyvault.audit import Act
from services.keyvault.ledger import Destruction, Ledger, Mark
from services.keyvault.receipts import record_destruction
from services.keyvault.records import KeyState
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

_log = structlog.get_logger("keyvault-ledger")
_MARK_S = 30.0
_BATCH = 200


class DatabaseRolledBack(ValueError):
    """The database is an older copy than the one that the ledger knows."""

    def __init__(self) -> None:
        super().__init__(
            "the database is older than the ledger's mark: a copy was put back; start once with "
            "--accept-older-database if that is meant (docs/backup.md)"
        )


class Reconciliation:
    """The one who brings the two together, and then moves the mark on as the database is written."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        clock: Clock,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._random_bytes = random_bytes
        self._marked_writes = -1

    async def at_start(self, *, accept_older: bool = False) -> int:
        """How many destructions were made again. Raises DatabaseRolledBack."""
        mark, own = self._ledger.mark(), await self._store.read(_mark_of)
        if own.counter < mark.counter or (own.counter == mark.counter and own.nonce != mark.nonce):
            if not accept_older:
                raise DatabaseRolledBack
            _log.warning("an older database was accepted", count=mark.counter - own.counter)
        again = await self._destroy_again()
        if again:
            _log.warning("destroyed again what an older database brought back", count=again)
        await self._add_missing()
        await self.advance()
        return again

    async def at_restore(self) -> int:
        """The same for a copy that is about to be the database; the mark follows at its first start."""
        again = await self._destroy_again()
        await self._add_missing()
        await self._store.write(partial(_next_mark, self._ledger.mark(), self._random_bytes(16)))
        return again

    async def advance(self) -> None:
        """Moves the mark on: the database first, so that a crash in between leaves it ahead, never behind."""
        writes = self._store.writes
        mark = await self._store.write(partial(_next_mark, self._ledger.mark(), self._random_bytes(16)))
        await asyncio.to_thread(self._ledger.set_mark, mark)
        self._marked_writes = writes + 1

    async def run(self) -> None:
        """Moves the mark on while there are writes, until cancelled."""
        while True:
            await asyncio.sleep(_MARK_S)
            if self._store.writes > self._marked_writes:
                try:
                    await self.advance()
                except Exception as error:  # noqa: BLE001  (the outermost loop of a worker)
                    _log.error(
                        "the mark cannot be written; a rollback since the last one would go unnoticed",
                        exception_type=type(error).__name__,
                    )

    async def _destroy_again(self) -> int:
        again = 0
        for batch in _batches(self._ledger.entries()):
            again += await self._store.write(partial(_destroy_all, batch, self._now_us()))
        return again

    async def _add_missing(self) -> None:
        known = {(entry.account, entry.resource) for entry in self._ledger.entries()}
        destroyed = await self._store.read(lambda tx: tx.everything_destroyed())
        for batch in _batches(
            Destruction(account, resource, destroy_us)
            for account, resource, destroy_us in destroyed
            if (account, resource) not in known
        ):
            await asyncio.to_thread(self._ledger.append, batch)

    def _now_us(self) -> int:
        return int(self._clock.now_s() * 1e6)


def _batches(entries: Iterable[Destruction]) -> Iterable[list[Destruction]]:
    batch: list[Destruction] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _mark_of(tx: Transaction) -> Mark:
    return Mark(*tx.mark())


def _next_mark(last: Mark, nonce: bytes, tx: Transaction) -> Mark:
    counter, _ = tx.mark()
    mark = Mark(max(counter, last.counter) + 1, nonce)
    tx.set_mark(mark.counter, mark.nonce)
    return mark


def _destroy_all(entries: list[Destruction], now_us: int, tx: Transaction) -> int:
    return sum(_destroy(entry, now_us, tx) for entry in entries)


def _destroy(entry: Destruction, now_us: int, tx: Transaction) -> bool:
    account = tx.account(entry.account)
    if account is None or account.state is KeyState.DESTROYED:
        return False
    if entry.resource and tx.is_destroyed(entry.account, entry.resource):
        return False
    # With the time of the first destruction, which is what its receipt said.
    record_destruction(tx, entry.account, entry.resource, entry.destroy_us)
    if entry.resource:
        tx.destroy_resource(entry.account, entry.resource, entry.destroy_us)
    else:
        tx.destroy_account(entry.account)
    action = "resource.destroy" if entry.resource else "key.destroy"
    act = Act(now_us, action, methods.KEYVAULT, resource=entry.resource, outcome=audit.OK)
    tx.append(account, act)
    return True
