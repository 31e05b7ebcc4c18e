"""Documents."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sealcomb.v1 import document_service_pb2 as documents_pb
from sealcomb.v1 import document_service_pb2_grpc
from sealcomb_client.transport import Transport
from sealcomb_client.values import struct_of

_CHUNK_BYTES = 256 * 1024
_TIMEOUT_S = 30.0
_UPLOAD_TIMEOUT_S = 600.0


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
        sent: Callable[[int], None] | None = None,
        timeout_s: float = _UPLOAD_TIMEOUT_S,
    ) -> documents_pb.Document:
        """Uploads a file or bytes; returns once it is searchable. A file's own name is the default name.

        `sent` is told how many bytes have gone out so far, from another thread; from the start again if
        the upload has to be repeated.
        """
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
            self._stub.UploadDocument,
            lambda: _counted(_upload_parts(header, source), sent),
            timeout_s=timeout_s,
        )
        return response.document

    def reseal(
        self, collection: str, *, timeout_s: float = _TIMEOUT_S
    ) -> Iterator[documents_pb.ResealDocumentsResponse]:
        """Seals a collection's originals under its newest data key, page by page (scope keys)."""
        request = documents_pb.ResealDocumentsRequest(collection=collection)
        while True:
            page = self._transport.unary(self._stub.ResealDocuments, request, timeout_s=timeout_s)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

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


def _counted(
    parts: Iterator[documents_pb.UploadDocumentRequest], sent: Callable[[int], None] | None
) -> Iterator[documents_pb.UploadDocumentRequest]:
    size_bytes = 0
    for part in parts:
        # The next part is asked for once this one is on its way.
        yield part
        size_bytes += len(part.chunk)
        if sent is not None:
            sent(size_bytes)


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
