"""Sealing a collection anew under its newest data key.

A snapshot under that key replaces what was sealed under others: the log before it is trimmed, the head
is sealed with it, and older snapshots go. Whether that is so is then read from the store, and
keyvault is told what was found there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from services.common.clock import Clock
from services.common.datakeys import AgedKeyPeer, AgedKeys, DataKeys
from services.vectorstore.catalog import COLLECTION, Descriptor
from services.vectorstore.residency import Residency
from services.vectorstore.store import Store

_T = TypeVar("_T")


class Resealer:
    """Reseals collections of the current call's account."""

    def __init__(
        self,
        store: Store,
        residency: Residency,
        keys: DataKeys,
        peer: AgedKeyPeer,
        workers: Executor,
        clock: Clock,
    ) -> None:
        self._store = store
        self._residency = residency
        self._keys = keys
        self._peer = peer
        self._workers = workers
        self._clock = clock

    async def reseal(self, descriptor: Descriptor) -> AgedKeys:
        """Seals a collection under its newest key; what is left of those before it."""
        # The word that there are new ones may still be on its way.
        self._keys.drop_resource(descriptor.account, descriptor.id)
        use = await self._residency.use(descriptor)
        if await self._named(descriptor) != {use.key.id}:
            resident = self._residency.peek(descriptor.id)
            if resident is not None:
                await resident.keeper.reseal(use.key)
        looked_s = self._clock.now_s()
        named = await self._named(descriptor)
        return await self._peer.report_data_keys(descriptor.id, COLLECTION, named, looked_s)

    async def _named(self, descriptor: Descriptor) -> set[str]:
        return await self._in_thread(lambda: self._store.sealing_keys(descriptor.id))

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function)
