"""SearchService: requests to the domain, hits to responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import grpc.aio
from google.protobuf.struct_pb2 import Struct

from sealcomb.v1 import search_service_pb2 as pb
from sealcomb.v1 import search_service_pb2_grpc as stubs
from services.common.errors import ResourceExhausted, invalid
from services.ingest.records import Hit, SearchQuery
from services.ingest.search import Search
from services.ingest.servicers.checks import check_collection, check_principals, check_text

QUERY_CHARS_MAX = 8192
TOP_K_DEFAULT = 10
TOP_K_MAX = 200
SEARCHES_MAX = 32
_ANSWER_BYTES_MAX = 16 * 1024 * 1024
_MODES = {
    pb.SEARCH_MODE_UNSPECIFIED: "HYBRID",
    pb.SEARCH_MODE_HYBRID: "HYBRID",
    pb.SEARCH_MODE_DENSE: "DENSE",
    pb.SEARCH_MODE_LEXICAL: "LEXICAL",
}
_Response = TypeVar("_Response", pb.SearchResponse, pb.SearchBatchResponse)
_Context = grpc.aio.ServicerContext[Any, Any]


class SearchServicer(stubs.SearchServiceServicer):
    """The edge's side of search."""

    def __init__(self, search: Search) -> None:
        self._search = search

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:
        """Text in, ranked passages out."""
        hits = await self._search.search(_query(request, check_collection(request.collection), ""))
        return _bounded(pb.SearchResponse(hits=_hits(hits)))

    async def SearchBatch(self, request: pb.SearchBatchRequest, context: _Context) -> pb.SearchBatchResponse:
        """Several searches of one collection."""
        collection = check_collection(request.collection)
        if not request.searches:
            raise invalid("searches", "is empty")
        if len(request.searches) > SEARCHES_MAX:
            raise invalid("searches", f"has more than {SEARCHES_MAX} entries")
        queries = [
            _query(search, collection, f"searches[{number}].")
            for number, search in enumerate(request.searches)
        ]
        results = await self._search.search_batch(queries)
        return _bounded(
            pb.SearchBatchResponse(results=[pb.SearchResponse(hits=_hits(hits)) for hits in results])
        )


def _query(request: pb.SearchRequest, collection: str, prefix: str) -> SearchQuery:
    if request.collection not in ("", collection):
        raise invalid(f"{prefix}collection", "is not the batch's; send another batch")
    mode = _MODES.get(request.mode)
    if mode is None:
        raise invalid(f"{prefix}mode", "is not known")
    if request.top_k > TOP_K_MAX:
        raise invalid(f"{prefix}top_k", f"is more than {TOP_K_MAX}")
    text = check_text(f"{prefix}query", request.query, QUERY_CHARS_MAX)
    if not text.strip():
        raise invalid(f"{prefix}query", "has no words")
    return SearchQuery(
        collection=collection,
        text=text,
        top_k=request.top_k or TOP_K_DEFAULT,
        mode=mode,
        filter=request.filter if request.HasField("filter") else None,
        as_principals=check_principals(f"{prefix}as_principals", request.as_principals),
        one_per_document=request.one_per_document,
        rerank=request.rerank,
    )


def _hits(hits: Sequence[Hit]) -> list[pb.SearchHit]:
    return [
        pb.SearchHit(
            document_id=hit.document_id,
            document_name=hit.document_name,
            page=hit.page,
            chunk_index=hit.chunk_index,
            text=hit.text,
            score=hit.score,
            metadata=cast("Struct | None", hit.metadata),
            heading=hit.heading,
        )
        for hit in hits
    ]


def _bounded(response: _Response) -> _Response:
    if response.ByteSize() > _ANSWER_BYTES_MAX:
        raise ResourceExhausted("the answer is too large; ask for fewer hits", reason="ANSWER_TOO_LARGE")
    return response
