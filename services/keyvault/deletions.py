"""Scheduled deletion of an account's key: off now, destroyed when due, called off until then.

Whether a deletion is due is decided again in the transaction that destroys: one that was called
off a moment before destroys nothing.
"""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from services.common import methods
from services.common.clock import Clock
from services.common.context import CallContext
from services.common.errors import FailedPrecondition, SealcombError, invalid
from services.keyvault.asker import Asker
from services.keyvault.completion import Completion
from services.keyvault.events import KeyChange, KeyEvents
from services.keyvault.policy import KeyPendingDeletion, known
from services.keyvault.records import AccountRecord, KeyState
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction
from services.keyvault.vault import Vault

_log = structlog.get_logger("keyvault-deletions")
WAIT_DAYS_MIN = 7
WAIT_DAYS_MAX = 30
_DAY_US = 86_400_000_000
_BATCH = 100
_LOOK_S = 30.0
_METHOD = "/sealcomb.v1.KeyService/ScheduleKeyDeletion"


class Deletions:
    """Schedules, calls off and carries out deletions."""

    def __init__(
        self, store: Store, vault: Vault, events: KeyEvents, clock: Clock, completion: Completion
    ) -> None:
        self._store = store
        self._vault = vault
        self._events = events
        self._clock = clock
        self._completion = completion

    async def due_us(self, account: str) -> int:
        """When the account's key is destroyed; 0: no deletion is scheduled."""
        return await self._store.read(lambda tx: tx.deletion_due_us(account)) or 0

    async def schedule(self, asker: Asker, wait_days: int) -> AccountRecord:
        """Turns the key off and schedules its destruction, in 30 days where `wait_days` is 0."""
        if wait_days and not WAIT_DAYS_MIN <= wait_days <= WAIT_DAYS_MAX:
            raise invalid("wait_days", f"must be {WAIT_DAYS_MIN} to {WAIT_DAYS_MAX}")
        return await self._completion.run(self._schedule(asker, wait_days or WAIT_DAYS_MAX))

    async def destroy_now(self, asker: Asker, confirm: str) -> None:
        """Destroys the account's key at once, for good; `confirm` must be the account's own id."""
        if confirm != asker.account:
            raise invalid("confirm", "must be the account's id")
        await self._vault.destroy(asker)

    async def cancel(self, asker: Asker) -> AccountRecord:
        """Calls a scheduled deletion off; the key is disabled after it."""
        after = await self._store.write(partial(self._unschedule, asker))
        return _or_raise(after)

    async def destroy_due(self) -> int:
        """Destroys the keys whose deletion is due; how many there were."""
        now_us = self._now_us()
        due = await self._store.read(lambda tx: tx.accounts_due(now_us, _BATCH))
        for account in due:
            await self._vault.destroy_due(_keyvault_itself(account))
            _log.info("key destroyed as scheduled", account=account)
        return len(due)

    async def run(self) -> None:
        """Carries deletions out until cancelled."""
        while True:
            try:
                while await self.destroy_due() == _BATCH:
                    pass
            except SealcombError as error:
                _log.warning("scheduled deletions wait", reason=error.reason)
            except Exception:  # noqa: BLE001  (the outermost loop of a worker)
                _log.exception("scheduled deletions failed")
            await asyncio.sleep(_LOOK_S)

    async def _schedule(self, asker: Asker, wait_days: int) -> AccountRecord:
        after = _or_raise(await self._store.write(partial(self._set_due, asker, wait_days)))
        self._vault.forget(asker.account)
        self._events.publish(KeyChange.DISABLED, asker.account)
        return after

    # What follows runs inside a transaction.

    def _set_due(self, asker: Asker, wait_days: int, tx: Transaction) -> AccountRecord | SealcombError:
        now_us = self._now_us()
        account = known(tx.account(asker.account))
        if account.state is KeyState.PENDING_DELETION:
            refusal = KeyPendingDeletion()
            tx.append(account, asker.act(now_us, "key.schedule_deletion", refusal=refusal))
            return refusal
        tx.schedule_deletion(account.id, now_us, now_us + wait_days * _DAY_US)
        tx.update_account(account.id, state=KeyState.PENDING_DELETION.value)
        tx.end_permits(account.id)
        tx.append(account, asker.act(now_us, "key.schedule_deletion"))
        return known(tx.account(asker.account))

    def _unschedule(self, asker: Asker, tx: Transaction) -> AccountRecord | SealcombError:
        now_us = self._now_us()
        account = known(tx.account(asker.account))
        if account.state is not KeyState.PENDING_DELETION:
            refusal = FailedPrecondition(
                "no deletion of the key is scheduled", reason="KEY_NOT_PENDING_DELETION"
            )
            tx.append(account, asker.act(now_us, "key.cancel_deletion", refusal=refusal))
            return refusal
        tx.unschedule_deletion(account.id)
        tx.update_account(account.id, state=KeyState.DISABLED.value)
        tx.append(account, asker.act(now_us, "key.cancel_deletion"))
        return known(tx.account(asker.account))

    def _now_us(self) -> int:
        return int(self._clock.now_s() * 1e6)


def _or_raise(answer: AccountRecord | SealcombError) -> AccountRecord:
    if isinstance(answer, SealcombError):
        raise answer
    return answer


def _keyvault_itself(account: str) -> Asker:
    context = CallContext(methods.KEYVAULT, (methods.KEYVAULT,), account, "", (), (), _METHOD, 0.0, 0.0, "")
    return Asker(methods.KEYVAULT, context)
