"""VectorService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from sealcomb.v1 import vector_service_pb2 as pb
from sealcomb.v1.vector_service_pb2_grpc import VectorServiceServicer
from services.common import paging
from services.common.context import current_account
from services.common.errors import invalid
from services.vectorstore import editing, writing
from services.vectorstore.catalog import Catalog
from services.vectorstore.filters import Filter
from services.vectorstore.index import Mask, Vectors
from services.vectorstore.nearest import Strategy, Work
from services.vectorstore.residency import Residency, Use
from services.vectorstore.searching import Answer, Finder, Wanted
from services.vectorstore.servicers import batches, convert
from services.vectorstore.servicers.forwarding import Forwarder
from services.vectorstore.servicers.stream import UpsertStream
from services.vectorstore.state import State

_LISTING = "points"
_STRATEGIES = {
    Strategy.EXACT_ALL: pb.Explanation.STRATEGY_EXACT_ALL,
    Strategy.EXACT_MATCHES: pb.Explanation.STRATEGY_EXACT_MATCHES,
    Strategy.WALK: pb.Explanation.STRATEGY_HNSW,
    Strategy.WALK_MATCHES: pb.Explanation.STRATEGY_HNSW_FILTERED,
}
_QUERIES_MAX = 256
# Frontiers of all queries of a batch together: bounds what one call can cost.
_BATCH_EF_MAX = 64 * 1024
# An answer stays well below what the edge lets through.
_ANSWER_BYTES_MAX = 3 * 1024 * 1024


class VectorPoints(VectorServiceServicer):
    """Points of the caller's collections."""

    def __init__(
        self, catalog: Catalog, residency: Residency, finder: Finder, forwarder: Forwarder | None = None
    ) -> None:
        self._forwarder = forwarder
        self._catalog = catalog
        self._residency = residency
        self._finder = finder

    async def Upsert(self, request: pb.UpsertRequest, context: Any) -> pb.UpsertResponse:
        """Writes points, all or none."""
        use = await self._use(request.collection)
        writing.require_points(use)
        descriptor = use.descriptor
        batch = batches.upsert(request.points, descriptor.dimension, descriptor.metric)
        versions = [point.version for point in request.points] if request.if_unchanged else None
        written = await editing.upsert(use, batch.operation, batch.fields, versions=versions)
        if written.refused:
            raise writing.too_many_fields(f"points[{written.refused[0]}].metadata")
        return pb.UpsertResponse(upserted=written.count, version=written.version)

    async def UpsertStream(
        self, request_iterator: AsyncIterator[pb.UpsertStreamRequest], context: Any
    ) -> pb.UpsertStreamResponse:
        """Writes points batch by batch."""
        forwarder = self._forwarder
        pass_on = None if forwarder is None else partial(_pass_on, forwarder, context)
        return await UpsertStream(self._use, pass_on).run(request_iterator)

    async def UpdatePoints(self, request: pb.UpdatePointsRequest, context: Any) -> pb.UpdatePointsResponse:
        """Replaces metadata or texts of points."""
        wanted = batches.update(request.updates)
        use = await self._use(request.collection)
        versions = [update.version for update in request.updates] if request.if_unchanged else None
        written = await editing.update(use, wanted.operation, wanted.fields, versions)
        return pb.UpdatePointsResponse(
            updated=written.count, missing=written.refused, version=written.version
        )

    async def GetPoints(self, request: pb.GetPointsRequest, context: Any) -> pb.GetPointsResponse:
        """Returns points by id."""
        ids = convert.point_ids(request.ids)
        state = (await self._use(request.collection)).collection.state
        rows = [row for row in map(state.row_of, ids) if row is not None]
        points = list(_points(state, rows, request.with_vectors))
        if sum(point.ByteSize() for point in points) > _ANSWER_BYTES_MAX:
            raise invalid("ids", "names more than one answer can hold; ask for fewer")
        return pb.GetPointsResponse(points=points)

    async def ListPoints(self, request: pb.ListPointsRequest, context: Any) -> pb.ListPointsResponse:
        """Pages through points in order of id."""
        condition = _condition(request)
        use = await self._use(request.collection)
        account, key = current_account(), use.key
        state, allowed = await self._finder.matching(use, condition)
        after = ""
        if request.page_token:
            after = paging.decode(key, account, _LISTING, use.descriptor.id, request.page_token).decode()
        size = paging.page_size(request.page_size)
        found = _listed(state, after, allowed)
        rows = list(islice(found, size + 1))
        points: list[pb.Point] = []
        total = 0
        for point in _points(state, rows[:size], request.with_vectors):
            total += point.ByteSize()
            if points and total > _ANSWER_BYTES_MAX:
                break
            points.append(point)
        token = ""
        if len(points) < len(rows):
            token = paging.encode(key, account, _LISTING, use.descriptor.id, points[-1].id.encode())
        return pb.ListPointsResponse(points=points, next_page_token=token)

    async def DeletePoints(self, request: pb.DeletePointsRequest, context: Any) -> pb.DeletePointsResponse:
        """Deletes points by ids or by filter."""
        condition = _condition(request)
        ids = convert.point_ids(request.ids)
        if bool(ids) == (condition is not None):
            raise invalid("ids", "set exactly one of ids and filter")
        versions = list(request.versions) or None
        if versions is not None and len(versions) != len(request.ids):
            raise invalid("versions", "must be as many as ids, or none")
        if versions is not None and len(ids) != len(request.ids):
            raise invalid("ids", "has an id twice, which with versions it must not")
        use = await self._use(request.collection)
        if condition is not None:
            deleted = await editing.delete_matching(use, self._finder, condition)
        else:
            deleted = await editing.delete(use, ids, versions)
        return pb.DeletePointsResponse(deleted=deleted)

    async def CountPoints(self, request: pb.CountPointsRequest, context: Any) -> pb.CountPointsResponse:
        """Counts points."""
        condition = _condition(request)
        state, allowed = await self._finder.matching(await self._use(request.collection), condition)
        return pb.CountPointsResponse(
            count=state.points if allowed is None else int(np.count_nonzero(allowed))
        )

    async def Query(self, request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        """Finds the nearest points."""
        use = await self._use(request.collection)
        descriptor = use.descriptor
        vector = convert.vector(
            request.vector, request.vector_f32, descriptor.dimension, descriptor.metric, "vector"
        )
        answer = await self._finder.query(use, _wanted(use, request, vector))
        response = pb.QueryResponse()
        _fill(response, request, answer)
        return response

    async def QueryBatch(self, request: pb.QueryBatchRequest, context: Any) -> pb.QueryBatchResponse:
        """Runs several queries."""
        if not 1 <= len(request.queries) <= _QUERIES_MAX:
            raise invalid("queries", f"must have 1 to {_QUERIES_MAX}")
        if sum(max(query.ef, query.top_k) for query in request.queries) > _BATCH_EF_MAX:
            raise invalid("queries", f"ask for more than {_BATCH_EF_MAX} by ef and top_k together")
        for position, query in enumerate(request.queries):
            if query.collection not in ("", request.collection):
                raise invalid(f"queries[{position}].collection", "must be empty or the batch's own")
        use = await self._use(request.collection)
        vectors = convert.vectors(request.queries, use.descriptor.dimension, use.descriptor.metric)
        wanted = [_wanted(use, *one) for one in zip(request.queries, vectors, strict=True)]
        response = pb.QueryBatchResponse(cost=1.0)
        total = 0
        for query, answer in zip(request.queries, await self._finder.query_many(use, wanted), strict=True):
            result = response.results.add()
            _fill(result, query, answer)
            total += result.ByteSize()
            if total > _ANSWER_BYTES_MAX * 16:
                raise invalid("queries", "have more hits than one answer can hold; ask for less")
            response.cost += answer.cost_ms
        return response

    async def _use(self, name: str) -> Use:
        return await self._residency.use(await self._catalog.get(convert.collection_name(name)))


def _wanted(use: Use, request: pb.QueryRequest, vector: Vectors) -> Wanted:
    default_ef = use.descriptor.default_ef
    k = convert.top_k(request.top_k)
    ef = convert.ef(request.ef, k) or max(default_ef, k) * bool(default_ef)
    return Wanted(vector, k, ef, _condition(request), request.with_vectors)


def _fill(response: pb.QueryResponse, request: pb.QueryRequest, answer: Answer) -> None:
    """Writes what was found into a response."""
    response.cost = 1.0 + answer.cost_ms
    if request.explain and answer.work is not None:
        response.explanation.CopyFrom(_explanation(answer.work))
    state, add = answer.state, response.hits.add
    if not (request.with_metadata or request.with_text or request.with_vectors):
        for row, score in zip(answer.rows, answer.scores, strict=True):
            add(id=state.id_of(row), score=score)
        return
    for hit in answer.hits:
        message = add(id=hit.point.id, score=hit.score)
        if hit.vector is not None:
            message.vector_f32 = _raw(hit.vector)
        if request.with_metadata and hit.point.metadata:
            message.metadata.ParseFromString(hit.point.metadata)
        if request.with_text:
            message.text = hit.point.text


async def _pass_on(
    forwarder: Forwarder,
    context: Any,
    batch: pb.UpsertStreamRequest,
    here: Callable[[], Awaitable[pb.UpsertStreamResponse]],
) -> pb.UpsertStreamResponse:
    return await forwarder.upsert_batch(batch, here, context)


def _condition(
    request: pb.ListPointsRequest | pb.DeletePointsRequest | pb.CountPointsRequest | pb.QueryRequest,
) -> Filter | None:
    return convert.filter_of(request.filter) if request.HasField("filter") else None


def _explanation(work: Work) -> pb.Explanation:
    return pb.Explanation(
        strategy=_STRATEGIES[work.strategy],
        matches=work.matches,
        compared=work.compared,
        visited=work.visited,
        ef=work.ef,
        walk_given_up=work.given_up,
    )


def _listed(state: State, after: str, allowed: Mask | None) -> Iterator[int]:
    for id_ in state.ids_after(after):
        row = state.row_of(id_)
        if row is not None and (allowed is None or (row < len(allowed) and allowed[row])):
            yield row


def _points(state: State, rows: Iterable[int], with_vectors: bool) -> Iterator[pb.Point]:
    for row in rows:
        point = state.point(row)
        message = pb.Point(id=point.id, text=point.text, version=point.version)
        if point.metadata:
            message.metadata.ParseFromString(point.metadata)
        if with_vectors:
            message.vector_f32 = _raw(state.index.vectors(np.array([row]))[0])
        yield message


def _raw(vector: Vectors) -> bytes:
    return vector.astype("<f4").tobytes()
