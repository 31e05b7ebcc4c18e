"""Collections, points and documents."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sealcomb.v1 import (
    collection_service_pb2 as collections_pb,
)
from sealcomb.v1 import (
    collection_service_pb2_grpc,
    document_service_pb2_grpc,
    vector_service_pb2_grpc,
)
from sealcomb.v1 import (
    document_service_pb2 as documents_pb,
)
from sealcomb.v1 import (
    vector_service_pb2 as vectors_pb,
)
from sealcomb_client.transport import Transport
from sealcomb_client.values import FilterLike, filter_of, struct_of, vector_bytes

_CHUNK_BYTES = 256 * 1024
_TIMEOUT_S = 30.0
_UPLOAD_TIMEOUT_S = 600.0
_METRICS = {
    "cosine": collections_pb.METRIC_COSINE,
    "dot": collections_pb.METRIC_DOT,
    "l2": collections_pb.METRIC_L2,
}


class Collections:
    """CollectionService."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = collection_service_pb2_grpc.CollectionServiceStub(transport.channel)

    def create(
        self,
        name: str,
        *,
        embedder: str = "",
        dimension: int = 0,
        metric: str = "cosine",
        idempotency_key: str = "",
        timeout_s: float = _TIMEOUT_S,
    ) -> collections_pb.Collection:
        """A new collection: of text with an embedder ("default"), or of your own vectors with a dimension."""
        if metric.lower() not in _METRICS:
            raise ValueError(f"metric must be one of {', '.join(_METRICS)}")
        request = collections_pb.CreateCollectionRequest(
            name=name,
            dimension=dimension,
            metric=_METRICS[metric.lower()],
            embedder=embedder,
            idempotency_key=idempotency_key or secrets.token_hex(16),
        )
        return self._transport.unary(self._stub.CreateCollection, request, timeout_s=timeout_s).collection

    def get(self, name: str, *, timeout_s: float = _TIMEOUT_S) -> collections_pb.Collection:
        """One collection."""
        request = collections_pb.GetCollectionRequest(collection=name)
        return self._transport.unary(self._stub.GetCollection, request, timeout_s=timeout_s).collection

    def list(
        self, *, page_size: int = 0, timeout_s: float = _TIMEOUT_S
    ) -> Iterator[collections_pb.Collection]:
        """All collections, page by page."""
        request = collections_pb.ListCollectionsRequest(page_size=page_size)
        while True:
            response = self._transport.unary(self._stub.ListCollections, request, timeout_s=timeout_s)
            yield from response.collections
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def delete(self, name: str, *, timeout_s: float = _TIMEOUT_S) -> str:
        """Destroys a collection's keys and data, and gives the signed receipt."""
        request = collections_pb.DeleteCollectionRequest(collection=name)
        method = self._stub.DeleteCollection
        return self._transport.unary(method, request, timeout_s=timeout_s, safe=False).receipt


def point(
    id: str,  # noqa: A002  (the API's own word)
    vector: Iterable[float] | bytes,
    *,
    metadata: Mapping[str, Any] | None = None,
    text: str = "",
) -> vectors_pb.Point:
    """A point to upsert."""
    return vectors_pb.Point(id=id, vector_f32=vector_bytes(vector), metadata=struct_of(metadata), text=text)


class Points:
    """VectorService."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = vector_service_pb2_grpc.VectorServiceStub(transport.channel)

    def upsert(
        self, collection: str, points: Iterable[vectors_pb.Point], *, timeout_s: float = _TIMEOUT_S
    ) -> int:
        """Writes points, all or none (at most 1,000 a call); returns how many. See `point`."""
        request = vectors_pb.UpsertRequest(collection=collection, points=points)
        return self._transport.unary(self._stub.Upsert, request, timeout_s=timeout_s).upserted

    def get(
        self,
        collection: str,
        ids: Iterable[str],
        *,
        with_vectors: bool = False,
        timeout_s: float = _TIMEOUT_S,
    ) -> Sequence[vectors_pb.Point]:
        """Those of the points that exist."""
        request = vectors_pb.GetPointsRequest(collection=collection, ids=ids, with_vectors=with_vectors)
        return self._transport.unary(self._stub.GetPoints, request, timeout_s=timeout_s).points

    def list(
        self,
        collection: str,
        *,
        filter: FilterLike = None,  # noqa: A002
        with_vectors: bool = False,
        page_size: int = 0,
        timeout_s: float = _TIMEOUT_S,
    ) -> Iterator[vectors_pb.Point]:
        """All points in order of id, page by page."""
        request = vectors_pb.ListPointsRequest(
            collection=collection, filter=filter_of(filter), with_vectors=with_vectors, page_size=page_size
        )
        while True:
            response = self._transport.unary(self._stub.ListPoints, request, timeout_s=timeout_s)
            yield from response.points
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def delete(
        self,
        collection: str,
        ids: Iterable[str] = (),
        *,
        filter: FilterLike = None,  # noqa: A002
        timeout_s: float = _TIMEOUT_S,
    ) -> int:
        """Deletes points by ids or by filter; returns how many there were."""
        request = vectors_pb.DeletePointsRequest(collection=collection, ids=ids, filter=filter_of(filter))
        return self._transport.unary(self._stub.DeletePoints, request, timeout_s=timeout_s).deleted

    def count(self, collection: str, *, filter: FilterLike = None, timeout_s: float = _TIMEOUT_S) -> int:  # noqa: A002
        """How many points there are, or match."""
        request = vectors_pb.CountPointsRequest(collection=collection, filter=filter_of(filter))
        return self._transport.unary(self._stub.CountPoints, request, timeout_s=timeout_s).count

    def query(
        self,
        collection: str,
        vector: Iterable[float] | bytes,
        *,
        top_k: int = 10,
        filter: FilterLike = None,  # noqa: A002
        ef: int = 0,
        with_vectors: bool = False,
        with_metadata: bool = True,
        with_text: bool = True,
        timeout_s: float = _TIMEOUT_S,
    ) -> Sequence[vectors_pb.Hit]:
        """The nearest points, nearest first."""
        request = vectors_pb.QueryRequest(
            collection=collection,
            vector_f32=vector_bytes(vector),
            top_k=top_k,
            filter=filter_of(filter),
            ef=ef,
            with_vectors=with_vectors,
            with_metadata=with_metadata,
            with_text=with_text,
        )
        return self._transport.unary(self._stub.Query, request, timeout_s=timeout_s).hits

    def query_batch(
        self, collection: str, queries: Iterable[vectors_pb.QueryRequest], *, timeout_s: float = _TIMEOUT_S
    ) -> Sequence[vectors_pb.QueryResponse]:
        """The results of up to 256 queries, in order."""
        request = vectors_pb.QueryBatchRequest(collection=collection, queries=queries)
        return self._transport.unary(self._stub.QueryBatch, request, timeout_s=timeout_s).results


class Documents:
    """DocumentService."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = document_service_pb2_grpc.DocumentServiceStub(transport.channel)

    def upload(
        self,
        collection: str,
        source: Path | bytes,
        *,
        name: str = "",
        content_type: str = "",
        metadata: Mapping[str, Any] | None = None,
        principals: Iterable[str] = (),
        idempotency_key: str = "",
        timeout_s: float = _UPLOAD_TIMEOUT_S,
    ) -> documents_pb.Document:
        """Uploads a file or bytes; returns once it is searchable. A file's own name is the default name."""
        if not name and isinstance(source, Path):
            name = source.name
        header = documents_pb.UploadDocumentHeader(
            collection=collection,
            name=name,
            content_type=content_type,
            metadata=struct_of(metadata),
            principals=principals,
            # A repeat after a lost answer finds the document that the first try made.
            idempotency_key=idempotency_key or secrets.token_hex(16),
        )
        response = self._transport.upload(
            self._stub.UploadDocument, lambda: _upload_parts(header, source), timeout_s=timeout_s
        )
        return response.document

    def get(self, collection: str, id: str, *, timeout_s: float = _TIMEOUT_S) -> documents_pb.Document:  # noqa: A002
        """Describes one document."""
        request = documents_pb.GetDocumentRequest(collection=collection, id=id)
        return self._transport.unary(self._stub.GetDocument, request, timeout_s=timeout_s).document

    def list(
        self, collection: str, *, page_size: int = 0, timeout_s: float = _TIMEOUT_S
    ) -> Iterator[documents_pb.Document]:
        """All documents in order of creation, page by page."""
        request = documents_pb.ListDocumentsRequest(collection=collection, page_size=page_size)
        while True:
            response = self._transport.unary(self._stub.ListDocuments, request, timeout_s=timeout_s)
            yield from response.documents
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def download(
        self,
        collection: str,
        id: str,  # noqa: A002
        into: BinaryIO,
        *,
        timeout_s: float = _UPLOAD_TIMEOUT_S,
    ) -> documents_pb.Document:
        """Writes the original into a binary file; returns its description.

        The bytes are only known to be whole when this returns.
        """
        request = documents_pb.DownloadDocumentRequest(collection=collection, id=id)
        document = documents_pb.Document()
        for part in self._transport.download(self._stub.DownloadDocument, request, timeout_s=timeout_s):
            if part.WhichOneof("part") == "document":
                document = part.document
            else:
                into.write(part.chunk)
        return document

    def delete(self, collection: str, id: str, *, timeout_s: float = _TIMEOUT_S) -> None:  # noqa: A002
        """Deletes a document, its passages and its original."""
        request = documents_pb.DeleteDocumentRequest(collection=collection, id=id)
        self._transport.unary(self._stub.DeleteDocument, request, timeout_s=timeout_s, safe=False)


def _upload_parts(
    header: documents_pb.UploadDocumentHeader, source: Path | bytes
) -> Iterator[documents_pb.UploadDocumentRequest]:
    yield documents_pb.UploadDocumentRequest(header=header)
    if isinstance(source, bytes):
        for start in range(0, len(source), _CHUNK_BYTES):
            yield documents_pb.UploadDocumentRequest(chunk=source[start : start + _CHUNK_BYTES])
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield documents_pb.UploadDocumentRequest(chunk=chunk)
