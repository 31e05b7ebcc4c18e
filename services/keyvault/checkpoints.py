"""Checkpoints: how far an account's audit chain goes, signed, so that a kept copy holds keyvault to it.

The fields of a checkpoint beside those of every statement:

    account       the chain's
    sequence      position of its last record
    hash          hex hash of that record, which binds all before it
    time_us       when it was signed, microseconds since the Unix epoch
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial

from services.common import ids
from services.common.clock import Clock
from services.keyvault.asker import Asker
from services.keyvault.chain import AuditChain
from services.keyvault.policy import AccountUnknown
from services.keyvault.statements import CHECKPOINT, StatementSigner
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction


class Checkpoints:
    """Signs the ends of chains."""

    def __init__(self, store: Store, chain: AuditChain, signer: StatementSigner, clock: Clock) -> None:
        self._store = store
        self._chain = chain
        self._signer = signer
        self._clock = clock
        self.public_pem = signer.public_pem

    async def of(self, account: str) -> str:
        """The checkpoint of a chain as it is now; empty for an empty chain. Raises AccountUnknown."""
        record = await self._store.read(lambda tx: tx.account(account))
        if record is None:
            raise AccountUnknown
        if not record.audit_sequence:
            return ""
        return self._sign(account, record.audit_sequence, record.audit_hash.hex())

    async def export(self, account: str) -> AsyncIterator[str]:
        """The whole chain, a line for each record, and the checkpoint of the last one."""
        last = ""
        async for line in self._chain.lines(account):
            yield line
            last = line
        if last:
            end = json.loads(last)
            yield self._sign(account, end["sequence"], end["hash"])

    async def export_any(self, operator: Asker, account: str) -> AsyncIterator[str]:
        """The same of an account that an operator names, destroyed ones included. Raises AccountUnknown.

        That an operator read it is the last record of what is read.
        """
        if not ids.is_id(account):
            raise AccountUnknown
        await self._store.write(partial(self._record_export, operator, account))
        async for line in self.export(account):
            yield line

    def _record_export(self, operator: Asker, account: str, tx: Transaction) -> None:
        record = tx.account(account)
        if record is None:
            raise AccountUnknown
        tx.append(record, operator.act(int(self._clock.now_s() * 1e6), "audit.export"))

    def _sign(self, account: str, sequence: int, digest: str) -> str:
        fields = {
            "account": account,
            "sequence": sequence,
            "hash": digest,
            "time_us": int(self._clock.now_s() * 1e6),
        }
        return self._signer.sign(CHECKPOINT, fields)
