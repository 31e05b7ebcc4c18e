"""IngestionService: requests to the domain, ingestions to responses.

A temporary token is taken out of its request into the holder at once; the message is cleared, as far as
Python lets us, and no error repeats it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from sealcomb.v1 import ingestion_service_pb2 as pb
from sealcomb.v1 import ingestion_service_pb2_grpc as stubs
from services.common.errors import invalid
from services.ingest.connections.credentials import TemporaryToken
from services.ingest.connections.service import Connections
from services.ingest.ingestions.records import Ingestion, State
from services.ingest.ingestions.service import Ingestions, Wish
from services.ingest.ingestions.views import Views
from services.ingest.servicers.checks import check_collection, check_text
from services.ingest.servicers.documents import IDEMPOTENCY_KEY_CHARS_MAX
from services.ingest.servicers.pages import Pages
from services.ingest.servicers.sources import check_secret, settings_of, time_of

_LISTING = "ingestions"
_ITEMS = "failed items"
_ID_CHARS_MAX = 128
_STATES = {
    State.QUEUED: pb.INGESTION_STATE_QUEUED,
    State.RUNNING: pb.INGESTION_STATE_RUNNING,
    State.NEEDS_TOKEN: pb.INGESTION_STATE_NEEDS_TOKEN,
    State.SUCCEEDED: pb.INGESTION_STATE_SUCCEEDED,
    State.PARTIAL: pb.INGESTION_STATE_PARTIAL,
    State.FAILED: pb.INGESTION_STATE_FAILED,
    State.CANCELLED: pb.INGESTION_STATE_CANCELLED,
    # What it brought is being deleted; for callers it has ended.
    State.REMOVING: pb.INGESTION_STATE_CANCELLED,
}
_Context = grpc.aio.ServicerContext[Any, Any]


class IngestionServicer(stubs.IngestionServiceServicer):
    """The edge's side of ingestions."""

    def __init__(self, ingestions: Ingestions, views: Views, connections: Connections, pages: Pages) -> None:
        self._ingestions = ingestions
        self._views = views
        self._connections = connections
        self._pages = pages

    async def CreateIngestion(
        self, request: pb.CreateIngestionRequest, context: _Context
    ) -> pb.CreateIngestionResponse:
        """Begins an ingestion."""
        access = request.WhichOneof("access")
        token: TemporaryToken | None = None
        if access == "temporary_token":
            token = _taken(request)
        elif access is None:
            raise invalid("connection_id", "is missing; or send a temporary_token")
        if request.HasField("schedule"):
            check_text("schedule.cron", request.schedule.cron, 256)
            check_text("schedule.time_zone", request.schedule.time_zone, 64, 0)
        wish = Wish(
            collection=check_collection(request.collection),
            connection_id=check_text("connection_id", request.connection_id, _ID_CHARS_MAX, 0),
            token=token,
            kind=check_text("kind", request.kind, 64, 0 if token is None else 1),
            settings=settings_of(request.settings) if request.HasField("settings") else None,
            cron=request.schedule.cron,
            time_zone=request.schedule.time_zone,
            idempotency_key=check_text(
                "idempotency_key", request.idempotency_key, IDEMPOTENCY_KEY_CHARS_MAX, 0
            ),
        )
        made = await self._ingestions.create(wish, self._connections)
        return pb.CreateIngestionResponse(ingestion=ingestion_proto(made))

    async def GetIngestion(
        self, request: pb.GetIngestionRequest, context: _Context
    ) -> pb.GetIngestionResponse:
        """Describes an ingestion."""
        found = await self._views.get(_id(request.id))
        return pb.GetIngestionResponse(ingestion=ingestion_proto(found))

    async def ListIngestions(
        self, request: pb.ListIngestionsRequest, context: _Context
    ) -> pb.ListIngestionsResponse:
        """A page of ingestions."""
        after = await self._pages.decode(_LISTING, request.page_token)
        found, following = await self._views.list_page(after, self._pages.size(request.page_size))
        token = "" if following is None else await self._pages.encode(_LISTING, following)
        return pb.ListIngestionsResponse(ingestions=map(ingestion_proto, found), next_page_token=token)

    async def ListFailedItems(
        self, request: pb.ListFailedItemsRequest, context: _Context
    ) -> pb.ListFailedItemsResponse:
        """A page of items that were set aside."""
        id_ = _id(request.id)
        listing = f"{_ITEMS} {id_}"
        _zero, after = await self._pages.decode(listing, request.page_token)
        size = self._pages.size(request.page_size)
        found, last = await self._views.failed_items(id_, bytes.fromhex(after), size)
        return pb.ListFailedItemsResponse(
            items=[
                pb.FailedItem(
                    name=_text(item.name), url=_text(item.url), reason=item.reason, attempts=item.attempts
                )
                for item in found
            ],
            next_page_token=await self._pages.encode(listing, (0, last.hex())) if last else "",
        )

    async def WatchIngestion(
        self, request: pb.WatchIngestionRequest, context: _Context
    ) -> AsyncIterator[pb.WatchIngestionResponse]:
        """The ingestion as it goes on."""
        async for ingestion in self._views.watch(_id(request.id)):
            yield pb.WatchIngestionResponse(ingestion=ingestion_proto(ingestion))

    async def CancelIngestion(
        self, request: pb.CancelIngestionRequest, context: _Context
    ) -> pb.CancelIngestionResponse:
        """Stops an ingestion."""
        done = await self._ingestions.cancel(_id(request.id))
        return pb.CancelIngestionResponse(ingestion=ingestion_proto(done))

    async def RetryIngestion(
        self, request: pb.RetryIngestionRequest, context: _Context
    ) -> pb.RetryIngestionResponse:
        """Tries what failed once more."""
        done = await self._ingestions.retry(_id(request.id), self._connections)
        return pb.RetryIngestionResponse(ingestion=ingestion_proto(done))

    async def ResumeIngestion(
        self, request: pb.ResumeIngestionRequest, context: _Context
    ) -> pb.ResumeIngestionResponse:
        """Goes on with a new token."""
        token = _taken(request)
        done = await self._ingestions.resume(_id(request.id), token)
        return pb.ResumeIngestionResponse(ingestion=ingestion_proto(done))


def ingestion_proto(ingestion: Ingestion) -> pb.Ingestion:
    """An ingestion as callers see it."""
    row, payload = ingestion.row, ingestion.payload
    counts = row.counts
    shown = pb.Ingestion(
        id=row.id,
        collection=payload.collection,
        kind=payload.kind,
        connection_id=row.connection_id,
        state=_STATES[row.state],
        reason=row.reason,
        counts=pb.IngestionCounts(
            found=counts.found,
            fetched=counts.fetched,
            unchanged=counts.unchanged,
            indexed=counts.indexed,
            failed=counts.failed,
            removed=counts.removed,
        ),
        create_time=time_of(row.create_ms),
        start_time=time_of(row.start_ms),
        finish_time=time_of(row.finish_ms),
        next_run_time=time_of(row.next_run_ms or 0),
        run=row.run,
    )
    shown.settings.update(dict(payload.settings))
    if payload.cron:
        shown.schedule.cron, shown.schedule.time_zone = payload.cron, payload.time_zone
    return shown


def _taken(request: pb.CreateIngestionRequest | pb.ResumeIngestionRequest) -> TemporaryToken:
    token = TemporaryToken(check_secret("temporary_token", request.temporary_token))
    request.ClearField("temporary_token")
    return token


def _text(text: str) -> str:
    # Whatever a source calls things, a message holds Unicode alone.
    return text.encode("utf-8", "replace").decode()


def _id(value: str) -> str:
    return check_text("id", value, _ID_CHARS_MAX)
