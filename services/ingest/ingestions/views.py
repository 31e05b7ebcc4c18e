"""Ingestions as callers look at them: one, many, what failed, and how one goes on.

An ingestion of a collection that the caller's token may not use does not exist for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from services.common import ids
from services.common.clock import Clock
from services.common.context import current_account, current_caller
from services.common.errors import Aborted, Kind, NotFound, SealcombError
from services.ingest.ingestions.items import ItemStore
from services.ingest.ingestions.records import (
    ENDED,
    FailedItem,
    Ingestion,
    ItemState,
    Payload,
    Row,
    State,
)
from services.ingest.ingestions.seals import Scope, Seals
from services.ingest.ingestions.store import IngestionStore

_WATCH_EVERY_S = 0.3
_WATCH_SAYS_S = 15.0
_ACCOUNTS_MAX = 10_000


class Views:
    """Looks at ingestions within the account of the call in progress."""

    def __init__(self, store: IngestionStore, items: ItemStore, seals: Seals, clock: Clock) -> None:
        self._store = store
        self._items = items
        self._seals = seals
        self._clock = clock
        self._drops: dict[str, int] = {}

    def keys_dropped(self, account: str) -> None:
        """Ends the watches of an account."""
        if len(self._drops) >= _ACCOUNTS_MAX:
            self._drops.clear()
        self._drops[account] = self._drops.get(account, 0) + 1

    async def get(self, id_: str) -> Ingestion:
        """One ingestion. Raises NotFound."""
        row = await self._row(id_)
        return Ingestion(row, await self.open(row))

    async def list_page(
        self, after: tuple[int, str], size: int
    ) -> tuple[list[Ingestion], tuple[int, str] | None]:
        """Ingestions that the token may see, those after a position; with them the next page's, if any."""
        found: list[Ingestion] = []
        while True:
            rows = await asyncio.to_thread(self._store.page, current_account(), after, size + 1)
            for row in rows:
                if len(found) == size:
                    last = found[-1].row
                    return found, (last.create_ms, last.id)
                after = (row.create_ms, row.id)
                try:
                    found.append(Ingestion(row, await self.open(row)))
                except NotFound:
                    continue
            if len(rows) <= size:
                return found, None

    async def failed_items(self, id_: str, after: bytes, size: int) -> tuple[list[FailedItem], bytes]:
        """Items that were set aside, those after a tag; with them the last one's tag, empty at the end."""
        ingestion = await self.get(id_)
        row = ingestion.row
        rows = await asyncio.to_thread(self._items.page, row.id, ItemState.FAILED, after, size + 1)
        scope = Scope(row.account, row.collection_id, row.id)
        found = []
        for item in rows[:size]:
            opened = await self._seals.open_item(scope, item.tag, item.sealed)
            found.append(FailedItem(opened.name, opened.url, item.reason, item.attempts))
        return found, rows[size - 1].tag if len(rows) > size else b""

    async def watch(self, id_: str) -> AsyncIterator[Ingestion]:
        """The ingestion at each change, and now and then, until the run ends or the keys are dropped."""
        ingestion = await self.get(id_)
        account, drops = ingestion.row.account, self._drops_of(ingestion.row.account)
        shown, said_s = None, 0.0
        while True:
            row = ingestion.row
            now_s = self._clock.monotonic_s()
            if _visible(row) != shown or now_s - said_s >= _WATCH_SAYS_S:
                shown, said_s = _visible(row), now_s
                yield ingestion
            if row.state in ENDED or row.state is State.NEEDS_TOKEN:
                return
            await asyncio.sleep(_WATCH_EVERY_S)
            if self._drops_of(account) != drops:
                # The call's own context has expired, so whether it may go on is asked by a new call.
                raise Aborted("the account's keys have changed; watch again")
            found = await asyncio.to_thread(self._store.get, account, id_)
            if found is None:
                raise _not_found()
            ingestion = replace(ingestion, row=found)

    async def _row(self, id_: str) -> Row:
        row = None
        if ids.is_id(id_):
            row = await asyncio.to_thread(self._store.get, current_account(), id_)
        if row is None:
            raise _not_found()
        return row

    async def open(self, row: Row) -> Payload:
        """What an ingestion is about. Raises NotFound where the caller's token may not use the collection."""
        allowed = current_caller().context.collections
        try:
            payload = await self._seals.open_payload(
                Scope(row.account, row.collection_id, row.id), row.payload
            )
        except SealcombError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            # Its collection is destroyed, and with it what this was.
            payload = Payload("", "", {})
        if allowed and payload.collection not in allowed:
            raise _not_found()
        return payload

    def _drops_of(self, account: str) -> int:
        return self._drops.get(account, 0)


def _visible(row: Row) -> tuple[object, ...]:
    return (row.state, row.reason, row.counts, row.run, row.next_run_ms, row.start_ms)


def _not_found() -> NotFound:
    return NotFound("no such ingestion", reason="INGESTION_NOT_FOUND")
