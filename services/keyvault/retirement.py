"""Keys that nothing is wrapped under any more, until their KMS has destroyed them.

Remembered in the transaction that takes them out of use, so that neither a crash nor a KMS that
does not answer leaves one behind. A key that lies in keyvault's own database is destroyed by that
transaction and never kept here; a key of somebody else's is its owner's to destroy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

import structlog

from services.common.errors import SealcombError
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.records import AccountKey
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

_log = structlog.get_logger("keyvault-retirement")
_BATCH = 100
_LOOK_S = 30.0


class Retirements:
    """Has KMSs destroy retired keys, again and again until they have."""

    def __init__(self, store: Store, kms: KmsRegistry) -> None:
        self._store = store
        self._kms = kms

    def retire(self, tx: Transaction, keys: Iterable[AccountKey]) -> None:
        """Remembers, in a transaction that takes keys out of use, those that a KMS is to destroy."""
        tx.retire([key for key in keys if self._kms.is_elsewhere(key)])

    async def destroy(self, account: str, local: Iterable[AccountKey] = ()) -> None:
        """Destroys what an account has retired; what does not succeed now is tried again later.

        `local` are keys that leave memory only: their handles are deleted already. Nothing is raised: what
        was decided is durable, and this is what follows from it.
        """
        try:
            await self._drop(local)
            await self._destroy(account)
            await self._store.scrub()
        except SealcombError as error:
            _log.warning("retired keys wait", account=account, reason=error.reason)

    async def destroy_local(self, keys: Iterable[AccountKey]) -> None:
        """The same for keys of any accounts that have retired no others."""
        try:
            await self._drop(keys)
            await self._store.scrub()
        except SealcombError as error:
            _log.warning("deleted keys are in the files of the database still", reason=error.reason)

    async def discard(self, key: AccountKey) -> None:
        """Destroys a key that was made for nothing. Nothing is raised, and no key goes that is in use.

        What cannot be recorded now may have been put in force by a transaction of which nobody heard: such a
        key is left where it is, and the log says so.
        """
        try:
            if await self._store.write(partial(self._retire_unused, key)):
                await self.destroy(key.account, [key])
        except SealcombError as error:
            _log.warning(
                "a key that may be of no use is left at its KMS",
                account=key.account,
                version=key.version,
                provider=key.provider,
                reason=error.reason,
            )

    async def run(self) -> None:
        """Tries again until cancelled."""
        while True:
            try:
                await self._destroy("")
            except SealcombError as error:
                _log.warning("retired keys wait", reason=error.reason)
            except Exception:  # noqa: BLE001  (the outermost loop of a worker)
                _log.exception("retired keys failed")
            await asyncio.sleep(_LOOK_S)

    async def _drop(self, local: Iterable[AccountKey]) -> None:
        for key in local:
            if not self._kms.is_elsewhere(key):
                await self._kms.destroy_key(key)

    async def _destroy(self, account: str) -> None:
        after = 0
        # All of them: those that a KMS does not destroy must not stand before those that another would.
        while found := await self._store.read(partial(_retired, account, after)):
            await self._destroy_each(found)
            after = found[-1][0]

    async def _destroy_each(self, found: list[tuple[int, AccountKey]]) -> None:
        done: list[int] = []
        for place, key in found:
            try:
                await self._kms.destroy_key(key)
            except SealcombError as error:
                _log.warning(
                    "a key is not destroyed yet",
                    account=key.account,
                    version=key.version,
                    provider=key.provider,
                    reason=error.reason,
                )
            else:
                done.append(place)
        if done:
            await self._store.write(partial(_forget, done))

    def _retire_unused(self, key: AccountKey, tx: Transaction) -> bool:
        move = tx.move(key.account)
        handles = {present.handle for present in tx.account_keys(key.account)}
        if key.handle in handles or (move is not None and move.key == key):
            return False
        self.retire(tx, [key])
        return True


def _retired(account: str, after: int, tx: Transaction) -> list[tuple[int, AccountKey]]:
    return tx.retired_keys(_BATCH, account, after)


def _forget(places: list[int], tx: Transaction) -> None:
    tx.forget_retired(places)
