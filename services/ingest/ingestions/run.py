"""One run of an ingestion, from the listing to the last document, under its lease.

    what an interrupted run has fetched is indexed first
    the source is listed, batch by batch, the cursor with each of them
    what is gone is removed
    what is new is fetched, sealed and then indexed, some at a time

Each step is durable before the next, so a run that is killed goes on where it was; a document is
committed under the same id for all its versions, the new one in the place of the old, so at each moment
exactly one can be found. Every step runs under a permit that is asked for anew every few minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from services.common.clock import Clock
from services.common.context import acting_as
from services.common.errors import FailedPrecondition, Kind, SealcombError, Unavailable
from services.common.sealing import DataKey
from services.ingest.connections.catalogue import Catalogue
from services.ingest.connections.credentials import Credentials, TokenHolders
from services.ingest.egress.client import Egress
from services.ingest.ingestions.authority import Authority
from services.ingest.ingestions.fetching import Steps
from services.ingest.ingestions.items import STARTS_MAX, ItemStore, Seen
from services.ingest.ingestions.records import ItemRow, ItemState, Payload, Row, State
from services.ingest.ingestions.seals import Scope, Seals
from services.ingest.ingestions.store import Lease
from services.ingest.sources.contract import (
    Batch,
    Credential,
    CredentialRefused,
    CursorExpired,
    Item,
    ItemGone,
    Removed,
    Source,
    SourceAnswerInvalid,
    SourceDenied,
    SourceLimited,
)

POISON = "ITEM_POISON"
# So many failures of the source one after another are its own, not the items'.
_TROUBLE_MAX = 5
# A listing may be thin in places, but not for ever.
_EMPTY_BATCHES_MAX = 1_000
_PASSING = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE_EXCEEDED, Kind.ABORTED})
_log = structlog.get_logger("ingestions")


class NeedsToken(Exception):
    """The run cannot go on without a temporary token."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run."""

    fetches: int = 2
    indexings: int = 2
    # Between two starts of an item that failed; doubled each time.
    pause_s: float = 1.0
    listing_s_max: float = 300.0
    items_max: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Tools:
    """What every run uses."""

    items: ItemStore
    seals: Seals
    steps: Steps
    catalogue: Catalogue
    credentials: Credentials
    tokens: TokenHolders
    egress: Egress
    clock: Clock
    limits: Limits = field(default_factory=Limits)


class Run:
    """One run. `execute` returns at its end, and raises what stopped it."""

    def __init__(self, tools: Tools, row: Row, authority: Authority) -> None:
        self._tools = tools
        self._row = row
        self._authority = authority
        self._lease = Lease(row.id, row.fence)
        self._scope = Scope(row.account, row.collection_id, row.id)
        self._busy: set[bytes] = set()
        # One look at a time: what is finished during a look would be found waiting still.
        self._looking = asyncio.Lock()
        self._news = asyncio.Event()
        self._trouble = 0
        self._named = row.counts.found

    async def execute(self) -> None:
        """Does what is to be done. Raises SealcombError, LeaseLost, NeedsToken."""
        if self._row.state is State.REMOVING:
            await self._each(ItemState.GONE, self._remove)
            return
        with acting_as(await self._authority.caller()):
            payload = await self._tools.seals.open_payload(self._scope, self._row.payload)
        await self._each(ItemState.FETCHED, self._index)
        source = self._open(payload)
        if source is None:
            await self._finish_without_token()
            return
        if not self._row.listed:
            await self._list(source)
        await self._each(ItemState.GONE, self._remove)
        await self._fetch_and_index(source)
        # What was found to be gone while it was fetched.
        await self._each(ItemState.GONE, self._remove)

    async def _finish_without_token(self) -> None:
        """All there is to do once everything is here; the rest needs a token."""
        pending = await asyncio.to_thread(self._tools.items.waiting, self._row.id, ItemState.PENDING, 1)
        if pending or not self._row.listed:
            raise NeedsToken
        await self._each(ItemState.GONE, self._remove)

    def _open(self, payload: Payload) -> Source | None:
        """The source, opened with the credential; None where the temporary token is gone."""
        kind = self._tools.catalogue.type_of(payload.kind)
        settings = self._tools.catalogue.settings_of(payload.kind, payload.settings)
        credential: Credential | None
        if self._row.temporary:
            credential = self._tools.tokens.get(self._row.id)
            if credential is None:
                return None
        else:
            credential = self._tools.credentials.of(
                self._row.account,
                self._row.connection_id,
                kind.oauth,
                self._tools.catalogue.client_of(payload.kind),
            )
        return kind.open(settings, credential if kind.token_form else None, self._tools.egress)

    # Listing.

    async def _list(self, source: Source) -> None:
        cursor: bytes | None = None
        with acting_as(await self._authority.caller()):
            tag_key = await self._tools.seals.tag_key(self._row.collection_id, self._row.tag_key_id)
            if self._row.cursor is not None:
                cursor = await self._tools.seals.open_cursor(self._scope, self._row.cursor)
        try:
            await self._list_from(source, cursor, tag_key)
        except CursorExpired:
            if cursor is None:
                raise
            await asyncio.to_thread(self._tools.items.restart_listing, self._lease)
            await self._list_from(source, None, tag_key)

    async def _list_from(self, source: Source, cursor: bytes | None, tag_key: DataKey) -> None:
        batches = source.batches(cursor)
        empty = 0
        try:
            while True:
                # The permit may have been renewed since the last batch.
                with acting_as(await self._authority.caller()):
                    batch = await self._next_batch(batches)
                    if batch is None:
                        raise Unavailable("the source broke off its listing", reason="SOURCE_UNAVAILABLE")
                    await self._take_in(batch, tag_key)
                if batch.complete:
                    return
                empty = 0 if batch.changes else empty + 1
                if empty >= _EMPTY_BATCHES_MAX:
                    raise SourceAnswerInvalid("the source's listing names nothing and does not end")
        finally:
            close = getattr(batches, "aclose", None)
            if close is not None:
                await close()

    async def _next_batch(self, batches: AsyncIterator[Batch]) -> Batch | None:
        try:
            async with asyncio.timeout(self._tools.limits.listing_s_max):
                return await anext(batches, None)
        except TimeoutError:
            raise Unavailable("the source was too slow", reason="SOURCE_UNAVAILABLE") from None

    async def _take_in(self, batch: Batch, tag_key: DataKey) -> None:
        seals = self._tools.seals
        self._named += len(batch.changes)
        if self._named > self._tools.limits.items_max:
            raise FailedPrecondition(
                f"the source names more than {self._tools.limits.items_max} items; narrow the settings",
                reason="TOO_MANY_ITEMS",
            )
        seen: list[Seen] = []
        unread: list[tuple[Seen, str]] = []
        gone: list[bytes] = []
        for change in batch.changes:
            if isinstance(change, Item):
                seen.append(await seals.seal_item(self._scope, tag_key, change))
            elif isinstance(change, Removed):
                item = Item(change.id, "", "", "")
                gone.append((await seals.seal_item(self._scope, tag_key, item)).tag)
            else:
                item = Item(change.id, change.name, "", "")
                sealed = await seals.seal_item(self._scope, tag_key, item)
                unread.append((sealed, change.error.reason))
        await asyncio.to_thread(
            self._tools.items.record_batch,
            self._lease,
            self._row.run,
            seen,
            gone,
            unread,
            await seals.seal_cursor(self._scope, batch.cursor),
            listed=batch.complete,
            full=batch.complete and batch.full,
        )

    # Items.

    async def _fetch_and_index(self, source: Source) -> None:
        async def fetch_all() -> None:
            fetch = self._fetching(source)
            await _all([self._each(ItemState.PENDING, fetch) for _ in range(self._tools.limits.fetches)])
            # Whatever comes now needs no token any more.
            self._tools.tokens.drop(self._row.id)

        fetching = asyncio.create_task(fetch_all())

        async def index_all() -> None:
            while True:
                last = fetching.done()
                self._news.clear()
                await self._each(ItemState.FETCHED, self._index)
                if last:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._news.wait()

        async def fetched() -> None:
            try:
                await fetching
            finally:
                self._news.set()

        try:
            await _all([fetched(), *[index_all() for _ in range(self._tools.limits.indexings)]])
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    def _fetching(self, source: Source) -> Callable[[ItemRow], Coroutine[Any, Any, None]]:
        async def fetch(item: ItemRow) -> None:
            await self._tools.steps.fetch(self._lease, self._row, self._scope, source, item)
            self._news.set()

        return fetch

    async def _index(self, item: ItemRow) -> None:
        await self._tools.steps.index(self._lease, self._row, self._scope, item)

    async def _remove(self, item: ItemRow) -> None:
        await self._tools.steps.remove(self._lease, self._row, item)

    async def _each(self, state: ItemState, work: Callable[[ItemRow], Coroutine[Any, Any, None]]) -> None:
        """Does the work for each item of a state, until there is none left that nobody works on."""
        while True:
            async with self._looking:
                busy = list(self._busy)
                page = await asyncio.to_thread(self._tools.items.waiting, self._row.id, state, 1, busy)
                if not page:
                    return
                item = page[0]
                self._busy.add(item.tag)
            try:
                await self._attempt(item, work)
            finally:
                self._busy.discard(item.tag)

    async def _attempt(self, item: ItemRow, work: Callable[[ItemRow], Coroutine[Any, Any, None]]) -> None:
        with acting_as(await self._authority.caller()):
            if item.state is not ItemState.GONE and item.attempts >= STARTS_MAX:
                # Whoever worked on it did not live to say why.
                await self._set_aside(item, POISON)
                return
            try:
                await work(item)
            except asyncio.CancelledError:
                # The run is stopped; that is not the item's fault.
                with contextlib.suppress(SealcombError):
                    await asyncio.shield(asyncio.create_task(self._give_back(item)))
                raise
            except SealcombError as error:
                await self._failed(item, error)
            else:
                self._trouble = 0

    async def _failed(self, item: ItemRow, error: SealcombError) -> None:
        """Decides what a failure means: for the item, or for the run, which then ends by the error."""
        match error:
            case ItemGone():
                await asyncio.to_thread(self._tools.items.gone, self._lease, item)
            case SourceDenied() if item.object_key:
                # What may not be seen any more must not be found any more.
                await asyncio.to_thread(self._tools.items.gone, self._lease, item)
            case CredentialRefused() | SourceLimited():
                await self._give_back(item)
                raise error
            case _ if _is_of_run(error):
                await self._give_back(item)
                raise error
            case _ if error.kind in _PASSING:
                await self._try_again(item, error)
            case _:
                await self._set_aside(item, error.reason)

    async def _try_again(self, item: ItemRow, error: SealcombError) -> None:
        self._trouble += 1
        if self._trouble >= _TROUBLE_MAX:
            await self._give_back(item)
            raise error
        if item.attempts + 1 >= STARTS_MAX:
            await self._set_aside(item, error.reason)
            return
        await asyncio.sleep(self._tools.limits.pause_s * 2**item.attempts)

    async def _give_back(self, item: ItemRow) -> None:
        if item.state is not ItemState.GONE:
            await asyncio.to_thread(self._tools.items.forgive, self._lease, item)

    async def _set_aside(self, item: ItemRow, reason: str) -> None:
        _log.info("item set aside", account=self._row.account, job_id=self._row.id, reason=reason)
        await self._tools.steps.set_aside(self._lease, self._row, item, reason)


def _is_of_run(error: SealcombError) -> bool:
    """Whether an error is no item's: nothing else would fare better."""
    reasons = ("COLLECTION_NOT_FOUND", "COLLECTION_FULL", "STORAGE_FULL", "STORAGE_FAILED", "LEASE_LOST")
    if error.reason in (*reasons, "WRITE_QUEUE_FULL", "UNAVAILABLE", "EMBEDDER_UNAVAILABLE"):
        return True
    kinds = (Kind.UNAUTHENTICATED, Kind.UNIMPLEMENTED)
    held_back = ("PERMIT_ENDED", "KEY_DISABLED", "ACCOUNT_SUSPENDED", "ACCOUNT_NOT_FOUND", "KEY_NOT_FOUND")
    return error.kind in kinds or error.reason in held_back


async def _all(works: list[Coroutine[Any, Any, None]]) -> None:
    """Runs works side by side; the first failure ends them all, and nothing of them is left running."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
