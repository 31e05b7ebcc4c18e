"""PassageService, for ingest alone."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from sealcomb.internal.v1 import passage_service_pb2 as pb
from sealcomb.internal.v1.passage_service_pb2_grpc import PassageServiceServicer
from sealcomb.v1 import search_service_pb2
from services.common import paging
from services.common.context import current_account
from services.common.errors import NotFound, invalid
from services.vectorstore import metadata, writing
from services.vectorstore.catalog import Catalog, Descriptor
from services.vectorstore.documents import DocumentState, Stored
from services.vectorstore.index import Metric, Vectors
from services.vectorstore.lexical import analyse
from services.vectorstore.operations import Document, Passage, PutDocument
from services.vectorstore.residency import Residency, Use
from services.vectorstore.searching import Finder, Mode, WantedPassages
from services.vectorstore.servicers import convert

_LISTING = "documents"
_PASSAGES_MAX = 20_000
_QUERY_CHARS_MAX = 8192
_PRINCIPALS_MAX = 100
# Sources name everybody who may see a document.
_DOCUMENT_PRINCIPALS_MAX = 256
_NAME_CHARS_MAX = 1024
_HEADING_CHARS_MAX = 200
_TOP_K_MAX = 200
_MODES = {
    search_service_pb2.SEARCH_MODE_UNSPECIFIED: Mode.HYBRID,
    search_service_pb2.SEARCH_MODE_HYBRID: Mode.HYBRID,
    search_service_pb2.SEARCH_MODE_DENSE: Mode.DENSE,
    search_service_pb2.SEARCH_MODE_LEXICAL: Mode.LEXICAL,
}


class Passages(PassageServiceServicer):
    """Documents and passages of the account's text collections."""

    def __init__(self, catalog: Catalog, residency: Residency, finder: Finder, workers: Executor) -> None:
        self._catalog = catalog
        self._residency = residency
        self._finder = finder
        self._workers = workers

    async def ResolveCollection(
        self, request: pb.ResolveCollectionRequest, context: Any
    ) -> pb.ResolveCollectionResponse:
        """Describes a collection by name."""
        descriptor = await self._catalog.get(convert.collection_name(request.collection))
        earlier = None
        if request.idempotency_key and descriptor.embedder:
            state = _state(await self._residency.use(descriptor))
            earlier = state.document_by_key(request.idempotency_key)
        return pb.ResolveCollectionResponse(
            collection_id=descriptor.id,
            dimension=descriptor.dimension,
            embedder=descriptor.embedder,
            embedder_fingerprint=descriptor.embedder_fingerprint,
            document=None if earlier is None else _record(earlier),
        )

    async def PutDocument(self, request: pb.PutDocumentRequest, context: Any) -> pb.PutDocumentResponse:
        """Puts a document and its passages, all at once."""
        use = await self._residency.use(await self._catalog.by_id(request.collection_id))
        writing.require_text(use)
        operation = _put(request, use.descriptor)
        texts = [passage.text for passage in operation.passages]
        # A millisecond a passage, so off the event loop.
        analysed = await asyncio.get_running_loop().run_in_executor(self._workers, analyse, texts)
        # Opened again: the collection may have been closed while the texts were analysed.
        use = await self._residency.use(use.descriptor)
        fields = metadata.fields_of(operation.document.metadata)
        stored = await writing.put_document(use, replace(operation, analysed=analysed), fields)
        return pb.PutDocumentResponse(document=_record(stored))

    async def GetDocumentRecord(
        self, request: pb.GetDocumentRecordRequest, context: Any
    ) -> pb.GetDocumentRecordResponse:
        """Returns one document record."""
        if bool(request.id) == bool(request.idempotency_key):
            raise invalid("id", "set exactly one of id and idempotency_key")
        use = await self._text(request.collection, request.collection_id)
        state = _state(use)
        stored = state.document(request.id) if request.id else state.document_by_key(request.idempotency_key)
        if stored is None:
            raise _no_such_document()
        return pb.GetDocumentRecordResponse(collection_id=use.descriptor.id, document=_record(stored))

    async def ListDocumentRecords(
        self, request: pb.ListDocumentRecordsRequest, context: Any
    ) -> pb.ListDocumentRecordsResponse:
        """Lists document records in order of creation."""
        use = await self._text(request.collection)
        account, id_ = current_account(), use.descriptor.id
        after = 0
        if request.page_token:
            after = int.from_bytes(paging.decode(use.key, account, _LISTING, id_, request.page_token), "big")
        size = paging.page_size(request.page_size)
        found = list(islice(_state(use).documents_after(after), size + 1))
        token = ""
        if len(found) > size:
            position = found[size - 1].document.sequence.to_bytes(8, "big")
            token = paging.encode(use.key, account, _LISTING, id_, position)
        return pb.ListDocumentRecordsResponse(documents=map(_record, found[:size]), next_page_token=token)

    async def DeleteDocumentRecord(
        self, request: pb.DeleteDocumentRecordRequest, context: Any
    ) -> pb.DeleteDocumentRecordResponse:
        """Deletes a document's record and passages, all at once."""
        use = await self._text(request.collection, request.collection_id)
        stored = await writing.delete_document(use, request.id)
        if stored is None:
            raise _no_such_document()
        return pb.DeleteDocumentRecordResponse(
            collection_id=use.descriptor.id, object_key=stored.document.object_key
        )

    async def SearchPassages(
        self, request: pb.SearchPassagesRequest, context: Any
    ) -> pb.SearchPassagesResponse:
        """Ranks passages by vector, by words or by both."""
        mode = _MODES.get(request.mode)
        if mode is None:
            raise invalid("mode", "is not a search mode")
        k = convert.top_k(request.top_k, most=_TOP_K_MAX)
        if mode is not Mode.DENSE and not 1 <= len(request.query) <= _QUERY_CHARS_MAX:
            raise invalid("query", f"must have 1 to {_QUERY_CHARS_MAX} characters")
        if len(request.as_principals) > _PRINCIPALS_MAX:
            raise invalid("as_principals", f"has more than {_PRINCIPALS_MAX}")
        condition = convert.filter_of(request.filter) if request.HasField("filter") else None
        use = await self._text(request.collection)
        vector = None if mode is Mode.LEXICAL else _vector(request.vector_f32, use.descriptor, "vector")
        principals = list(request.as_principals)
        wanted = WantedPassages(
            mode, vector, request.query, k, condition, principals, request.one_per_document
        )
        hits = await self._finder.search_passages(use, wanted)
        response = pb.SearchPassagesResponse()
        for hit in hits:
            message = response.hits.add(
                document_id=hit.document.id,
                document_name=hit.document.name,
                page=hit.passage.page,
                chunk_index=hit.passage.index,
                text=hit.passage.text,
                score=hit.score,
                heading=hit.passage.heading,
            )
            if hit.document.metadata:
                message.metadata.ParseFromString(hit.document.metadata)
        return response

    async def _text(self, name: str, id_: str = "") -> Use:
        if id_:
            descriptor = await self._catalog.by_id(id_)
        else:
            descriptor = await self._catalog.get(convert.collection_name(name))
        use = await self._residency.use(descriptor)
        writing.require_text(use)
        return use


def _state(use: Use) -> DocumentState:
    state = use.collection.state
    if not isinstance(state, DocumentState):
        raise writing.not_text()
    return state


def _put(request: pb.PutDocumentRequest, descriptor: Descriptor) -> PutDocument:
    record = request.document
    if not 1 <= len(record.id) <= convert.ID_CHARS_MAX or "#" in record.id:
        raise invalid("document.id", f"must have 1 to {convert.ID_CHARS_MAX} characters, none of them #")
    if not 1 <= len(record.name) <= _NAME_CHARS_MAX:
        raise invalid("document.name", f"must have 1 to {_NAME_CHARS_MAX} characters")
    if len(record.principals) > _DOCUMENT_PRINCIPALS_MAX:
        raise invalid("document.principals", f"has more than {_DOCUMENT_PRINCIPALS_MAX}")
    if len(request.passages) > _PASSAGES_MAX:
        raise invalid("passages", f"has more than {_PASSAGES_MAX}")
    if len({passage.index for passage in request.passages}) != len(request.passages):
        raise invalid("passages", "have an index twice")
    document = Document(
        id=record.id,
        name=record.name,
        content_type=record.content_type,
        size_bytes=record.size_bytes,
        pages=record.pages,
        metadata=metadata.encode(record.metadata, "document.metadata"),
        principals=tuple(dict.fromkeys(record.principals)),
        create_time_ms=record.create_time_ms,
        object_key=record.object_key,
        idempotency_key=record.idempotency_key,
    )
    passages, vectors = [], []
    for place, passage in enumerate(request.passages):
        vectors.append(_vector(passage.vector_f32, descriptor, f"passages[{place}].vector"))
        if len(passage.text.encode()) > convert.TEXT_BYTES_MAX:
            raise invalid(f"passages[{place}].text", f"is larger than {convert.TEXT_BYTES_MAX} bytes")
        if len(passage.heading) > _HEADING_CHARS_MAX:
            raise invalid(f"passages[{place}].heading", f"has more than {_HEADING_CHARS_MAX} characters")
        passages.append(Passage(passage.index, passage.page, passage.text, passage.heading))
    stacked = np.stack(vectors) if vectors else np.empty((0, descriptor.dimension), np.float32)
    if len(request.replaces_document_id) > convert.ID_CHARS_MAX:
        raise invalid("replaces_document_id", f"is longer than {convert.ID_CHARS_MAX} characters")
    return PutDocument(document, passages, stacked, replaces=request.replaces_document_id)


def _vector(raw: bytes, descriptor: Descriptor, field: str) -> Vectors:
    return convert.vector((), raw, descriptor.dimension, Metric.COSINE, field)


def _record(stored: Stored) -> pb.DocumentRecord:
    document = stored.document
    record = pb.DocumentRecord(
        id=document.id,
        name=document.name,
        content_type=document.content_type,
        size_bytes=document.size_bytes,
        passages=stored.count,
        pages=document.pages,
        principals=document.principals,
        create_time_ms=document.create_time_ms,
        object_key=document.object_key,
        idempotency_key=document.idempotency_key,
    )
    if document.metadata:
        record.metadata.ParseFromString(document.metadata)
    return record


def _no_such_document() -> NotFound:
    return NotFound("no such document", reason="DOCUMENT_NOT_FOUND")
