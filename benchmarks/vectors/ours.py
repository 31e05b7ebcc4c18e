"""Sealcomb as shipped, through its edge, and bare hnswlib, run as peers.py is.

Sealcomb's client reads where the edge is from the environment, as every client does.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from pathlib import Path

import hnswlib
import numpy as np

from benchmarks.vectors.driver import (
    EF,
    EF_CONSTRUCTION,
    TENTHS,
    TOP_K,
    Batcher,
    M,
    Vectors,
    batches,
    serve,
)
from sealcomb.v1 import collection_service_pb2, vector_service_pb2
from sealcomb_client import Client
from sealcomb_client.values import struct_of

_INDEXED_WITHIN_S = 300.0
_FLAT_AT_REST = 2_000


class Sealcomb(Batcher):
    """The whole installation: TLS, token and limits on, every batch sealed and durable."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.version = f"sealcomb {importlib.metadata.version('sealcomb')}"
        self._client = Client.from_env()
        self._written = 0.0

    def fill(self, rows: Vectors) -> None:
        """See Contender."""
        self._client.collections.create("bench", dimension=rows.shape[1])
        for places in batches(rows):
            points = [
                vector_service_pb2.Point(
                    id=str(place),
                    vector_f32=rows[place].tobytes(),
                    metadata=struct_of({"tenth": place % TENTHS}),
                )
                for place in places
            ]
            self._client.points.upsert("bench", points)
        self._written = time.monotonic()
        end = self._written + _INDEXED_WITHIN_S
        while not self._indexed() and time.monotonic() < end:
            time.sleep(0.1)

    def written(self) -> float:
        """See Contender."""
        return self._written

    def ask(self, query: Vectors, *, filtered: bool) -> list[int]:
        """See Contender."""
        hits = self._client.points.query(
            "bench",
            query.tobytes(),
            top_k=TOP_K,
            ef=EF,
            filter={"eq": {"field": "tenth", "value": 0}} if filtered else None,
            with_metadata=False,
            with_text=False,
        )
        return [int(hit.id) for hit in hits]

    def ask_many(self, queries: Vectors) -> list[list[int]]:
        """See Contender."""
        wanted = [
            vector_service_pb2.QueryRequest(vector_f32=query.tobytes(), top_k=TOP_K, ef=EF)
            for query in queries
        ]
        results = self._client.points.query_batch("bench", wanted)
        return [[int(hit.id) for hit in result.hits] for result in results]

    def close(self) -> None:
        """See Contender."""
        self._client.close()

    def _indexed(self) -> bool:
        flat = collection_service_pb2.Segment.KIND_FLAT
        segments = self._client.collections.stats("bench").segments
        return sum(segment.points for segment in segments if segment.kind == flat) <= _FLAT_AT_REST


class Hnswlib(Batcher):
    """hnswlib in process, one thread; nothing is durable."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.version = f"hnswlib {importlib.metadata.version('hnswlib')}"
        self._index: hnswlib.Index | None = None
        self._tenth = b""

    def fill(self, rows: Vectors) -> None:
        """See Contender."""
        index = hnswlib.Index("ip", rows.shape[1])
        index.init_index(len(rows), M=M, ef_construction=EF_CONSTRUCTION)
        for places in batches(rows):
            labels = np.arange(places.start, places.stop)
            index.add_items(rows[places.start : places.stop], labels, num_threads=1)
        index.set_ef(EF)
        self._index = index
        self._tenth = (np.arange(len(rows)) % TENTHS == 0).tobytes()

    def ask(self, query: Vectors, *, filtered: bool) -> list[int]:
        """See Contender."""
        return self._search(query[np.newaxis, :], filtered)[0]

    def ask_many(self, queries: Vectors) -> list[list[int]]:
        """See Contender."""
        return self._search(queries, False)

    def pids(self) -> list[int]:
        """See Contender."""
        return [os.getpid()]

    def close(self) -> None:
        """See Contender."""

    def _search(self, queries: Vectors, filtered: bool) -> list[list[int]]:
        assert self._index is not None
        wanted = self._tenth.__getitem__ if filtered else None
        labels, _distances = self._index.knn_query(queries, TOP_K, num_threads=1, filter=wanted)
        found: list[list[int]] = labels.tolist()
        return found


if __name__ == "__main__":
    serve({"sealcomb": Sealcomb, "hnswlib": Hnswlib}[sys.argv[1]])
