"""A rotation in one transaction, for an account with few data keys whose key lies in this process.

It is what a move comes to when nobody has to be asked: nothing is remembered before it and nothing goes on
after it. Where something changed meanwhile, or there is too much for one transaction, a move does it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

from services.common.clock import Clock
from services.keyvault import policy
from services.keyvault.asker import Asker
from services.keyvault.audit import Act
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.policy import known
from services.keyvault.records import AccountKey, AccountRecord, DataKeyRecord
from services.keyvault.retirement import Retirements
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

ROTATE = "key.rotate"
_TURN = 64


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

    async def at_once(self, asker: Asker) -> AccountRecord | None:
        """The account under a new version of its key; None where that takes a move or is refused."""
        account, keys, records = await self._store.read(partial(_present, asker.account, self._most))
        key = keys.get(account.version)
        refused = policy.account_refusal(account) is not None or key is None
        if refused or key is None or len(records) == self._most or not self._kms.is_local(key):
            return None
        new = await self._kms.next_key(key, account.version + 1)
        staged = await rewrapped(self._kms, new, keys, records)
        act = asker.act(int(self._clock.now_s() * 1e6), ROTATE, new.provider)
        after = await self._store.write(partial(_replace, account, new, staged, act))
        if after is not None:
            self._kms.forget(account.id)
            await self._retirements.destroy(account.id, keys.values(), retired=False)
        return after


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


def _present(
    account: str, limit: int, tx: Transaction
) -> tuple[AccountRecord, dict[int, AccountKey], list[DataKeyRecord]]:
    return known(tx.account(account)), *unstaged(account, limit, tx)


def _replace(
    before: AccountRecord, new: AccountKey, staged: list[DataKeyRecord], act: Act, tx: Transaction
) -> AccountRecord | None:
    """Puts a new key in force; None where something changed since `before` was read, or a move is on."""
    account = known(tx.account(before.id))
    refusal = policy.account_refusal(account)
    if refusal is not None:
        raise refusal
    ids = {record.wrapping.key_id for record in staged}
    if account.version != before.version or ids != tx.all_data_key_ids(account.id) or tx.move(account.id):
        return None
    tx.add_account_key(new)
    tx.rewrap(staged)
    tx.delete_account_keys_below(account.id, new.version)
    tx.put_in_force(account.id, new.version, act.time_us)
    tx.append(account, act)
    return replace(account, version=new.version, provider=new.provider, rotate_us=act.time_us)
