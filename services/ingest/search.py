"""Search by text: the query becomes a vector, vectorstore ranks the passages.

A collection's vectors and the query's must come from the same weights, or distances mean nothing;
a search by meaning in a collection of another embedder is refused. Queries are never logged.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.common.clock import Clock
from services.common.context import current_account
from services.common.errors import FailedPrecondition
from services.ingest.embedders.pool import Priority
from services.ingest.records import CollectionInfo, Hit, SearchQuery
from services.ingest.rerank import CANDIDATES, Reranker

LEXICAL = "LEXICAL"
# A collection's embedder never changes; what may change is which collection has the name.
_RESOLVED_S = 5.0
_RESOLVED_MAX = 10_000
_BATCH_CONCURRENCY = 8
# So that one batch does not take every place of the reranker.
_BATCH_RERANKED = 2


class PassageSearch(Protocol):
    """What searching needs of vectorstore."""

    async def resolve(self, collection: str) -> CollectionInfo:
        """A collection by name. Raises NotFound."""

    async def search(self, query: SearchQuery, vector: bytes) -> list[Hit]:
        """Ranked passages; `vector` is empty for a search by words."""


class EmbeddingQueue(Protocol):
    """Texts to vectors, queries before bulk."""

    async def embed(self, texts: Sequence[str], priority: Priority) -> npt.NDArray[np.float32]:
        """float32 [len(texts), dimension]."""


@dataclass(frozen=True, slots=True)
class EmbedderIdentity:
    """What says which vectors can be compared."""

    fingerprint: str
    dimension: int

    def check(self, collection: CollectionInfo) -> None:
        """Raises FailedPrecondition for a collection without texts or of another embedder."""
        if not collection.embedder:
            raise FailedPrecondition(
                "the collection holds your own vectors; use VectorService or make one with an embedder",
                reason="NOT_A_TEXT_COLLECTION",
            )
        if (collection.fingerprint, collection.dimension) != (self.fingerprint, self.dimension):
            raise FailedPrecondition(
                "the collection was made with another embedding model; upload its documents anew",
                reason="EMBEDDER_MISMATCH",
            )


class Search:
    """Searches within the account of the call in progress."""

    def __init__(
        self,
        passages: PassageSearch,
        queue: EmbeddingQueue,
        embedder: EmbedderIdentity,
        reranker: Reranker,
        clock: Clock,
    ) -> None:
        self._passages = passages
        self._queue = queue
        self._embedder = embedder
        self._reranker = reranker
        self._clock = clock
        self._resolved: OrderedDict[tuple[str, str], tuple[float, CollectionInfo]] = OrderedDict()

    async def search(self, query: SearchQuery) -> list[Hit]:
        """Ranked passages of one search."""
        return (await self.search_batch([query]))[0]

    async def search_batch(self, queries: Sequence[SearchQuery]) -> list[list[Hit]]:
        """Ranked passages of searches in one collection, in their order; all or an error."""
        if any(query.rerank for query in queries):
            self._reranker.check()
        by_meaning = [query for query in queries if query.mode != LEXICAL]
        vectors: dict[int, bytes] = {}
        if by_meaning:
            # Before any work is done: a collection that is not there costs no embedding.
            self._embedder.check(await self._resolve(by_meaning[0].collection))
            rows = await self._queue.embed([query.text for query in by_meaning], Priority.QUERY)
            for query, row in zip(by_meaning, np.ascontiguousarray(rows, dtype="<f4"), strict=True):
                vectors[id(query)] = row.tobytes()
        slots, reranked = asyncio.Semaphore(_BATCH_CONCURRENCY), asyncio.Semaphore(_BATCH_RERANKED)

        async def one(query: SearchQuery) -> list[Hit]:
            async with reranked if query.rerank else slots:
                return await self._ranked(query, vectors.get(id(query), b""))

        tasks = [asyncio.create_task(one(query)) for query in queries]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _ranked(self, query: SearchQuery, vector: bytes) -> list[Hit]:
        if not query.rerank:
            return await self._passages.search(query, vector)
        wanted = dataclasses.replace(query, top_k=max(query.top_k, CANDIDATES))
        hits = await self._passages.search(wanted, vector)
        first, rest = hits[:CANDIDATES], hits[CANDIDATES:]
        scores = await self._reranker.scores(query.text, [_read(hit) for hit in first])
        # What was not read comes after what was, in the order that it had, with no better a score.
        lowest = float(scores.min()) if len(scores) else 0.0
        best = sorted(zip(scores.tolist(), first, strict=True), key=lambda pair: -pair[0])
        ranked = [dataclasses.replace(hit, score=score) for score, hit in best]
        ranked += [dataclasses.replace(hit, score=lowest) for hit in rest]
        return ranked[: query.top_k]

    def forget_names(self) -> None:
        """Forgets which collections have which names."""
        self._resolved.clear()

    async def _resolve(self, name: str) -> CollectionInfo:
        """The collection, for the embedder check alone: vectorstore resolves the name again."""
        slot = (current_account(), name)
        now = self._clock.monotonic_s()
        held = self._resolved.get(slot)
        if held is not None and now - held[0] < _RESOLVED_S:
            return held[1]
        found = await self._passages.resolve(name)
        self._resolved[slot] = (now, found)
        self._resolved.move_to_end(slot)
        if len(self._resolved) > _RESOLVED_MAX:
            self._resolved.popitem(last=False)
        return found


def _read(hit: Hit) -> str:
    """What a reranker reads of a hit."""
    return f"{hit.heading}\n{hit.text}" if hit.heading else hit.text
