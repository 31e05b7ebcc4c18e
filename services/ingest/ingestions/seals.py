"""How an ingestion's rows are sealed and tagged: under the `documents` key of its collection.

    payload     Identity(account, collection id, "ingestion", object=ingestion id)
    cursor      Identity(account, collection id, "ingestion cursor", object=ingestion id)
    item        Identity(account, collection id, "ingestion item", object=ingestion id/tag)
    content     Identity(account, collection id, "ingestion content", object=ingestion id/tag)

A tag is an HMAC, so that equal items meet in one row while the row tells nothing of them. With the
collection's key all of it ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from services.common import ids
from services.common.datakeys import DataKeys
from services.common.sealing import DataKey, Identity, key_id_of, name_tag, open_sealed, seal
from services.ingest.ingestions.items import Seen
from services.ingest.ingestions.records import Content, Payload, item_of, item_to_bytes
from services.ingest.originals import PURPOSE
from services.ingest.sources.contract import Item


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose rows they are."""

    account: str
    collection_id: str
    ingestion_id: str


class Seals:
    """Seals, opens and tags under the current caller's context."""

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    async def tag_key(self, collection_id: str, key_id: str = "") -> DataKey:
        """A key for tags: an ingestion's own, or the present one for a new ingestion."""
        if key_id:
            return await self._keys.by_id(collection_id, PURPOSE, key_id)
        return await self._keys.current(collection_id, PURPOSE)

    async def seal_payload(self, scope: Scope, payload: Payload) -> bytes:
        """What an ingestion is about."""
        return await self._seal(scope, "ingestion", scope.ingestion_id, payload.to_bytes())

    async def open_payload(self, scope: Scope, sealed: bytes) -> Payload:
        """The same again."""
        return Payload.from_bytes(await self._open(scope, "ingestion", scope.ingestion_id, sealed))

    async def seal_cursor(self, scope: Scope, cursor: bytes) -> bytes:
        """Where a listing goes on."""
        return await self._seal(scope, "ingestion cursor", scope.ingestion_id, cursor)

    async def open_cursor(self, scope: Scope, sealed: bytes) -> bytes:
        """The same again."""
        return await self._open(scope, "ingestion cursor", scope.ingestion_id, sealed)

    async def seal_item(self, scope: Scope, tag_key: DataKey, item: Item) -> Seen:
        """An item as its row holds it."""
        tag = item_tag(tag_key, scope.ingestion_id, item.id)
        sealed = await self._seal(scope, "ingestion item", _object(scope, tag), item_to_bytes(item))
        return Seen(tag, _version_tag(tag_key, item), sealed)

    async def open_item(self, scope: Scope, tag: bytes, sealed: bytes) -> Item:
        """The item in a row."""
        return item_of(await self._open(scope, "ingestion item", _object(scope, tag), sealed))

    async def seal_content(self, scope: Scope, tag: bytes, content: Content) -> bytes:
        """What a source said of the content that was fetched."""
        return await self._seal(scope, "ingestion content", _object(scope, tag), content.to_bytes())

    async def open_content(self, scope: Scope, tag: bytes, sealed: bytes) -> Content:
        """The same again."""
        raw = await self._open(scope, "ingestion content", _object(scope, tag), sealed)
        return Content.from_bytes(raw)

    async def _seal(self, scope: Scope, kind: str, object_: str, raw: bytes) -> bytes:
        key = await self._keys.current(scope.collection_id, PURPOSE)
        return seal(key, Identity(scope.account, scope.collection_id, kind, object_), raw)

    async def _open(self, scope: Scope, kind: str, object_: str, sealed: bytes) -> bytes:
        key = await self._keys.by_id(scope.collection_id, PURPOSE, key_id_of(sealed))
        return open_sealed(key, Identity(scope.account, scope.collection_id, kind, object_), sealed)


def item_tag(tag_key: DataKey, ingestion_id: str, item_id: str) -> bytes:
    """What an item is found by; equal for equal ids within one ingestion."""
    # A source's JSON may hold halves of characters, which have no UTF-8.
    plain = item_id.encode("utf-8", "backslashreplace").decode()
    return name_tag(tag_key, "ingestion item", f"{ingestion_id}\0{plain}")


def document_id(tag: bytes) -> str:
    """The id of an item's document: the same for all its versions."""
    return ids.from_bytes(tag[:16])


def idempotency_tag(tag_key: DataKey, key: str) -> bytes:
    """What a repeated call is found by."""
    return name_tag(tag_key, "ingestion idempotency", key)


def _version_tag(tag_key: DataKey, item: Item) -> bytes:
    # Whoever may see it belongs to the version: a lost permission must be honoured like a changed text.
    principals = None if item.principals is None else sorted(item.principals)
    parts = [item.version, item.name, item.url, item.content_type, principals]
    return name_tag(tag_key, "ingestion version", json.dumps(parts))


def _object(scope: Scope, tag: bytes) -> str:
    return f"{scope.ingestion_id}/{tag.hex()}"
