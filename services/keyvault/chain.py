"""Reading an account's audit chain: in pages, and whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from services.common import paging
from services.common.errors import Unavailable, invalid
from services.common.sealing import DataKey
from services.keyvault import audit
from services.keyvault.audit import AuditRecord
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction

_LISTING = "audit-events"
_BATCH = 500


class AuditChain:
    """The chains of all accounts, read only."""

    def __init__(self, store: Store, page_key: DataKey | None = None) -> None:
        self._store = store
        # Of page tokens; there is none until the KMS has given it.
        self.page_key = page_key

    async def page(self, account: str, page_size: int, page_token: str) -> tuple[list[AuditRecord], str]:
        """Records in order, and the token of the next page; empty: there is none."""
        after = 0
        if self.page_key is None:
            raise Unavailable("keyvault waits for its KMS; try again", retry_after_s=1.0)
        if page_token:
            position = paging.decode(self.page_key, account, _LISTING, "", page_token)
            if len(position) != 8:
                raise invalid("page_token", "is not a token of this listing; start again without one")
            after = int.from_bytes(position, "big")
        size = paging.page_size(page_size)
        records = await self._read(account, after, size + 1)
        if len(records) <= size:
            return records, ""
        position = records[size - 1].sequence.to_bytes(8, "big")
        return records[:size], paging.encode(self.page_key, account, _LISTING, "", position)

    async def lines(self, account: str) -> AsyncIterator[str]:
        """The whole chain, a line for each record."""
        after = 0
        while records := await self._read(account, after, _BATCH):
            for record in records:
                yield audit.export_line(record)
            if len(records) < _BATCH:
                return
            after = records[-1].sequence

    async def first_bad(self, account: str) -> int | None:
        """The sequence of the first record that does not hold, by what the database says; None: all do."""
        sequence, last = 0, audit.FIRST_HASH
        while records := await self._read(account, sequence, _BATCH):
            for record in records:
                right = audit.link(account, sequence + 1, last, record.act)
                if (record.sequence, record.hash) != (right.sequence, right.hash):
                    return sequence + 1
                sequence, last = record.sequence, record.hash
        end = await self._store.read(lambda tx: tx.account(account))
        holds = end is not None and (end.audit_sequence, end.audit_hash) == (sequence, last)
        return None if holds else sequence + 1

    async def _read(self, account: str, after: int, limit: int) -> list[AuditRecord]:
        return await self._store.read(partial(_events, account, after, limit))


def _events(account: str, after: int, limit: int, tx: Transaction) -> list[AuditRecord]:
    return tx.events(account, after, limit)
