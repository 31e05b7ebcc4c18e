"""Calls of every kind by a plain gRPC client over all edges, and which of them failed.

Nothing is tried again here: a call that gRPC's own client does not bring through is a failed one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from sealcomb.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    document_service_pb2,
    document_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
    vector_service_pb2,
    vector_service_pb2_grpc,
)

_DEADLINE_S = 20.0


@dataclass
class Outcome:
    """How many calls of each kind were answered, and which failed how."""

    good: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def record(self, kind: str, call: Callable[[], object]) -> None:
        """Makes a call."""
        try:
            call()
        except grpc.RpcError as error:
            self.failures.append(f"{time.strftime('%X')} {kind}: {error.code().name}: {error.details()}")
        else:
            self.good[kind] += 1


class Caller:
    """A client with an account's token on one channel."""

    def __init__(self, channel: grpc.Channel, token: str, number: int = 0) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._number = number
        self._count = 0
        self._vectors = vector_service_pb2_grpc.VectorServiceStub(channel)
        self._documents = document_service_pb2_grpc.DocumentServiceStub(channel)
        self._search = search_service_pb2_grpc.SearchServiceStub(channel)
        self._tokens = token_service_pb2_grpc.TokenServiceStub(channel)
        self._collections = collection_service_pb2_grpc.CollectionServiceStub(channel)
        self.kinds: dict[str, Callable[[], object]] = {
            "query": self._query,
            "upsert": self._upsert,
            "search": self._find,
            "upload": self._upload,
            "whoami": self._whoami,
            "collection": self._collection,
        }

    def prepare(self) -> None:
        """The collections, with something in them."""
        for request in (
            collection_service_pb2.CreateCollectionRequest(name="vectors", dimension=4),
            collection_service_pb2.CreateCollectionRequest(name="notes", embedder="default"),
        ):
            self._collections.CreateCollection(request, metadata=self._metadata, timeout=_DEADLINE_S)
        self._upsert()
        self._upload()

    def _query(self) -> object:
        request = vector_service_pb2.QueryRequest(collection="vectors", vector=[1, 0, 0, 0], top_k=3)
        return self._vectors.Query(request, metadata=self._metadata, timeout=_DEADLINE_S)

    def _upsert(self) -> object:
        self._count += 1
        one = vector_service_pb2.Point(
            id=f"{self._number}-{self._count % 500}", vector=[1, 0, 0, self._count]
        )
        request = vector_service_pb2.UpsertRequest(collection="vectors", points=[one])
        return self._vectors.Upsert(request, metadata=self._metadata, timeout=_DEADLINE_S)

    def _find(self) -> object:
        request = search_service_pb2.SearchRequest(collection="notes", query="what seals a cell?", top_k=3)
        return self._search.Search(request, metadata=self._metadata, timeout=_DEADLINE_S)

    def _upload(self) -> object:
        self._count += 1
        name = f"note {self._number} {self._count % 50}"
        messages = document_service_pb2.UploadDocumentRequest
        header = document_service_pb2.UploadDocumentHeader(
            collection="notes", name=name, content_type="text/plain"
        )
        stream = [messages(header=header), messages(chunk=b"The wax cap seals each cell.")]
        return self._documents.UploadDocument(iter(stream), metadata=self._metadata, timeout=_DEADLINE_S)

    def _collection(self) -> object:
        # A new data key each time, which no cache has, and its destruction.
        self._count += 1
        name = f"short-lived {self._number} {self._count}"
        create = collection_service_pb2.CreateCollectionRequest(name=name, dimension=4)
        self._collections.CreateCollection(create, metadata=self._metadata, timeout=_DEADLINE_S)
        delete = collection_service_pb2.DeleteCollectionRequest(collection=name)
        return self._collections.DeleteCollection(delete, metadata=self._metadata, timeout=_DEADLINE_S)

    def _whoami(self) -> object:
        request = token_service_pb2.WhoAmIRequest()
        return self._tokens.WhoAmI(request, metadata=self._metadata, timeout=_DEADLINE_S)


@contextmanager
def calling(
    channel: Callable[[], grpc.Channel], token: str, *, prepare: bool = True, pause_s: float = 0.05
) -> Iterator[Outcome]:
    """A caller of each kind for the block, each on a connection of its own; makes the collections first."""
    outcome, stop = Outcome(), threading.Event()

    def run(kind: str, number: int) -> None:
        with channel() as own:
            call = Caller(own, token, number).kinds[kind]
            while not stop.is_set():
                outcome.record(kind, call)
                time.sleep(pause_s)

    with channel() as first:
        caller = Caller(first, token)
        kinds = list(caller.kinds)
        # One that was never answered is seen as well.
        outcome.good.update(dict.fromkeys(kinds, 0))
        if prepare:
            caller.prepare()
    threads = [threading.Thread(target=run, args=(kind, number)) for number, kind in enumerate(kinds, 1)]
    for thread in threads:
        thread.start()
    try:
        yield outcome
    finally:
        stop.set()
        for thread in threads:
            thread.join()
