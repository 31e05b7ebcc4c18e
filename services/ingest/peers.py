"""Vectorstore as ingest calls it: the stubs on one side, ingest's own records on the other.

Every call goes under the current caller's context or permit, with a deadline. Errors pass through
with their reasons.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc.aio
from google.protobuf.struct_pb2 import Struct

from sealcomb.internal.v1 import passage_service_pb2 as pb
from sealcomb.internal.v1 import passage_service_pb2_grpc as stubs
from sealcomb.v1 import filter_pb2, search_service_pb2
from services.common.errors import Kind, NotFound, SealcombError, invalid
from services.common.rpc import channel as rpc
from services.common.rpc.server import MESSAGE_BYTES_MAX
from services.ingest.records import CollectionInfo, DocumentRecord, Hit, Passage, SearchQuery

_PUT_S = 60.0
_LIST_S = 30.0
# Room for the framing of a message.
_PUT_BYTES_MAX = MESSAGE_BYTES_MAX - 64 * 1024
_CALL_S = 15.0
_Response = TypeVar("_Response")


class VectorstoreClient:
    """Calls PassageService under the current caller's context."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = stubs.PassageServiceStub(channel)

    async def resolve(self, collection: str) -> CollectionInfo:
        """A collection by name. Raises NotFound."""
        response = await _call(
            self._stub.ResolveCollection, pb.ResolveCollectionRequest(collection=collection)
        )
        return _collection(response)

    async def find(
        self, collection: str, idempotency_key: str
    ) -> tuple[CollectionInfo, DocumentRecord | None]:
        """A collection, and its document that was uploaded under a key, if there is one. Raises NotFound."""
        request = pb.ResolveCollectionRequest(collection=collection, idempotency_key=idempotency_key)
        response = await _call(self._stub.ResolveCollection, request)
        document = _record(response.document) if response.HasField("document") else None
        return _collection(response), document

    async def put(
        self, collection_id: str, record: DocumentRecord, passages: tuple[Passage, ...], replaces: str = ""
    ) -> DocumentRecord:
        """Commits a record with its passages, in the place of the one it replaces; the record there now."""
        request = pb.PutDocumentRequest(
            collection_id=collection_id, document=_record_proto(record), replaces_document_id=replaces
        )
        for passage in passages:
            request.passages.add(
                index=passage.index,
                page=passage.page,
                text=passage.text,
                vector_f32=passage.vector,
                heading=passage.heading,
            )
        if request.ByteSize() > _PUT_BYTES_MAX:
            raise invalid("chunk", "the document has too much text; split it", reason="DOCUMENT_TOO_LARGE")
        response = await _call(self._stub.PutDocument, request, timeout_s=_PUT_S)
        return _record(response.document)

    async def get(self, collection: str, document_id: str) -> tuple[str, DocumentRecord]:
        """The collection's id and a record. Raises NotFound."""
        request = pb.GetDocumentRecordRequest(collection=collection, id=document_id)
        response = await _call(self._stub.GetDocumentRecord, request)
        return response.collection_id, _record(response.document)

    async def get_by_id(self, collection_id: str, document_id: str) -> None:
        """Raises NotFound unless a collection, by its id, has the record."""
        request = pb.GetDocumentRecordRequest(collection_id=collection_id, id=document_id)
        await _call(self._stub.GetDocumentRecord, request)

    async def list_page(
        self, collection: str, page_size: int, page_token: str
    ) -> tuple[list[DocumentRecord], str]:
        """A page of records and the token of the next one."""
        request = pb.ListDocumentRecordsRequest(
            collection=collection, page_size=page_size, page_token=page_token
        )
        response = await _call(self._stub.ListDocumentRecords, request, timeout_s=_LIST_S)
        return [_record(document) for document in response.documents], response.next_page_token

    async def delete(self, collection: str, document_id: str) -> None:
        """Deletes a record and its passages. Raises NotFound."""
        request = pb.DeleteDocumentRecordRequest(collection=collection, id=document_id)
        await _call(self._stub.DeleteDocumentRecord, request)

    async def delete_by_id(self, collection_id: str, document_id: str) -> None:
        """The same for a collection by its id."""
        request = pb.DeleteDocumentRecordRequest(collection_id=collection_id, id=document_id)
        await _call(self._stub.DeleteDocumentRecord, request)

    async def search(self, query: SearchQuery, vector: bytes) -> list[Hit]:
        """Ranked passages; `vector` is empty for a search by words."""
        mode = search_service_pb2.SearchMode.Value(f"SEARCH_MODE_{query.mode}")
        request = pb.SearchPassagesRequest(
            collection=query.collection,
            vector_f32=vector,
            query=query.text if mode != search_service_pb2.SEARCH_MODE_DENSE else "",
            top_k=query.top_k,
            mode=mode,
            as_principals=query.as_principals,
            one_per_document=query.one_per_document,
        )
        if query.filter is not None:
            request.filter.CopyFrom(cast("filter_pb2.Filter", query.filter))
        response = await _call(self._stub.SearchPassages, request)
        return [
            Hit(
                document_id=hit.document_id,
                document_name=hit.document_name,
                page=hit.page,
                chunk_index=hit.chunk_index,
                text=hit.text,
                score=hit.score,
                metadata=hit.metadata if hit.HasField("metadata") else None,
                heading=hit.heading,
            )
            for hit in response.hits
        ]


async def _call(
    method: Callable[..., Awaitable[_Response]], request: Any, *, timeout_s: float = _CALL_S
) -> _Response:
    try:
        return await rpc.call(method, request, timeout_s=timeout_s)
    except SealcombError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        # The one kind that the domain acts on by its type.
        raise NotFound(error.message, reason=error.reason) from None


def _collection(response: pb.ResolveCollectionResponse) -> CollectionInfo:
    return CollectionInfo(
        response.collection_id, response.dimension, response.embedder, response.embedder_fingerprint
    )


def _record(document: pb.DocumentRecord) -> DocumentRecord:
    return DocumentRecord(
        id=document.id,
        name=document.name,
        content_type=document.content_type,
        size_bytes=document.size_bytes,
        passages=document.passages,
        pages=document.pages,
        metadata=document.metadata if document.HasField("metadata") else None,
        principals=tuple(document.principals),
        create_time_ms=document.create_time_ms,
        object_key=document.object_key,
        idempotency_key=document.idempotency_key,
    )


def _record_proto(record: DocumentRecord) -> pb.DocumentRecord:
    return pb.DocumentRecord(
        id=record.id,
        name=record.name,
        content_type=record.content_type,
        size_bytes=record.size_bytes,
        passages=record.passages,
        pages=record.pages,
        metadata=_struct(record.metadata),
        principals=record.principals,
        create_time_ms=record.create_time_ms,
        object_key=record.object_key,
        idempotency_key=record.idempotency_key,
    )


def _struct(metadata: object) -> Struct | None:
    """Metadata as a caller's message, or a source's plain values."""
    if metadata is None or isinstance(metadata, Struct):
        return metadata
    struct = Struct()
    struct.update(cast("dict[str, Any]", metadata))
    return struct
