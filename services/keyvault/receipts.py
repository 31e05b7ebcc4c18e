"""Deletion receipts: what was destroyed and when, recorded with the destruction, signed when asked for.

The fields of a receipt beside those of every statement:

    account, resource       ids; an empty resource: the whole account
    destroy_us              microseconds since the Unix epoch
    data_keys               how many data keys were destroyed
    data_key_ids            their ids in order, the first 1,000
    data_key_ids_sha256     hex SHA-256 over all of the ids, in order, with a line end after each
    account_keys            of an account: [version, provider] of each of its KMS keys; of one that the
                            account brought: [version, provider, "adopted"], which its owner still has
    kms_due_us              when the KMS has destroyed our own at the latest; often the same as destroy_us
"""

from __future__ import annotations

import hashlib
import json
from functools import partial

from services.keyvault.kms.protocol import WAIT_DAYS
from services.keyvault.kms.registry import marks_adopted
from services.keyvault.statements import RECEIPT, StatementSigner, canonical
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

_IDS_MAX = 1_000
_LISTED_MAX = 500
_DAY_US = 86_400_000_000


class Receipts:
    """Signs the receipts of destructions."""

    def __init__(self, store: Store, signer: StatementSigner) -> None:
        self._store = store
        self._signer = signer

    async def destroyed(self, peer: str, removed_up_to: int) -> list[tuple[int, str, str]]:
        """What was destroyed after what a service has removed: place, account and resource, in order."""
        return await self._store.write(partial(_after, peer, removed_up_to))

    async def of(self, account: str, resource: str = "") -> str:
        """The receipt; empty for what was destroyed before receipts were kept, or not at all."""
        facts = await self._store.read(lambda tx: tx.destruction(account, resource))
        return "" if facts is None else self._signer.sign(RECEIPT, json.loads(facts))


def _after(peer: str, removed_up_to: int, tx: Transaction) -> list[tuple[int, str, str]]:
    before = tx.removed_up_to(peer)
    # Nobody has removed what is not destroyed yet.
    after = max(before, min(removed_up_to, tx.last_destroyed()))
    if after > before:
        tx.set_removed_up_to(peer, after)
    return tx.destroyed_after(after, _LISTED_MAX)


def record_destruction(tx: Transaction, account: str, resource: str, now_us: int) -> None:
    """Records what is about to be destroyed in the same transaction; a repetition changes nothing."""
    if tx.destruction(account, resource) is not None:
        return
    ids = tx.data_key_ids(account, resource)
    account_keys = [] if resource else _places(tx, account)
    waits = [WAIT_DAYS.get(str(place[1]), 0) for place in account_keys if len(place) == 2]
    facts = {
        "account": account,
        "resource": resource,
        "destroy_us": now_us,
        "data_keys": len(ids),
        "data_key_ids": ids[:_IDS_MAX],
        "data_key_ids_sha256": hashlib.sha256("".join(f"{key}\n" for key in ids).encode()).hexdigest(),
        "account_keys": account_keys,
        "kms_due_us": now_us + max(waits, default=0) * _DAY_US,
    }
    tx.add_destruction(account, resource, canonical(facts))


def _places(tx: Transaction, account: str) -> list[list[int | str]]:
    return [
        [version, provider, *(["adopted"] if marks_adopted(handle) else [])]
        for version, provider, handle in tx.account_key_handles(account)
    ]
