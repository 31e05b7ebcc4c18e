"""The client: one object per service of the API, over one channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealcomb.v1 import search_service_pb2, search_service_pb2_grpc
from sealcomb_client.administration import Accounts, AuditLog, Keys, Tokens
from sealcomb_client.collections import Collections
from sealcomb_client.connection import Connection
from sealcomb_client.content import Points
from sealcomb_client.documents import Documents
from sealcomb_client.errors import ApiError
from sealcomb_client.sources import Ingestions, Sources
from sealcomb_client.transport import Timing, Transport
from sealcomb_client.values import FilterLike, filter_of

_MODES = {
    "hybrid": search_service_pb2.SEARCH_MODE_HYBRID,
    "dense": search_service_pb2.SEARCH_MODE_DENSE,
    "lexical": search_service_pb2.SEARCH_MODE_LEXICAL,
}


class Client:
    """A client of one Sealcomb edge. Threads may share it; close it or use it as a context manager."""

    def __init__(self, connection: Connection, *, timing: Timing | None = None) -> None:
        self._transport = Transport(connection, timing)
        self._search = search_service_pb2_grpc.SearchServiceStub(self._transport.channel)
        self.collections = Collections(self._transport)
        self.points = Points(self._transport)
        self.documents = Documents(self._transport)
        self.tokens = Tokens(self._transport)
        self.keys = Keys(self._transport)
        self.accounts = Accounts(self._transport)
        self.audit = AuditLog(self._transport)
        self.sources = Sources(self._transport)
        self.ingestions = Ingestions(self._transport)

    @classmethod
    def from_env(cls, env_file: Path | None = None) -> Client:
        """The client that the environment, or an env file, describes; see Connection.from_env."""
        return cls(Connection.from_env(env_file))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def search(
        self,
        collection: str,
        query: str,
        *,
        top_k: int = 10,
        mode: str = "hybrid",
        filter: FilterLike = None,  # noqa: A002  (the API's own word)
        as_principals: Iterable[str] = (),
        one_per_document: bool = False,
        rerank: bool = False,
        timeout_s: float = 30.0,
    ) -> Sequence[search_service_pb2.SearchHit]:
        """Passages that answer a text, best first; `mode` is hybrid, dense or lexical.

        `one_per_document` gives each document's best passage alone; `rerank` puts the first hits in order
        anew by the operator's cross-encoder, if there is one.
        """
        request = search_service_pb2.SearchRequest(
            collection=collection,
            query=query,
            top_k=top_k,
            mode=_mode(mode),
            filter=filter_of(filter),
            as_principals=as_principals,
            one_per_document=one_per_document,
            rerank=rerank,
        )
        return self._transport.unary(self._search.Search, request, timeout_s=timeout_s).hits

    def search_batch(
        self,
        collection: str,
        queries: Iterable[str],
        *,
        top_k: int = 10,
        mode: str = "hybrid",
        timeout_s: float = 30.0,
    ) -> Sequence[search_service_pb2.SearchResponse]:
        """The results of up to 32 searches, in order."""
        searches = [
            search_service_pb2.SearchRequest(query=query, top_k=top_k, mode=_mode(mode)) for query in queries
        ]
        request = search_service_pb2.SearchBatchRequest(collection=collection, searches=searches)
        return self._transport.unary(self._search.SearchBatch, request, timeout_s=timeout_s).results

    def health(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the edge and all services behind it serve. Needs no token; False where nothing answers."""
        stub = health_pb2_grpc.HealthStub(self._transport.channel)
        try:
            response = self._transport.anonymous(
                stub.Check, health_pb2.HealthCheckRequest(), timeout_s=timeout_s
            )
        except ApiError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _mode(name: str) -> search_service_pb2.SearchMode.ValueType:
    try:
        return _MODES[name.lower()]
    except KeyError:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}") from None
