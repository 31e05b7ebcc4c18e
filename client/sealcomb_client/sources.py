"""Sources and ingestions: connect, bring documents in, watch, disconnect."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from sealcomb.v1 import ingestion_service_pb2 as ingestions_pb
from sealcomb.v1 import ingestion_service_pb2_grpc, source_service_pb2_grpc
from sealcomb.v1 import source_service_pb2 as sources_pb
from sealcomb_client.transport import Transport
from sealcomb_client.values import struct_of

_TIMEOUT_S = 30.0
# Providers are asked within these calls.
_PROVIDER_TIMEOUT_S = 60.0
_WATCH_TIMEOUT_S = 3600.0


class Sources:
    """SourceService."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = source_service_pb2_grpc.SourceServiceStub(transport.channel)

    def types(self, *, timeout_s: float = _TIMEOUT_S) -> list[sources_pb.SourceType]:
        """The kinds of sources, and what each needs."""
        request = sources_pb.ListSourceTypesRequest()
        return list(self._transport.unary(self._stub.ListSourceTypes, request, timeout_s=timeout_s).types)

    def begin(
        self,
        kind: str,
        settings: Mapping[str, Any] | None = None,
        *,
        redirect_uri: str = "",
        client_id: str = "",
        client_secret: str = "",
        device: bool = False,
        secret: str = "",
        timeout_s: float = _PROVIDER_TIMEOUT_S,
    ) -> sources_pb.BeginConnectionResponse:
        """Begins a connection; open `authorization_url` in the user's browser, then `complete`.

        With a `secret`, or for a source that needs none, `connection` is set and nothing is left to do.
        """
        client = sources_pb.OAuthClient(id=client_id, secret=client_secret) if client_id else None
        request = sources_pb.BeginConnectionRequest(
            kind=kind,
            settings=struct_of(settings),
            redirect_uri=redirect_uri,
            client=client,
            device=device,
            secret=secret,
        )
        return self._transport.unary(self._stub.BeginConnection, request, timeout_s=timeout_s, safe=False)

    def complete(
        self,
        state: str,
        *,
        code: str = "",
        iss: str = "",
        error: str = "",
        timeout_s: float = _PROVIDER_TIMEOUT_S,
    ) -> sources_pb.Connection:
        """Completes a connection with what the redirect brought; a state works once."""
        request = sources_pb.CompleteConnectionRequest(state=state, code=code, iss=iss, error=error)
        return self._transport.unary(
            self._stub.CompleteConnection, request, timeout_s=timeout_s, safe=False
        ).connection

    def list(self, *, page_size: int = 0, timeout_s: float = _TIMEOUT_S) -> Iterator[sources_pb.Connection]:
        """All connections, page by page."""
        request = sources_pb.ListConnectionsRequest(page_size=page_size)
        while True:
            response = self._transport.unary(self._stub.ListConnections, request, timeout_s=timeout_s)
            yield from response.connections
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def disconnect(
        self, connection_id: str, *, delete_documents: bool = False, timeout_s: float = _PROVIDER_TIMEOUT_S
    ) -> sources_pb.DisconnectResponse:
        """Destroys a connection's credential, stops its ingestions and revokes it at the provider."""
        request = sources_pb.DisconnectRequest(connection_id=connection_id, delete_documents=delete_documents)
        return self._transport.unary(self._stub.Disconnect, request, timeout_s=timeout_s, safe=False)


class Ingestions:
    """IngestionService."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = ingestion_service_pb2_grpc.IngestionServiceStub(transport.channel)

    def create(
        self,
        collection: str,
        *,
        connection_id: str = "",
        temporary_token: str = "",
        kind: str = "",
        settings: Mapping[str, Any] | None = None,
        cron: str = "",
        time_zone: str = "",
        idempotency_key: str = "",
        timeout_s: float = _TIMEOUT_S,
    ) -> ingestions_pb.Ingestion:
        """Begins an ingestion from a connection, or of a `kind` with a temporary token that is not stored."""
        request = ingestions_pb.CreateIngestionRequest(
            collection=collection,
            kind=kind,
            settings=struct_of(settings),
            # A repeat after a lost answer finds the ingestion that the first try began.
            idempotency_key=idempotency_key or secrets.token_hex(16),
        )
        if temporary_token:
            request.temporary_token = temporary_token
        elif connection_id:
            request.connection_id = connection_id
        if cron:
            request.schedule.cron, request.schedule.time_zone = cron, time_zone
        return self._transport.unary(self._stub.CreateIngestion, request, timeout_s=timeout_s).ingestion

    def get(self, id: str, *, timeout_s: float = _TIMEOUT_S) -> ingestions_pb.Ingestion:  # noqa: A002
        """One ingestion."""
        request = ingestions_pb.GetIngestionRequest(id=id)
        return self._transport.unary(self._stub.GetIngestion, request, timeout_s=timeout_s).ingestion

    def list(self, *, page_size: int = 0, timeout_s: float = _TIMEOUT_S) -> Iterator[ingestions_pb.Ingestion]:
        """All ingestions, page by page."""
        request = ingestions_pb.ListIngestionsRequest(page_size=page_size)
        while True:
            response = self._transport.unary(self._stub.ListIngestions, request, timeout_s=timeout_s)
            yield from response.ingestions
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def failed_items(
        self,
        id: str,  # noqa: A002
        *,
        page_size: int = 0,
        timeout_s: float = _TIMEOUT_S,
    ) -> Iterator[ingestions_pb.FailedItem]:
        """The items that were set aside, page by page."""
        request = ingestions_pb.ListFailedItemsRequest(id=id, page_size=page_size)
        while True:
            response = self._transport.unary(self._stub.ListFailedItems, request, timeout_s=timeout_s)
            yield from response.items
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def watch(
        self,
        id: str,  # noqa: A002
        *,
        timeout_s: float = _WATCH_TIMEOUT_S,
    ) -> Iterator[ingestions_pb.Ingestion]:
        """The ingestion whenever it changes, until it has ended or needs a token."""
        request = ingestions_pb.WatchIngestionRequest(id=id)
        for part in self._transport.download(self._stub.WatchIngestion, request, timeout_s=timeout_s):
            yield part.ingestion

    def cancel(self, id: str, *, timeout_s: float = _TIMEOUT_S) -> ingestions_pb.Ingestion:  # noqa: A002
        """Stops an ingestion for good; what is indexed stays."""
        request = ingestions_pb.CancelIngestionRequest(id=id)
        return self._transport.unary(self._stub.CancelIngestion, request, timeout_s=timeout_s).ingestion

    def retry(self, id: str, *, timeout_s: float = _TIMEOUT_S) -> ingestions_pb.Ingestion:  # noqa: A002
        """Tries what failed once more."""
        request = ingestions_pb.RetryIngestionRequest(id=id)
        return self._transport.unary(
            self._stub.RetryIngestion, request, timeout_s=timeout_s, safe=False
        ).ingestion

    def resume(
        self,
        id: str,  # noqa: A002
        temporary_token: str,
        *,
        timeout_s: float = _TIMEOUT_S,
    ) -> ingestions_pb.Ingestion:
        """Goes on where it was, with a new temporary token."""
        request = ingestions_pb.ResumeIngestionRequest(id=id, temporary_token=temporary_token)
        return self._transport.unary(
            self._stub.ResumeIngestion, request, timeout_s=timeout_s, safe=False
        ).ingestion
