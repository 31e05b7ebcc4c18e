"""Points: the content of collections of the caller's own vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from sealcomb.v1 import vector_service_pb2 as vectors_pb
from sealcomb.v1 import vector_service_pb2_grpc
from sealcomb_client.transport import Transport
from sealcomb_client.values import FilterLike, filter_of, struct_of, vector_bytes

_TIMEOUT_S = 30.0
_BATCH_POINTS = 500
_BATCH_BYTES = 2 * 1024 * 1024
# A stream is short, so that it ends well before the service's bound.
_STREAM_BATCHES = 16


def point(
    id: str,  # noqa: A002  (the API's own word)
    vector: Iterable[float] | bytes,
    *,
    metadata: Mapping[str, Any] | None = None,
    text: str = "",
    version: int = 0,
) -> vectors_pb.Point:
    """A point to upsert; `version` counts only in a conditional write."""
    return vectors_pb.Point(
        id=id, vector_f32=vector_bytes(vector), metadata=struct_of(metadata), text=text, version=version
    )


def point_update(
    id: str,  # noqa: A002
    *,
    metadata: Mapping[str, Any] | None = None,
    text: str | None = None,
    version: int = 0,
) -> vectors_pb.PointUpdate:
    """An update; what is None stays."""
    return vectors_pb.PointUpdate(id=id, metadata=struct_of(metadata), text=text, version=version)


@dataclass(frozen=True, slots=True)
class Upserted:
    """What `upsert_many` did; `failures` are the first bad points of each stream, by place in the whole."""

    upserted: int = 0
    failed: int = 0
    failures: tuple[vectors_pb.PointFailure, ...] = ()

    def and_then(self, answer: vectors_pb.UpsertStreamResponse, position: int) -> Upserted:
        """This and what the stream did that began at a place."""
        for failure in answer.failures:
            failure.position += position
        return Upserted(
            self.upserted + answer.upserted, self.failed + answer.failed, (*self.failures, *answer.failures)
        )


class Points:
    """VectorService."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = vector_service_pb2_grpc.VectorServiceStub(transport.channel)

    def upsert(
        self,
        collection: str,
        points: Iterable[vectors_pb.Point],
        *,
        if_unchanged: bool = False,
        timeout_s: float = _TIMEOUT_S,
    ) -> int:
        """Writes points, all or none (at most 1,000 a call); returns how many. See `point`.

        `if_unchanged` refuses with VERSION_CONFLICT unless every point still has the version that it carries,
        0 for one that must not exist yet.
        """
        request = vectors_pb.UpsertRequest(collection=collection, points=points, if_unchanged=if_unchanged)
        # Repeated after a lost answer, a conditional write would refuse itself.
        return self._transport.unary(
            self._stub.Upsert, request, timeout_s=timeout_s, safe=not if_unchanged
        ).upserted

    def upsert_many(
        self,
        collection: str,
        points: Iterable[vectors_pb.Point],
        *,
        atomic_batches: bool = False,
        timeout_s: float = _TIMEOUT_S,
    ) -> Upserted:
        """Writes any number of points in batches; bad ones are left out and named by their place.

        With `atomic_batches` a batch with a bad point is left out as a whole. `timeout_s` is for each stream
        of some thousand points. After an error, what was written before it stays; to repeat all is safe.
        """
        total, position = Upserted(), 0
        batches = _batches(points)
        while group := list(islice(batches, _STREAM_BATCHES)):
            answer = self._transport.upload(
                self._stub.UpsertStream,
                partial(_stream, collection, group, atomic_batches),
                timeout_s=timeout_s,
            )
            total = total.and_then(answer, position)
            position += sum(map(len, group))
        return total

    def update(
        self,
        collection: str,
        updates: Iterable[vectors_pb.PointUpdate],
        *,
        if_unchanged: bool = False,
        timeout_s: float = _TIMEOUT_S,
    ) -> vectors_pb.UpdatePointsResponse:
        """Replaces metadata, text or both of points that exist; vectors stay. See `point_update`."""
        request = vectors_pb.UpdatePointsRequest(
            collection=collection, updates=updates, if_unchanged=if_unchanged
        )
        return self._transport.unary(
            self._stub.UpdatePoints, request, timeout_s=timeout_s, safe=not if_unchanged
        )

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
        versions: Iterable[int] = (),
        timeout_s: float = _TIMEOUT_S,
    ) -> int:
        """Deletes points by ids or by filter; returns how many there were.

        With `versions`, one for each id, only if every point still has its version; else VERSION_CONFLICT.
        """
        versions = list(versions)
        request = vectors_pb.DeletePointsRequest(
            collection=collection, ids=ids, filter=filter_of(filter), versions=versions
        )
        return self._transport.unary(
            self._stub.DeletePoints, request, timeout_s=timeout_s, safe=not versions
        ).deleted

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

    def explain(
        self,
        collection: str,
        vector: Iterable[float] | bytes,
        *,
        top_k: int = 10,
        filter: FilterLike = None,  # noqa: A002
        ef: int = 0,
        timeout_s: float = _TIMEOUT_S,
    ) -> vectors_pb.QueryResponse:
        """The same query with how its points were found and what it took."""
        request = vectors_pb.QueryRequest(
            collection=collection,
            vector_f32=vector_bytes(vector),
            top_k=top_k,
            filter=filter_of(filter),
            ef=ef,
            explain=True,
        )
        return self._transport.unary(self._stub.Query, request, timeout_s=timeout_s)

    def query_batch(
        self, collection: str, queries: Iterable[vectors_pb.QueryRequest], *, timeout_s: float = _TIMEOUT_S
    ) -> Sequence[vectors_pb.QueryResponse]:
        """The results of up to 256 queries, in order."""
        request = vectors_pb.QueryBatchRequest(collection=collection, queries=queries)
        return self._transport.unary(self._stub.QueryBatch, request, timeout_s=timeout_s).results


def _batches(points: Iterable[vectors_pb.Point]) -> Iterator[list[vectors_pb.Point]]:
    batch: list[vectors_pb.Point] = []
    size = 0
    for one in points:
        more = one.ByteSize()
        if batch and (len(batch) == _BATCH_POINTS or size + more > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += more
    if batch:
        yield batch


def _stream(
    collection: str, batches: Iterable[list[vectors_pb.Point]], atomic_batches: bool
) -> Iterator[vectors_pb.UpsertStreamRequest]:
    for batch in batches:
        yield vectors_pb.UpsertStreamRequest(
            collection=collection, points=batch, atomic_batches=atomic_batches
        )
