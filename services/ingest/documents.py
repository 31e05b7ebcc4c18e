"""Documents that are there: describe, list, download, delete.

The record lives with vectorstore, the sealed original here. A deletion removes the record, and with
it the passages, first; the original follows, and a crash in between is made good by `sweep`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from services.common import ids
from services.common.context import current_account
from services.common.errors import NotFound, SealcombError
from services.ingest.originals import Originals
from services.ingest.records import DocumentRecord

DOCUMENT_NOT_FOUND = "DOCUMENT_NOT_FOUND"
# A deletion runs under the call's own context, which lives for less than this.
_DELETE_WITHIN_S = 60.0

_log = structlog.get_logger("documents")


class RecordStore(Protocol):
    """What documents need of vectorstore."""

    async def get(self, collection: str, document_id: str) -> tuple[str, DocumentRecord]:
        """The collection's id and a record. Raises NotFound."""

    async def list_page(
        self, collection: str, page_size: int, page_token: str
    ) -> tuple[list[DocumentRecord], str]:
        """A page of records and the token of the next one."""

    async def delete(self, collection: str, document_id: str) -> None:
        """Deletes a record and its passages. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class Download:
    """A document and its original, in parts that must be read to the end to be believed."""

    record: DocumentRecord
    parts: AsyncIterator[bytes]


class Documents:
    """Acts on documents by id, within the account of the call in progress."""

    def __init__(self, records: RecordStore, originals: Originals) -> None:
        self._records = records
        self._originals = originals
        self._sweeps: set[asyncio.Task[Any]] = set()

    async def get(self, collection: str, document_id: str) -> DocumentRecord:
        """Describes a document. Raises NotFound."""
        _collection_id, record = await self._find(collection, document_id)
        return record

    async def list_page(
        self, collection: str, page_size: int, page_token: str
    ) -> tuple[list[DocumentRecord], str]:
        """A page of documents in order of creation, and the token of the next one."""
        return await self._records.list_page(collection, page_size, page_token)

    async def download(self, collection: str, document_id: str) -> Download:
        """A document and its original. Raises NotFound; reading the parts raises OpenFailed."""
        collection_id, record = await self._find(collection, document_id)
        parts = self._originals.read(current_account(), collection_id, record.object_key, record.size_bytes)
        return Download(record, parts)

    async def delete(self, collection: str, document_id: str) -> None:
        """Deletes a document: record, passages, original. Raises NotFound."""
        collection_id, record = await self._find(collection, document_id)
        object_key = await self._originals.unsettle(
            current_account(), collection_id, record.id, _DELETE_WITHIN_S, record.object_key
        )
        await self._records.delete(collection, document_id)
        await self._originals.discard(object_key)

    def sweep_soon(self, collection: str, collection_id: str) -> None:
        """Settles in the background, under the current call's context, what was left in a collection."""
        task = asyncio.create_task(self._sweep(collection, collection_id))
        self._sweeps.add(task)
        task.add_done_callback(self._sweeps.discard)

    async def _find(self, collection: str, document_id: str) -> tuple[str, DocumentRecord]:
        if not ids.is_id(document_id):
            # What cannot be an id answers like one that is not there.
            raise NotFound("no such document", reason=DOCUMENT_NOT_FOUND)
        collection_id, record = await self._records.get(collection, document_id)
        self.sweep_soon(collection, collection_id)
        return collection_id, record

    async def _sweep(self, collection: str, collection_id: str) -> None:
        async def exists(document_id: str) -> bool:
            try:
                await self._records.get(collection, document_id)
            except NotFound:
                return False
            return True

        try:
            removed = await self._originals.sweep(current_account(), collection_id, exists)
        except SealcombError as error:
            # The rows stay; a later call tries again.
            _log.info("a sweep did not finish", reason=error.reason)
            return
        if removed:
            _log.info("originals without a document removed", count=removed)
