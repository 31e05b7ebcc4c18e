"""What ingest does when keyvault says that keys are gone: forget them, and what they opened.

A key that is disabled leaves memory at once; what is being read asks for its key anew and is
refused. Objects whose keys are destroyed are unreadable for good, so removing them is tidiness: it
is finished by a later start if this one is killed, and keyvault tells what was destroyed meanwhile.
"""

from __future__ import annotations

from typing import Protocol

from services.common.datakeys import DataKeys
from services.common.rpc.keyvault import KeyEvent
from services.ingest.originals import Originals
from services.ingest.search import Search

_FOR_GOOD = frozenset({KeyEvent.RESOURCE_DESTROYED, KeyEvent.ACCOUNT_DESTROYED})


class Work(Protocol):
    """What runs without a call: ingestions."""

    async def keys_gone(self, account: str, resource: str, *, for_good: bool) -> None:
        """Stops what works with an account's keys, or with those of one resource."""


class KeyEvents:
    """The handler that the keyvault client's `watch` calls."""

    def __init__(
        self, keys: DataKeys, originals: Originals, search: Search, work: Work | None = None
    ) -> None:
        self._keys = keys
        self._originals = originals
        self._search = search
        self._work = work

    async def __call__(self, event: KeyEvent, account: str, resource: str) -> None:
        """Acts on one event. Raises what kept it from removing what is destroyed, to be told again."""
        if event in (KeyEvent.ENABLED, KeyEvent.RESUMED):
            return
        if event is KeyEvent.NEW_DATA_KEYS:
            self._keys.drop_account(account)
            return
        if event is KeyEvent.RECONNECTED:
            self._keys.drop_all()
            self._originals.keys_dropped("")
        else:
            self._keys.drop_account(account)
            self._originals.keys_dropped(account)
        self._search.forget_names()
        if not account:
            return
        if self._work is not None:
            await self._work.keys_gone(account, resource, for_good=event in _FOR_GOOD)
        if event is KeyEvent.RESOURCE_DESTROYED and resource:
            await self._originals.remove_all(account, resource)
        elif event is KeyEvent.ACCOUNT_DESTROYED:
            await self._originals.remove_all(account)
