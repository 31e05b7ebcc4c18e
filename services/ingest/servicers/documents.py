"""DocumentService: requests to the domain, records to responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import grpc.aio
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from sealcomb.v1 import document_service_pb2 as pb
from sealcomb.v1 import document_service_pb2_grpc as stubs
from services.common import paging
from services.common.errors import invalid
from services.ingest.documents import Documents
from services.ingest.records import DocumentRecord, UploadHeader
from services.ingest.resealing import Place, Resealer
from services.ingest.servicers.checks import check_collection, check_metadata, check_principals, check_text
from services.ingest.servicers.pages import Pages
from services.ingest.uploads import Uploads

NAME_CHARS_MAX = 1024
CONTENT_TYPE_CHARS_MAX = 255
IDEMPOTENCY_KEY_CHARS_MAX = 256
CHUNK_BYTES_MAX = 1024 * 1024
_ID_CHARS_MAX = 128
_PAGE_SIZE_MAX = 200
# Below what gRPC clients take by default (4 MiB).
_PAGE_BYTES_MAX = 3 * 1024 * 1024
_PAGE_TOKEN_CHARS_MAX = 4096
# In a page token: an original before it did not open. No id begins with it.
_DAMAGED = "!"
_Context = grpc.aio.ServicerContext[Any, Any]


class DocumentServicer(stubs.DocumentServiceServicer):
    """The edge's side of documents."""

    def __init__(self, uploads: Uploads, documents: Documents, resealer: Resealer, pages: Pages) -> None:
        self._resealer = resealer
        self._pages = pages
        self._uploads = uploads
        self._documents = documents

    async def UploadDocument(
        self, request_iterator: AsyncIterator[pb.UploadDocumentRequest], context: _Context
    ) -> pb.UploadDocumentResponse:
        """Takes one document in."""
        header = await _header(request_iterator)
        collection, record = await self._uploads.upload(header, _chunks(request_iterator))
        self._documents.sweep_soon(header.collection, collection.id)
        return pb.UploadDocumentResponse(document=document_proto(record))

    async def GetDocument(self, request: pb.GetDocumentRequest, context: _Context) -> pb.GetDocumentResponse:
        """Describes a document."""
        record = await self._documents.get(check_collection(request.collection), _id(request.id))
        return pb.GetDocumentResponse(document=document_proto(record))

    async def DownloadDocument(
        self, request: pb.DownloadDocumentRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadDocumentResponse]:
        """The document, then its original in chunks."""
        download = await self._documents.download(check_collection(request.collection), _id(request.id))
        yield pb.DownloadDocumentResponse(document=document_proto(download.record))
        async for part in download.parts:
            for start in range(0, len(part), CHUNK_BYTES_MAX):
                yield pb.DownloadDocumentResponse(chunk=part[start : start + CHUNK_BYTES_MAX])

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: _Context
    ) -> pb.ListDocumentsResponse:
        """A page of documents, fewer than asked for where they would make too large a message."""
        collection = check_collection(request.collection)
        check_text("page_token", request.page_token, _PAGE_TOKEN_CHARS_MAX, 0)
        size = paging.page_size(request.page_size, most=_PAGE_SIZE_MAX)
        while True:
            records, token = await self._documents.list_page(collection, size, request.page_token)
            response = pb.ListDocumentsResponse(
                documents=[document_proto(record) for record in records], next_page_token=token
            )
            if response.ByteSize() <= _PAGE_BYTES_MAX or size == 1:
                return response
            size = max(1, size // 4)

    async def ResealDocuments(
        self, request: pb.ResealDocumentsRequest, context: _Context
    ) -> pb.ResealDocumentsResponse:
        """Seals some of a collection's originals anew."""
        collection = check_collection(request.collection)
        listing = "reseal:" + collection
        began_ms, last = await self._pages.decode(listing, request.page_token)
        place = Place(began_ms, last.removeprefix(_DAMAGED), last.startswith(_DAMAGED))
        page = await self._resealer.page(collection, place)
        response = pb.ResealDocumentsResponse(
            looked_at=page.looked_at, resealed=page.resealed, damaged=page.damaged
        )
        if page.following is not None:
            mark = _DAMAGED if page.following.damaged else ""
            position = (page.following.began_ms, mark + page.following.last)
            response.next_page_token = await self._pages.encode(listing, position)
        if page.aged is not None:
            response.aged_data_keys = page.aged.left
            if page.aged.destroyable_s:
                response.destroyable_time.FromMicroseconds(int(page.aged.destroyable_s * 1e6))
        return response

    async def DeleteDocument(
        self, request: pb.DeleteDocumentRequest, context: _Context
    ) -> pb.DeleteDocumentResponse:
        """Deletes a document, its passages and its original."""
        await self._documents.delete(check_collection(request.collection), _id(request.id))
        return pb.DeleteDocumentResponse()


def document_proto(record: DocumentRecord) -> pb.Document:
    """A record as callers see it."""
    created = Timestamp()
    created.FromMilliseconds(record.create_time_ms)
    return pb.Document(
        id=record.id,
        name=record.name,
        content_type=record.content_type,
        size_bytes=record.size_bytes,
        passages=record.passages,
        pages=record.pages,
        metadata=cast("Struct | None", record.metadata),
        principals=record.principals,
        create_time=created,
    )


async def _header(requests: AsyncIterator[pb.UploadDocumentRequest]) -> UploadHeader:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "header":
        raise invalid("header", "must be the first message")
    header = first.header
    return UploadHeader(
        collection=check_collection(header.collection),
        name=check_text("name", header.name, NAME_CHARS_MAX),
        content_type=check_text("content_type", header.content_type, CONTENT_TYPE_CHARS_MAX, 0),
        metadata=check_metadata("metadata", header.metadata) if header.HasField("metadata") else None,
        principals=check_principals("principals", header.principals),
        idempotency_key=check_text("idempotency_key", header.idempotency_key, IDEMPOTENCY_KEY_CHARS_MAX, 0),
    )


async def _chunks(requests: AsyncIterator[pb.UploadDocumentRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        part = request.WhichOneof("part")
        if part == "header":
            raise invalid("header", "may only be the first message")
        if part is None:
            raise invalid("chunk", "is missing")
        if len(request.chunk) > CHUNK_BYTES_MAX:
            raise invalid("chunk", f"is larger than {CHUNK_BYTES_MAX} bytes")
        yield request.chunk


def _id(value: str) -> str:
    return check_text("id", value, _ID_CHARS_MAX)
