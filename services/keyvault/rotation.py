"""Rotations in one transaction, for accounts with few data keys whose keys lie in this process.

Such a rotation is what a move comes to when nobody has to be asked: nothing is remembered before it and
nothing goes on after it. Those that are wanted at the same time are carried out together, a group in one
transaction, which makes thousands of accounts a matter of seconds; each account's outcome is its own. Where
something changed meanwhile, or there is too much for one transaction, a move does it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from functools import partial

from services.common.clock import Clock
from services.common.errors import SealcombError, Unavailable
from services.keyvault import policy
from services.keyvault.asker import Asker
from services.keyvault.audit import Act
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.records import AccountKey, AccountRecord, DataKeyRecord
from services.keyvault.retirement import Retirements
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

ROTATE = "key.rotate"
_TURN = 64
_GROUP = 64
_WAITING_MAX = 4096
# All of a group's: what one transaction may keep others waiting for.
_DATA_KEYS_MAX = 1024


@dataclass(frozen=True, slots=True)
class _Wish:
    """A rotation that is waited for. The answer is None where that takes a move or is refused."""

    asker: Asker
    answer: asyncio.Future[AccountRecord | None]


@dataclass(frozen=True, slots=True)
class _Present:
    """An account as it was read."""

    account: AccountRecord
    keys: dict[int, AccountKey]
    records: list[DataKeyRecord]


@dataclass(frozen=True, slots=True)
class _Change:
    """What is to take the place of that, and what the audit chain is to say."""

    before: _Present
    key: AccountKey
    records: list[DataKeyRecord]
    act: Act


class Rotation:
    """Rotations that need no move."""

    def __init__(
        self, store: Store, kms: KmsRegistry, retirements: Retirements, clock: Clock, data_keys_max: int
    ) -> None:
        self._store = store
        self._kms = kms
        self._retirements = retirements
        self._clock = clock
        self._most = data_keys_max
        self._waiting: deque[_Wish] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def at_once(self, asker: Asker) -> AccountRecord | None:
        """The account under a new version of its key; None where that takes a move or is refused."""
        if len(self._waiting) >= _WAITING_MAX:
            raise Unavailable("keyvault is overloaded; try again", retry_after_s=1.0)
        wish = _Wish(asker, asyncio.get_running_loop().create_future())
        self._waiting.append(wish)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await wish.answer

    async def close(self) -> None:
        """Stops what is running where it is: before its transaction or after it."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])

    async def _work(self) -> None:
        group: list[_Wish] = []
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(_GROUP, len(self._waiting)))]
                try:
                    await self._carry_out(group)
                except Exception as error:  # noqa: BLE001  (the outermost loop of a worker)
                    for wish in group:
                        _refuse(wish, error)
        finally:
            self._worker = None
            for wish in (*group, *self._waiting):
                wish.answer.cancel()
            self._waiting.clear()

    async def _carry_out(self, group: list[_Wish]) -> None:
        names = [wish.asker.account for wish in group]
        found, later = await self._store.read(partial(_look, names, self._most))
        self._waiting.extendleft(wish for wish in reversed(group) if wish.asker.account in later)
        group[:] = [wish for wish in group if wish.asker.account not in later]
        try:
            changes = await self._changes(group, found)
            after = await self._store.write(partial(_replace, changes)) if changes else {}
        finally:
            # Whatever was unwrapped for it, also of those that were turned off meanwhile.
            for account in found:
                self._kms.forget(account)
        old = [key for account in after for key in found[account].keys.values()]
        if old:
            await self._retirements.destroy_local(old)
        for wish in group:
            if not wish.answer.done():
                wish.answer.set_result(after.get(wish.asker.account))

    async def _changes(self, group: list[_Wish], found: dict[str, _Present]) -> list[_Change]:
        """What is to be put in force; who cannot have it is told."""
        changes = []
        for wish in group:
            # Others have their turn: a group may take as long as many calls.
            await asyncio.sleep(0)
            present = found.get(wish.asker.account)
            try:
                change = None if present is None else await self._change(wish.asker, present)
            except SealcombError as error:
                _refuse(wish, error)
            else:
                if change is not None:
                    changes.append(change)
        return changes

    async def _change(self, asker: Asker, present: _Present) -> _Change | None:
        account, keys = present.account, present.keys
        key = keys.get(account.version)
        refused = policy.account_refusal(account) is not None
        if refused or key is None or not self._kms.is_local(key):
            return None
        new = await self._kms.next_key(key, account.version + 1)
        staged = await rewrapped(self._kms, new, keys, present.records)
        act = asker.act(int(self._clock.now_s() * 1e6), ROTATE, new.provider)
        return _Change(present, new, staged, act)


async def rewrapped(
    kms: KmsRegistry, new: AccountKey, keys: dict[int, AccountKey], records: list[DataKeyRecord]
) -> list[DataKeyRecord]:
    """Data keys wrapped under a new account key."""
    staged = []
    for number, record in enumerate(records, 1):
        secret = await kms.unwrap(keys[record.version], record.wrapping, record.wrapped)
        wrapped = await kms.wrap(new, record.wrapping, secret)
        staged.append(DataKeyRecord(record.wrapping, new.version, wrapped))
        if number % _TURN == 0:
            await asyncio.sleep(0)
    return staged


def unstaged(account: str, limit: int, tx: Transaction) -> tuple[dict[int, AccountKey], list[DataKeyRecord]]:
    """The account's keys by version, and some data keys that no move has wrapped anew yet."""
    keys = {key.version: key for key in tx.account_keys(account)}
    return keys, tx.data_keys_to_rewrap(account, limit)


def _look(names: list[str], most: int, tx: Transaction) -> tuple[dict[str, _Present], set[str]]:
    """Those of some accounts that one transaction may rotate together, and those whose turn comes after."""
    accounts = {account.id: account for account in tx.accounts(names).values() if account.data_keys < most}
    room, taken, later = _DATA_KEYS_MAX, list[str](), set[str]()
    for account in accounts.values():
        if taken and account.data_keys > room:
            later.add(account.id)
        else:
            room -= account.data_keys
            taken.append(account.id)
    keys, records = tx.account_keys_of(taken), tx.data_keys_of(taken)
    return {name: _Present(accounts[name], keys[name], records[name]) for name in taken}, later


def _replace(changes: list[_Change], tx: Transaction) -> dict[str, AccountRecord]:
    """Puts new keys in force where nothing changed since and no move is on; the accounts that have them."""
    names = [change.key.account for change in changes]
    accounts, data_keys, moving = tx.accounts(names), tx.data_key_ids_of(names), tx.moving_among(names)

    def is_unchanged(change: _Change) -> bool:
        account = accounts.get(change.key.account)
        return (
            account is not None
            and policy.account_refusal(account) is None
            and account.version == change.before.account.version
            and account.id not in moving
            and {record.wrapping.key_id for record in change.records} == data_keys[account.id]
        )

    changes = [change for change in changes if is_unchanged(change)]
    if not changes:
        return {}
    keys = [change.key for change in changes]
    tx.add_account_keys(keys)
    tx.rewrap([record for change in changes for record in change.records])
    tx.delete_older_keys(keys)
    tx.put_in_force([(change.key, change.act.time_us) for change in changes])
    tx.append_each([(accounts[change.key.account], change.act) for change in changes])
    return {
        key.account: replace(
            accounts[key.account], version=key.version, provider=key.provider, rotate_us=change.act.time_us
        )
        for key, change in zip(keys, changes, strict=True)
    }


def _refuse(wish: _Wish, error: Exception) -> None:
    if not wish.answer.done():
        wish.answer.set_exception(error)
