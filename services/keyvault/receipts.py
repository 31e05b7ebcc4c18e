"""Deletion receipts: what was destroyed and when, recorded with the destruction, signed when asked for.

The fields of a receipt beside those of every statement:

    account, resource       ids; an empty resource: the whole account
    destroy_us              microseconds since the Unix epoch
    data_keys               how many data keys were destroyed
    data_key_ids            their ids in order, the first 1,000
    data_key_ids_sha256     hex SHA-256 over all of the ids, in order, with a line end after each
    account_keys            of an account: [version, provider] of each of its KMS keys
    kms_due_us              when the KMS itself has destroyed them at the latest; often the same as destroy_us
"""

from __future__ import annotations

import hashlib
import json

from services.keyvault.statements import RECEIPT, StatementSigner, canonical
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

_IDS_MAX = 1_000
_DAY_US = 86_400_000_000
# A KMS that destroys keys only after a wait of its own, in days.
_KMS_WAIT_DAYS = {"aws": 7}


class Receipts:
    """Signs the receipts of destructions."""

    def __init__(self, store: Store, signer: StatementSigner) -> None:
        self._store = store
        self._signer = signer

    async def of(self, account: str, resource: str = "") -> str:
        """The receipt; empty for what was destroyed before receipts were kept, or not at all."""
        facts = await self._store.read(lambda tx: tx.destruction(account, resource))
        return "" if facts is None else self._signer.sign(RECEIPT, json.loads(facts))


def record_destruction(tx: Transaction, account: str, resource: str, now_us: int) -> None:
    """Records what is about to be destroyed in the same transaction; a repetition changes nothing."""
    if tx.destruction(account, resource) is not None:
        return
    ids = tx.data_key_ids(account, resource)
    account_keys = [] if resource else tx.account_key_places(account)
    wait_days = max((_KMS_WAIT_DAYS.get(provider, 0) for _, provider in account_keys), default=0)
    facts = {
        "account": account,
        "resource": resource,
        "destroy_us": now_us,
        "data_keys": len(ids),
        "data_key_ids": ids[:_IDS_MAX],
        "data_key_ids_sha256": hashlib.sha256("".join(f"{key}\n" for key in ids).encode()).hexdigest(),
        "account_keys": account_keys,
        "kms_due_us": now_us + wait_days * _DAY_US,
    }
    tx.add_destruction(account, resource, canonical(facts))
