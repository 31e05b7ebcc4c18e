"""SourceService: requests to the domain, connections to responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc.aio
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from sealcomb.v1 import source_service_pb2 as pb
from sealcomb.v1 import source_service_pb2_grpc as stubs
from services.common.errors import invalid
from services.ingest.connections.catalogue import Catalogue
from services.ingest.connections.records import Client, Connection, ConnectionState, Revoked
from services.ingest.connections.service import Connections, Grant, Wish
from services.ingest.servicers.checks import check_text
from services.ingest.servicers.pages import Pages

SECRET_CHARS_MAX = 8192
_TEXT_CHARS_MAX = 4096
_LISTING = "connections"
_STATES = {
    ConnectionState.CONNECTED: pb.CONNECTION_STATE_CONNECTED,
    ConnectionState.REFUSED: pb.CONNECTION_STATE_REFUSED,
    ConnectionState.DISCONNECTING: pb.CONNECTION_STATE_DISCONNECTING,
}
_REVOKED = {
    Revoked.REVOKED: pb.REVOCATION_REVOKED,
    Revoked.NOT_SUPPORTED: pb.REVOCATION_NOT_SUPPORTED,
    Revoked.FAILED: pb.REVOCATION_FAILED,
}
_Context = grpc.aio.ServicerContext[Any, Any]


class SourceServicer(stubs.SourceServiceServicer):
    """The edge's side of sources."""

    def __init__(self, catalogue: Catalogue, connections: Connections, pages: Pages) -> None:
        self._catalogue = catalogue
        self._connections = connections
        self._pages = pages

    async def ListSourceTypes(
        self, request: pb.ListSourceTypesRequest, context: _Context
    ) -> pb.ListSourceTypesResponse:
        """What can be connected."""
        response = pb.ListSourceTypesResponse()
        for found in self._catalogue.types:
            profile = found.oauth
            shown = response.types.add(
                kind=found.kind,
                title=found.title,
                oauth=profile is not None and self._catalogue.client_of(found.kind) is not None,
                oauth_with_own_client=profile is not None,
                device_flow=profile is not None and bool(profile.device_url),
                token_form=found.token_form,
                scopes=profile.scopes if profile is not None else (),
            )
            shown.settings_schema.update(found.settings_model.model_json_schema())
        return response

    async def BeginConnection(
        self, request: pb.BeginConnectionRequest, context: _Context
    ) -> pb.BeginConnectionResponse:
        """Begins a connection."""
        client = None
        if request.HasField("client"):
            client = Client(
                check_text("client.id", request.client.id, _TEXT_CHARS_MAX),
                check_text("client.secret", request.client.secret, SECRET_CHARS_MAX, 0),
            )
        wish = Wish(
            kind=check_text("kind", request.kind, 64),
            settings=settings_of(request.settings),
            redirect_uri=check_text("redirect_uri", request.redirect_uri, _TEXT_CHARS_MAX, 0),
            client=client,
            device=request.device,
            secret=check_secret("secret", request.secret, 0),
        )
        begun = await self._connections.begin(wish)
        response = pb.BeginConnectionResponse(
            connection_id=begun.connection_id,
            authorization_url=begun.authorization_url,
            state=begun.state,
            scopes_asked=begun.scopes_asked,
            user_code=begun.user_code,
            verification_uri=begun.verification_uri,
        )
        if begun.expire_ms:
            response.expire_time.FromMilliseconds(begun.expire_ms)
        if begun.poll_s:
            response.poll_interval.FromSeconds(begun.poll_s)
        if begun.connection is not None:
            response.connection.CopyFrom(connection_proto(begun.connection))
        return response

    async def CompleteConnection(
        self, request: pb.CompleteConnectionRequest, context: _Context
    ) -> pb.CompleteConnectionResponse:
        """Completes a connection."""
        grant = Grant(
            state=check_text("state", request.state, _TEXT_CHARS_MAX),
            code=check_secret("code", request.code, 0),
            iss=check_text("iss", request.iss, _TEXT_CHARS_MAX, 0),
            error=check_text("error", request.error, _TEXT_CHARS_MAX, 0),
        )
        return pb.CompleteConnectionResponse(
            connection=connection_proto(await self._connections.complete(grant))
        )

    async def ListConnections(
        self, request: pb.ListConnectionsRequest, context: _Context
    ) -> pb.ListConnectionsResponse:
        """A page of connections."""
        size = self._pages.size(request.page_size)
        after = await self._pages.decode(_LISTING, request.page_token)
        found = await self._connections.list_page(after, size + 1)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = await self._pages.encode(_LISTING, (last.create_ms, last.id))
        return pb.ListConnectionsResponse(
            connections=map(connection_proto, found[:size]), next_page_token=token
        )

    async def Disconnect(self, request: pb.DisconnectRequest, context: _Context) -> pb.DisconnectResponse:
        """Ends a connection."""
        id_ = check_text("connection_id", request.connection_id, 128)
        done = await self._connections.disconnect(id_, delete_documents=request.delete_documents)
        return pb.DisconnectResponse(
            revocation=_REVOKED[done.revoked],
            cancelled_ingestions=done.cancelled,
            deleting_documents=done.deleting,
        )


def connection_proto(connection: Connection) -> pb.Connection:
    """A connection as callers see it."""
    described = connection.description
    shown = pb.Connection(
        id=connection.id,
        kind=described.kind,
        state=_STATES[connection.state],
        scopes_asked=described.scopes_asked,
        scopes_granted=described.scopes_granted,
        create_time=time_of(connection.create_ms),
        own_client=described.own_client,
    )
    shown.settings.update(dict(described.settings))
    return shown


def settings_of(settings: Struct) -> Mapping[str, Any]:
    """What a caller set, as plain values."""
    return json_format.MessageToDict(settings)


def check_secret(field: str, value: str, chars_min: int = 1) -> str:
    """A secret of bounded length, of characters that a header can hold."""
    check_text(field, value, SECRET_CHARS_MAX, chars_min)
    if not value.isascii() or not value.isprintable():
        raise invalid(field, "holds a character that no token has")
    return value


def time_of(time_ms: int) -> Timestamp | None:
    """A time; None for none."""
    if not time_ms:
        return None
    stamp = Timestamp()
    stamp.FromMilliseconds(time_ms)
    return stamp
