"""Collections."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from google.protobuf.message import DecodeError

from sealcomb.v1 import collection_service_pb2 as collections_pb
from sealcomb.v1 import collection_service_pb2_grpc
from sealcomb_client.transport import Transport

_TIMEOUT_S = 30.0
_METRICS = {
    "cosine": collections_pb.METRIC_COSINE,
    "dot": collections_pb.METRIC_DOT,
    "l2": collections_pb.METRIC_L2,
}
_RESEAL_TIMEOUT_S = 120.0
_TRANSFER_TIMEOUT_S = 45.0
_EXPORT_MAGIC = b"SCEXPT01"
_FRAME_BYTES_MAX = 5 * 1024 * 1024


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
        default_ef: int = 0,
        indexed: Iterable[str] | None = None,
        idempotency_key: str = "",
        timeout_s: float = _TIMEOUT_S,
    ) -> collections_pb.Collection:
        """A new collection: of text with an embedder ("default"), or of your own vectors with a dimension.

        `indexed` are the metadata fields that filters may name; None: all.
        """
        if metric.lower() not in _METRICS:
            raise ValueError(f"metric must be one of {', '.join(_METRICS)}")
        request = collections_pb.CreateCollectionRequest(
            name=name,
            dimension=dimension,
            metric=_METRICS[metric.lower()],
            embedder=embedder,
            default_ef=default_ef,
            metadata_index=None if indexed is None else collections_pb.MetadataIndex(fields=indexed),
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

    def update(
        self,
        name: str,
        *,
        default_ef: int | None = None,
        indexed: Iterable[str] | None = None,
        index_all: bool = False,
        timeout_s: float = _TIMEOUT_S,
    ) -> collections_pb.Collection:
        """Changes what is given: the default `ef` of queries, and which metadata fields are indexed."""
        request = collections_pb.UpdateCollectionRequest(
            collection=name,
            default_ef=default_ef,
            metadata_index=None if indexed is None else collections_pb.MetadataIndex(fields=indexed),
            index_all_metadata=index_all,
        )
        return self._transport.unary(self._stub.UpdateCollection, request, timeout_s=timeout_s).collection

    def stats(self, name: str, *, timeout_s: float = _TIMEOUT_S) -> collections_pb.GetCollectionStatsResponse:
        """What a collection holds and takes."""
        request = collections_pb.GetCollectionStatsRequest(collection=name)
        return self._transport.unary(self._stub.GetCollectionStats, request, timeout_s=timeout_s)

    def reseal(
        self, name: str, *, timeout_s: float = _RESEAL_TIMEOUT_S
    ) -> collections_pb.ResealCollectionResponse:
        """Seals a collection under its newest data key (scope keys)."""
        request = collections_pb.ResealCollectionRequest(collection=name)
        return self._transport.unary(self._stub.ResealCollection, request, timeout_s=timeout_s)

    def delete(self, name: str, *, timeout_s: float = _TIMEOUT_S) -> str:
        """Destroys a collection's keys and data, and gives the signed receipt."""
        request = collections_pb.DeleteCollectionRequest(collection=name)
        method = self._stub.DeleteCollection
        return self._transport.unary(method, request, timeout_s=timeout_s, safe=False).receipt

    def export(
        self, name: str, *, clear: bool = False, timeout_s: float = _TRANSFER_TIMEOUT_S
    ) -> Iterator[collections_pb.ExportFrame]:
        """All points as frames, for `import_frames`; sealed for this account unless `clear`."""
        form = collections_pb.EXPORT_FORM_CLEAR if clear else collections_pb.EXPORT_FORM_SEALED
        request = collections_pb.ExportCollectionRequest(collection=name, form=form)
        for part in self._transport.download(self._stub.ExportCollection, request, timeout_s=timeout_s):
            yield part.frame

    def import_frames(
        self,
        name: str,
        frames: Callable[[], Iterable[collections_pb.ExportFrame]],
        *,
        timeout_s: float = _TRANSFER_TIMEOUT_S,
    ) -> collections_pb.Collection:
        """Makes a new collection of an export's frames, which `frames` gives anew for a repeat."""

        def requests() -> Iterator[collections_pb.ImportCollectionRequest]:
            return (
                collections_pb.ImportCollectionRequest(collection=name, frame=frame) for frame in frames()
            )

        answer = self._transport.upload(self._stub.ImportCollection, requests, timeout_s=timeout_s)
        return answer.collection


def write_frames(
    frames: Iterable[collections_pb.ExportFrame], to: BinaryIO
) -> Iterator[collections_pb.ExportFrame]:
    """Writes frames into a file, each with its length before it; gives them on, as progress."""
    to.write(_EXPORT_MAGIC)
    for frame in frames:
        raw = frame.SerializeToString()
        to.write(len(raw).to_bytes(4, "little") + raw)
        yield frame


def read_frames(file: BinaryIO) -> Iterator[collections_pb.ExportFrame]:
    """The frames in a file of `write_frames`. Raises ValueError for another file or one that was cut."""
    if file.read(len(_EXPORT_MAGIC)) != _EXPORT_MAGIC:
        raise ValueError("this is no export of a collection")
    while head := file.read(4):
        size = int.from_bytes(head, "little")
        raw = file.read(size) if size <= _FRAME_BYTES_MAX else b""
        if len(head) < 4 or len(raw) < size:
            raise ValueError("the export was cut or changed")
        try:
            yield collections_pb.ExportFrame.FromString(raw)
        except DecodeError:
            raise ValueError("the export was cut or changed") from None
