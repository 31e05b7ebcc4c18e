"""Sealing a collection's originals anew under its newest data key, some at each call.

A pass goes over all objects in the order of their keys. Its last page tells keyvault which keys are
still in use: those that ingestions sealed their own rows under, which are not sealed anew here. The
pass counts from its beginning, so that what was sealed before it began was looked at.

An original whose document is deleted at the same time may be written once more after its deletion;
it is remembered as unsettled first, so that a sweep removes it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from services.common.clock import Clock
from services.common.context import current_account
from services.common.datakeys import AgedKeyPeer, AgedKeys, DataKeys
from services.common.errors import NotFound
from services.common.sealing import DataKey, OpenFailed
from services.ingest.originals import PURPOSE, Originals
from services.ingest.records import CollectionInfo

_LOOKED_MAX = 500
_PAGE_S = 5.0
_COMMIT_WITHIN_S = 60.0
_PLACES_MAX = 1000


class Records(Protocol):
    """What resealing needs of vectorstore."""

    async def resolve(self, collection: str) -> CollectionInfo:
        """A collection by name. Raises NotFound."""

    async def get_by_id(self, collection_id: str, document_id: str) -> None:
        """Raises NotFound unless the collection has the record."""


class SealedRows(Protocol):
    """The rows that are sealed under a collection's key; blocks."""

    def sealing_keys(self, account: str, collection_id: str) -> set[str]:
        """The data keys that they name."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a pass is: when it began, the last object that it looked at (empty: none yet), and whether
    one of them did not open."""

    began_ms: int = 0
    last: str = ""
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """What one call did; `following` or, after the last page, what is left of the keys."""

    looked_at: int
    resealed: int
    damaged: int
    following: Place | None
    aged: AgedKeys | None


class Resealer:
    """Reseals originals of the current call's account."""

    def __init__(
        self,
        records: Records,
        originals: Originals,
        keys: DataKeys,
        rows: SealedRows,
        peer: AgedKeyPeer,
        clock: Clock,
    ) -> None:
        self._records = records
        self._originals = originals
        self._keys = keys
        self._rows = rows
        self._peer = peer
        self._clock = clock
        # Where whole passes stopped: a large collection takes more than one permit.
        self._places: OrderedDict[tuple[str, str], Place] = OrderedDict()

    async def page(self, collection: str, place: Place) -> Page:
        """Goes on from a place for some objects or seconds. Raises NotFound for the collection."""
        return await self._page((await self._records.resolve(collection)).id, place)

    async def all(self, collection_id: str) -> None:
        """A whole pass over a collection, by its id; goes on where one before it stopped."""
        name = current_account(), collection_id
        place = self._places.pop(name, None) or Place()
        while True:
            # Kept if it stops here: it says since when the pass looks, so that it may be as old as it likes.
            self._places[name] = place
            if len(self._places) > _PLACES_MAX:
                self._places.popitem(last=False)
            following = (await self._page(collection_id, place)).following
            self._places.pop(name, None)
            if following is None:
                return
            place = following

    async def _page(self, collection_id: str, place: Place) -> Page:
        account = current_account()
        began_ms = place.began_ms or int(self._clock.now_s() * 1000)
        # The word that there are new ones may still be on its way.
        self._keys.drop_resource(account, collection_id)
        key = await self._keys.current(collection_id, PURPOSE)
        looked_at = resealed = damaged = 0
        last = place.last
        object_keys = await self._originals.object_keys(account, collection_id)
        # From after the listing, and after one was looked at: a slow folder must not hold a pass up for ever.
        until_s = self._clock.monotonic_s() + _PAGE_S
        for object_key in object_keys:
            name = object_key.rpartition("/")[2]
            if name <= place.last:
                continue
            if looked_at and (looked_at == _LOOKED_MAX or self._clock.monotonic_s() >= until_s):
                following = Place(began_ms, last, place.damaged or damaged > 0)
                return Page(looked_at, resealed, damaged, following, None)
            looked_at, last = looked_at + 1, name
            try:
                resealed += await self._reseal(collection_id, object_key, key)
            except OpenFailed:
                damaged += 1
        in_use = await asyncio.to_thread(self._rows.sealing_keys, account, collection_id)
        # A pass that left something where it was is no reason to destroy any key.
        looked_s = 0.0 if place.damaged or damaged else began_ms / 1000
        aged = await self._peer.report_data_keys(collection_id, PURPOSE, in_use, looked_s)
        return Page(looked_at, resealed, damaged, None, aged)

    async def _reseal(self, collection_id: str, object_key: str, key: DataKey) -> bool:
        """Whether an original was sealed anew. Raises OpenFailed for a damaged one."""
        if await self._originals.sealing_key(object_key) in (key.id, ""):
            return False
        account, name = current_account(), object_key.rpartition("/")[2]
        # An object of an ingestion, or of an upload in progress, has no document of its name.
        document = await self._exists(collection_id, name)
        if document:
            await self._originals.unsettle(account, collection_id, name, _COMMIT_WITHIN_S, object_key)
        await self._originals.reseal(account, collection_id, object_key, key)
        if document and await self._exists(collection_id, name):
            await self._originals.keep(object_key)
        return True

    async def _exists(self, collection_id: str, document_id: str) -> bool:
        try:
            await self._records.get_by_id(collection_id, document_id)
        except NotFound:
            return False
        return True
