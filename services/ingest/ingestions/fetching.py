"""The steps of one item: fetched and sealed, indexed, removed, set aside.

Content is sealed before anything durable knows that it was fetched, so what follows needs neither
the source nor its token. Nothing of an item reaches a log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

from services.common import ids
from services.common.clock import Clock
from services.common.errors import NotFound, SealcombError
from services.ingest.egress.refusals import AnswerTooLarge
from services.ingest.ingestions.items import ItemStore
from services.ingest.ingestions.records import Content, ItemRow, Row
from services.ingest.ingestions.seals import Scope, Seals, document_id
from services.ingest.ingestions.store import Lease
from services.ingest.originals import Originals
from services.ingest.pipeline import Processed
from services.ingest.records import DocumentRecord, Passage
from services.ingest.sources.contract import Item, ItemTooLarge, Source, SourceUnavailable

_FETCH_S_MAX = 300.0
# Longer than a permit of this work can still be used.
_SETTLE_S = 1200.0
_NAME_CHARS_MAX = 512
_COLLECTION_NOT_FOUND = "COLLECTION_NOT_FOUND"


class Passages(Protocol):
    """What the steps need of vectorstore."""

    async def put(
        self, collection_id: str, record: DocumentRecord, passages: tuple[Passage, ...], replaces: str = ""
    ) -> DocumentRecord:
        """Commits a record with its passages, in the place of the one it replaces."""

    async def delete_by_id(self, collection_id: str, document_id: str) -> None:
        """Deletes a record and its passages. Raises NotFound."""


class DocumentPipeline(Protocol):
    """Bytes to passages."""

    async def run(self, declared_type: str, name: str, content: bytes) -> Processed:
        """The passages of a document."""


class Steps:
    """What is done with items; the caller decides what a failure means."""

    def __init__(
        self,
        *,
        items: ItemStore,
        seals: Seals,
        originals: Originals,
        passages: Passages,
        pipeline: DocumentPipeline,
        clock: Clock,
        document_bytes_max: int,
    ) -> None:
        self._items = items
        self._seals = seals
        self._originals = originals
        self._passages = passages
        self._pipeline = pipeline
        self._clock = clock
        self._document_bytes_max = document_bytes_max

    async def fetch(self, lease: Lease, row: Row, scope: Scope, source: Source, item: ItemRow) -> None:
        """Brings the content here, sealed."""
        object_id = ids.new_id()
        object_key = f"{row.account}/{row.collection_id}/{object_id}"
        wanted = await self._seals.open_item(scope, item.tag, item.sealed)
        await asyncio.to_thread(self._items.start, lease, row, item, object_key, self._settle_after_ms())
        try:
            async with asyncio.timeout(_FETCH_S_MAX):
                fetched = await source.fetch(wanted)
        except TimeoutError:
            raise SourceUnavailable("the source was too slow") from None
        except AnswerTooLarge:
            raise ItemTooLarge("the item is larger than the limit") from None
        size_bytes = len(fetched.content)
        if size_bytes > self._document_bytes_max:
            raise ItemTooLarge("the item is larger than the limit")
        await self._originals.put(row.account, row.collection_id, object_id, [fetched.content])
        content = Content(fetched.content_type or wanted.content_type, dict(fetched.metadata))
        sealed = await self._seals.seal_content(scope, item.tag, content)
        await asyncio.to_thread(self._items.fetched, lease, item, sealed, size_bytes)

    async def index(self, lease: Lease, row: Row, scope: Scope, item: ItemRow) -> None:
        """Makes what was fetched searchable, in the place of the older version."""
        await asyncio.to_thread(self._items.start, lease, row, item)
        wanted = await self._seals.open_item(scope, item.tag, item.sealed)
        content = await self._seals.open_content(scope, item.tag, item.fetched or b"")
        parts = [
            part
            async for part in self._originals.read(
                row.account, row.collection_id, item.next_key, item.size_bytes
            )
        ]
        name = _name(wanted)
        processed = await self._pipeline.run(content.content_type, name, b"".join(parts))
        id_ = document_id(item.tag)
        record = DocumentRecord(
            id=id_,
            name=name,
            content_type=processed.form.value,
            size_bytes=item.size_bytes,
            passages=len(processed.passages),
            pages=processed.pages,
            metadata=_metadata({"url": wanted.url, **content.metadata}),
            principals=_principals(wanted),
            create_time_ms=int(self._clock.now_s() * 1000),
            object_key=item.next_key,
            idempotency_key="",
        )
        await self._passages.put(row.collection_id, record, processed.passages, id_)
        await asyncio.to_thread(self._items.indexed, lease, row, item, self._settle_after_ms())
        await self._discard(item.object_key)

    async def remove(self, lease: Lease, row: Row, item: ItemRow) -> None:
        """Removes the item's document, then what is known of the item."""
        await self._delete(row, item)
        await asyncio.to_thread(self._items.removed, lease, row, item, self._settle_after_ms())
        await self._discard(item.object_key, item.next_key)

    async def set_aside(self, lease: Lease, row: Row, item: ItemRow, reason: str) -> None:
        """Gives an item up. An older version goes too: nobody knows what changed, or who may still see it."""
        await self._delete(row, item)
        await asyncio.to_thread(self._items.set_aside, lease, row, item, reason, self._settle_after_ms())
        await self._discard(item.object_key, item.next_key)

    async def _delete(self, row: Row, item: ItemRow) -> None:
        if not item.object_key and not item.next_key:
            return
        try:
            await self._passages.delete_by_id(row.collection_id, document_id(item.tag))
        except NotFound as error:
            if error.reason == _COLLECTION_NOT_FOUND:
                raise

    async def _discard(self, *object_keys: str) -> None:
        for object_key in filter(None, object_keys):
            # What is not removed now stands among the unsettled.
            with contextlib.suppress(SealcombError):
                await self._originals.discard(object_key)

    def _settle_after_ms(self) -> int:
        return int((self._clock.now_s() + _SETTLE_S) * 1000)


def _metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a source said, with all text such as has UTF-8: JSON may hold halves of characters."""
    return {
        _whole(name): _whole(value) if isinstance(value, str) else value for name, value in values.items()
    }


def _whole(text: str) -> str:
    # Half a character is written out, nothing is dropped.
    return text.encode("utf-8", "backslashreplace").decode()


def _name(item: Item) -> str:
    """A name that is a name: whatever a source calls things, it commands no terminal and fits."""
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in item.name)
    return plain.encode("utf-8", "replace").decode()[:_NAME_CHARS_MAX].strip() or "untitled"


def _principals(item: Item) -> tuple[str, ...]:
    if item.principals is None:
        return ()
    # Nobody is not the same as everybody; so somebody whom no search can name.
    return tuple(map(_whole, item.principals)) or (f"nobody:{ids.new_id()}",)
