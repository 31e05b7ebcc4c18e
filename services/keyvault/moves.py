"""An account's way to another KMS key: a new version of its own, or one that it brings.

The new key is proved fit first and remembered. Every data key is then wrapped under it beside its
present wrapping, a batch at a time, and one transaction puts all new wrappings in force. Until that
transaction the old key serves and nothing depends on the new one, so a failure at any point leaves
the old binding as it was; a process that is killed goes on where it was at its next start. The old key is
retired only by the transaction after which nothing is under it.

A KMS that keeps silent is asked again for a while. Whatever a KMS refuses ends the move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from services.common import methods
from services.common.clock import Clock
from services.common.context import CallContext
from services.common.errors import Aborted, SealcombError
from services.keyvault import policy
from services.keyvault.asker import Asker
from services.keyvault.kms.faults import KmsUnavailable
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.policy import AccountUnknown, known
from services.keyvault.records import (
    AccountKey,
    AccountRecord,
    DataKeyRecord,
    MoveProgress,
    MoveRecord,
)
from services.keyvault.retirement import Retirements
from services.keyvault.rotation import ROTATE, Rotation, rewrapped, unstaged
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

_log = structlog.get_logger("keyvault-moves")
BIND = "key.bind"
# A batch is what a crash or one failed call may cost: large where nobody is asked, small where a KMS is.
_BATCH = 256
_BATCH_ELSEWHERE = 32
_TRIES = 10
_LOOK_S = 30.0
_RESUMED_AT_ONCE = 32
_CALLER_WAITS_S = 20.0
_PATIENCE_S = 600.0
_DELAY_S = 0.5
_DELAY_S_MAX = 10.0


class Moves:
    """The moves of all accounts, one at a time for each."""

    def __init__(
        self,
        store: Store,
        kms: KmsRegistry,
        clock: Clock,
        *,
        batch: int = _BATCH,
        caller_waits_s: float = _CALLER_WAITS_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._store = store
        self._kms = kms
        self._clock = clock
        self._retirements = Retirements(store, kms)
        self._rotation = Rotation(store, kms, self._retirements, clock, batch)
        self._batch = batch
        self._caller_waits_s = caller_waits_s
        self._patience_s = patience_s
        self._moving: dict[str, asyncio.Task[AccountRecord]] = {}

    async def rotate(self, asker: Asker) -> AccountRecord:
        """Makes a new version of the account's key and moves every data key under it.

        Data keys stay the same, so nothing is sealed anew. A move that an earlier process left is
        finished instead. An answer with the old version: the move goes on.
        """
        return await self._in_time(asker.account, self._rotated(asker))

    async def bind(self, asker: Asker, provider: str, reference: KeyReference | None) -> AccountRecord:
        """Moves the account to a key that it brings, or to one of the installation's own KMS without it."""
        return await self._in_time(asker.account, self._bound(asker, provider, reference))

    async def progress(self, account: str) -> MoveProgress | None:
        """How far the account's move is, if it is on one."""
        return await self._store.read(lambda tx: tx.move_progress(account))

    async def resume(self) -> None:
        """Goes on with what an earlier process left; returns when it is done or given up."""
        accounts = await self._store.read(lambda tx: tx.moving_accounts(_RESUMED_AT_ONCE))
        await asyncio.gather(*(self._resume(account) for account in accounts if account not in self._moving))

    async def run(self) -> None:
        """Resumes moves until cancelled."""
        while True:
            try:
                await self.resume()
            except SealcombError as error:
                _log.warning("moves to other keys wait", reason=error.reason)
            except Exception:  # noqa: BLE001  (the outermost loop of a worker)
                _log.exception("moves to other keys failed")
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Stops what is running where it is; the next start goes on."""
        running = list(self._moving.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._rotation.close()

    async def _in_time(self, account: str, work: Coroutine[Any, Any, AccountRecord]) -> AccountRecord:
        """What the work returns; the account as it is where that takes long. The work goes on regardless."""
        done, _ = await asyncio.wait([self._alone(account, work)], timeout=self._caller_waits_s)
        if done:
            return done.pop().result()
        return known(await self._store.read(lambda tx: tx.account(account)))

    def _alone(self, account: str, work: Coroutine[Any, Any, AccountRecord]) -> asyncio.Task[AccountRecord]:
        if account in self._moving:
            work.close()
            raise Aborted("the account is on its way to another key already; repeat the call if need be")
        task = self._moving[account] = asyncio.create_task(work)
        task.add_done_callback(partial(self._ended, account))
        return task

    def _ended(self, account: str, task: asyncio.Task[AccountRecord]) -> None:
        del self._moving[account]
        if not task.cancelled():
            task.exception()  # marks it as seen where the caller has gone

    async def _resume(self, account: str) -> None:
        try:
            await self._alone(account, self._resumed(account))
        except SealcombError as error:
            _log.warning("the account keeps its old key", account=account, reason=error.reason)

    async def _resumed(self, account: str) -> AccountRecord:
        found, _key, move = await self._store.read(partial(_present, account))
        return found if move is None else await self._carried(move)

    async def _rotated(self, asker: Asker) -> AccountRecord:
        rotated = await self._rotation.at_once(asker)
        if rotated is not None:
            return rotated
        account, key, move = await self._store.read(partial(_present, asker.account))
        if move is None:
            move = await self._begun(
                asker, ROTATE, account, lambda: self._kms.next_key(key, account.version + 1)
            )
        return await self._carried(move)

    async def _bound(self, asker: Asker, provider: str, reference: KeyReference | None) -> AccountRecord:
        account, _key, move = await self._store.read(partial(_present, asker.account))
        if move is not None:
            raise Aborted(
                "the account is on its way to another key already; repeat the call when it is there"
            )

        async def make() -> AccountKey:
            if reference is None:
                return await self._kms.new_key(account.id, account.version + 1)
            return await self._kms.adopt(provider, account.id, account.version + 1, reference)

        return await self._carried(await self._begun(asker, BIND, account, make))

    async def _begun(
        self, asker: Asker, action: str, account: AccountRecord, make: Callable[[], Awaitable[AccountKey]]
    ) -> MoveRecord:
        """The move, durable, to a key that was proved fit; a refusal is recorded."""
        try:
            refusal = policy.account_refusal(account)
            if refusal is not None:
                raise refusal
            key = await make()
        except SealcombError as error:
            await self._store.write(partial(self._record, asker, action, error))
            raise
        act = asker.act(self._now_us(), action)
        move = MoveRecord(key, act.time_us, action, act.peer, act.token_id, act.method, act.request_id)
        try:
            await self._store.write(partial(self._begin, move))
        except SealcombError:
            await self._retirements.discard(key)
            raise
        return move

    async def _carried(self, move: MoveRecord) -> AccountRecord:
        """The account under its new key. Raises what ended the move, with the old key in force."""
        try:
            return await self._carry(move)
        except Exception as error:
            # Whatever was unwrapped for it, of an account that may be off by now.
            self._kms.forget(move.key.account)
            await self._give_up(move, error)
            raise

    async def _carry(self, move: MoveRecord) -> AccountRecord:
        delay_s, since_s, tries = _DELAY_S, self._clock.monotonic_s(), 0
        batch = self._batch if self._kms.is_local(move.key) else min(self._batch, _BATCH_ELSEWHERE)
        while tries < _TRIES:
            try:
                keys, records = await self._store.read(partial(unstaged, move.key.account, batch))
                staged = await rewrapped(self._kms, move.key, keys, records)
            except KmsUnavailable:
                if self._clock.monotonic_s() - since_s >= self._patience_s:
                    raise
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _DELAY_S_MAX)
                continue
            delay_s, since_s = _DELAY_S, self._clock.monotonic_s()
            if len(records) == batch:
                await self._store.write(partial(self._stage, move, staged))
                continue
            tries += 1
            after = await self._store.write(partial(self._switch, move, staged))
            if after is not None:
                self._kms.forget(move.key.account)
                await self._retirements.destroy(move.key.account, keys.values())
                return after
        raise Aborted("the account makes data keys faster than they are re-wrapped; repeat the call")

    async def _give_up(self, move: MoveRecord, error: Exception) -> None:
        refusal = error if isinstance(error, SealcombError) else SealcombError("the move failed")
        try:
            if await self._store.write(partial(self._undo, move, refusal)):
                await self._retirements.destroy(move.key.account, [move.key])
        except SealcombError as failure:
            # The store itself fails: the move is still there and is taken up again.
            _log.warning("a move waits for the store", account=move.key.account, reason=failure.reason)

    # What follows runs inside a transaction.

    def _begin(self, move: MoveRecord, tx: Transaction) -> None:
        account = _allowed(tx, move)
        if tx.move(account.id) is not None or account.version != move.key.version - 1:
            raise Aborted("the key was changed by another call at the same time; repeat the call if need be")
        tx.begin_move(move)

    def _stage(self, move: MoveRecord, staged: list[DataKeyRecord], tx: Transaction) -> None:
        account = _allowed(tx, move)
        _check_present(tx, move)
        tx.stage(account.id, staged)

    def _switch(self, move: MoveRecord, staged: list[DataKeyRecord], tx: Transaction) -> AccountRecord | None:
        """Puts the new key in force; None where data keys were made meanwhile."""
        account = _allowed(tx, move)
        if account.version == move.key.version:
            # Another process was first.
            return account
        _check_present(tx, move)
        tx.stage(account.id, staged)
        if tx.data_keys_to_rewrap(account.id, 1):
            return None
        now_us = self._now_us()
        tx.add_account_key(move.key)
        tx.rewrap_data_keys(account.id, move.key.version)
        old = [key for key in tx.account_keys(account.id) if key.version != move.key.version]
        tx.delete_account_keys_below(account.id, move.key.version)
        self._retirements.retire(tx, old)
        tx.end_move(account.id)
        tx.update_account(account.id, version=move.key.version, rotate_us=now_us)
        tx.append(account, _asker_of(move).act(now_us, move.action, move.key.provider))
        return known(tx.account(account.id))

    def _undo(self, move: MoveRecord, refusal: SealcombError, tx: Transaction) -> bool:
        account = tx.account(move.key.account)
        present = tx.move(move.key.account)
        if account is None or present is None or present.key != move.key:
            return False
        tx.end_move(account.id)
        self._retirements.retire(tx, [move.key])
        act = _asker_of(move).act(self._now_us(), move.action, move.key.provider, refusal)
        tx.append(account, act)
        return True

    def _record(self, asker: Asker, action: str, refusal: SealcombError, tx: Transaction) -> None:
        account = tx.account(asker.account)
        if account is not None:
            tx.append(account, asker.act(self._now_us(), action, refusal=refusal))

    def _now_us(self) -> int:
        return int(self._clock.now_s() * 1e6)


def _present(account: str, tx: Transaction) -> tuple[AccountRecord, AccountKey, MoveRecord | None]:
    found = known(tx.account(account))
    key = tx.account_key(account, found.version)
    if key is None:
        raise AccountUnknown
    return found, key, tx.move(account)


def _allowed(tx: Transaction, move: MoveRecord) -> AccountRecord:
    account = known(tx.account(move.key.account))
    refusal = policy.account_refusal(account)
    if refusal is not None:
        raise refusal
    return account


def _check_present(tx: Transaction, move: MoveRecord) -> None:
    present = tx.move(move.key.account)
    if present is None or present.key != move.key:
        raise Aborted("the key was changed by another call at the same time; repeat the call if need be")


def _asker_of(move: MoveRecord) -> Asker:
    context = CallContext(
        methods.GATEWAY,
        (methods.KEYVAULT,),
        move.key.account,
        move.token_id,
        (),
        (),
        move.method,
        0.0,
        0.0,
        move.request_id,
    )
    return Asker(move.peer, context)
