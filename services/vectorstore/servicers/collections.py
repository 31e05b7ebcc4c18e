"""CollectionService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import structlog

from sealcomb.v1 import collection_service_pb2 as pb
from sealcomb.v1.collection_service_pb2_grpc import CollectionServiceServicer
from services.common import paging
from services.common.context import current_account
from services.common.datakeys import DataKeys
from services.common.errors import FailedPrecondition, ResourceExhausted, Unavailable, invalid
from services.vectorstore.catalog import CATALOG, Catalog, Descriptor, Listed
from services.vectorstore.columns import FIELDS_MAX
from services.vectorstore.config import EmbedderInfo
from services.vectorstore.importing import Importer
from services.vectorstore.index import Metric, VectorIndex
from services.vectorstore.metadata import PATH_CHARS_MAX
from services.vectorstore.resealing import Resealer
from services.vectorstore.residency import Residency
from services.vectorstore.servicers import transfer
from services.vectorstore.servicers.convert import EF_MAX, collection_name

_log = structlog.get_logger("collections")
_DIMENSION_MAX = 4096
_METRICS = {pb.METRIC_COSINE: Metric.COSINE, pb.METRIC_DOT: Metric.DOT, pb.METRIC_L2: Metric.L2}
_METRIC_NAMES = {metric: number for number, metric in _METRICS.items()}
_LISTING = "collections"

# Removes what is left of a collection: account, id.
Purge = Callable[[str, str], Awaitable[None]]


class Collections(CollectionServiceServicer):
    """Collections of the caller's account."""

    def __init__(
        self,
        catalog: Catalog,
        keys: DataKeys,
        residency: Residency,
        purge: Purge,
        resealer: Resealer,
        importer: Importer,
        embedder: EmbedderInfo | None,
    ) -> None:
        self._resealer = resealer
        self._importer = importer
        self._export_places = transfer.export_places()
        self._catalog = catalog
        self._residency = residency
        self._keys = keys
        self._purge = purge
        self._embedder = embedder

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Any
    ) -> pb.CreateCollectionResponse:
        """Creates a collection."""
        if not 1 <= len(request.name) <= 256:
            raise invalid("name", "must have 1 to 256 characters")
        if len(request.idempotency_key) > 256:
            raise invalid("idempotency_key", "must have at most 256 characters")
        wanted = self._wanted(request)
        indexed = _indexed(request.metadata_index) if request.HasField("metadata_index") else None
        wanted = replace(wanted, default_ef=_default_ef(request.default_ef), indexed=indexed)
        made = await self._catalog.create(wanted, request.idempotency_key)
        return pb.CreateCollectionResponse(collection=_message(await self._catalog.listed(made)))

    async def GetCollection(self, request: pb.GetCollectionRequest, context: Any) -> pb.GetCollectionResponse:
        """Describes a collection."""
        descriptor = await self._residency.reread(
            await self._catalog.get(collection_name(request.collection))
        )
        return pb.GetCollectionResponse(collection=_message(await self._catalog.listed(descriptor)))

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: Any
    ) -> pb.ListCollectionsResponse:
        """Lists collections in order of creation."""
        account = current_account()
        key = await self._keys.current(CATALOG, CATALOG)
        after = 0
        if request.page_token:
            position = paging.decode(key, account, _LISTING, CATALOG, request.page_token)
            after = int.from_bytes(position, "big")
        listed, following = await self._catalog.page(after, paging.page_size(request.page_size))
        token = ""
        if following:
            token = paging.encode(key, account, _LISTING, CATALOG, following.to_bytes(8, "big"))
        return pb.ListCollectionsResponse(collections=map(_message, listed), next_page_token=token)

    async def UpdateCollection(
        self, request: pb.UpdateCollectionRequest, context: Any
    ) -> pb.UpdateCollectionResponse:
        """Changes a collection's settings; its points are indexed anew at their next use."""
        if request.HasField("metadata_index") and request.index_all_metadata:
            raise invalid("index_all_metadata", "is set together with metadata_index; set one")
        descriptor = await self._catalog.get(collection_name(request.collection))
        descriptor = await self._residency.hold(descriptor)
        changed = descriptor
        if request.HasField("default_ef"):
            changed = replace(changed, default_ef=_default_ef(request.default_ef))
        if request.index_all_metadata:
            changed = replace(changed, indexed=None)
        elif request.HasField("metadata_index"):
            changed = replace(changed, indexed=_indexed(request.metadata_index))
        if changed != descriptor:
            await self._catalog.change(descriptor, changed)
            _log.info("collection changed", account=descriptor.account, resource=descriptor.id)
        return pb.UpdateCollectionResponse(collection=_message(await self._catalog.listed(changed)))

    async def GetCollectionStats(
        self, request: pb.GetCollectionStatsRequest, context: Any
    ) -> pb.GetCollectionStatsResponse:
        """Measures a collection without opening it."""
        descriptor = await self._catalog.get(collection_name(request.collection))
        descriptor = await self._residency.hold(descriptor)
        listed = await self._catalog.listed(descriptor)
        records, log_bytes = await self._catalog.log_size(descriptor)
        response = pb.GetCollectionStatsResponse(
            points=listed.points, documents=listed.documents, log_records=records, log_bytes=log_bytes
        )
        resident = self._residency.peek(descriptor.id)
        if resident is not None:
            response.resident = True
            response.resident_bytes = resident.collection.size_bytes
            response.snapshot_bytes = resident.keeper.snapshot_bytes
            response.segments.extend(_segments(resident.collection.state.index))
        return response

    async def ResealCollection(
        self, request: pb.ResealCollectionRequest, context: Any
    ) -> pb.ResealCollectionResponse:
        """Seals a collection under its newest data key."""
        descriptor = await self._catalog.get(collection_name(request.collection))
        aged = await self._resealer.reseal(descriptor)
        response = pb.ResealCollectionResponse(aged_data_keys=aged.left)
        if aged.destroyable_s:
            response.destroyable_time.FromMicroseconds(int(aged.destroyable_s * 1e6))
        return response

    async def ExportCollection(
        self, request: pb.ExportCollectionRequest, context: Any
    ) -> AsyncIterator[pb.ExportCollectionResponse]:
        """Streams all points of a collection."""
        if request.form not in pb.ExportForm.values():
            raise invalid("form", "is not a form")
        descriptor = await self._catalog.get(collection_name(request.collection))
        use = await self._residency.use(descriptor)
        header = pb.ExportHeader(
            dimension=descriptor.dimension,
            metric=_METRIC_NAMES[descriptor.metric],
            default_ef=descriptor.default_ef,
        )
        if descriptor.indexed is not None:
            header.metadata_index.SetInParent()
            header.metadata_index.fields.extend(sorted(descriptor.indexed))
        clear = request.form == pb.EXPORT_FORM_CLEAR
        with self._export_places.take(descriptor.account):
            async with aclosing(transfer.exported(use, header, self._keys, clear=clear)) as frames:
                async for frame in frames:
                    yield pb.ExportCollectionResponse(frame=frame)
        _log.info("collection exported", account=descriptor.account, resource=descriptor.id)

    async def ImportCollection(
        self, request_iterator: AsyncIterator[pb.ImportCollectionRequest], context: Any
    ) -> pb.ImportCollectionResponse:
        """Makes a collection of an export."""
        stream = transfer.ImportStream(self._importer, self._keys, self._imported)
        made = await stream.run(request_iterator)
        _log.info("collection imported", account=made.account, resource=made.id)
        return pb.ImportCollectionResponse(collection=_message(await self._catalog.listed(made)))

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Any
    ) -> pb.DeleteCollectionResponse:
        """Destroys a collection's keys, then its data."""
        descriptor = await self._catalog.get(collection_name(request.collection))
        descriptor = await self._residency.hold(descriptor)
        receipt = await self._catalog.destroy_keys(descriptor)
        # Once begun it goes on: without its keys, what is left is garbage.
        try:
            await asyncio.shield(self._purge(descriptor.account, descriptor.id))
        except ResourceExhausted as error:
            # A full disk. It must not sound as if nothing had happened.
            raise Unavailable(
                "the collection's keys are destroyed, its data is not all removed yet; repeat the call",
                reason="DELETION_UNFINISHED",
                retry_after_s=1.0,
            ) from error
        _log.info("collection deleted", account=descriptor.account, resource=descriptor.id)
        return pb.DeleteCollectionResponse(receipt=receipt)

    def _imported(self, name: str, header: pb.ExportHeader) -> Descriptor:
        wanted = self._wanted(
            pb.CreateCollectionRequest(name=name, dimension=header.dimension, metric=header.metric)
        )
        indexed = _indexed(header.metadata_index) if header.HasField("metadata_index") else None
        return replace(wanted, default_ef=_default_ef(header.default_ef), indexed=indexed)

    def _wanted(self, request: pb.CreateCollectionRequest) -> Descriptor:
        if request.metric and request.metric not in _METRICS:
            raise invalid("metric", "is not a metric")
        metric = _METRICS.get(request.metric, Metric.COSINE)
        if not request.embedder:
            if not 1 <= request.dimension <= _DIMENSION_MAX:
                raise invalid("dimension", f"must be 1 to {_DIMENSION_MAX}, or set embedder")
            return Descriptor("", "", request.name, request.dimension, metric, "", "", 0)
        embedder = self._embedder
        if embedder is None:
            raise FailedPrecondition("no embedder is configured here", reason="EMBEDDER_NOT_CONFIGURED")
        if request.embedder not in ("default", embedder.name):
            raise invalid("embedder", 'is not configured here; "default" is', reason="UNKNOWN_EMBEDDER")
        if request.dimension not in (0, embedder.dimension):
            raise invalid("dimension", f"must not be set, or be the embedder's {embedder.dimension}")
        if metric is not Metric.COSINE:
            raise invalid("metric", "must be COSINE for a text collection")
        return Descriptor(
            "", "", request.name, embedder.dimension, metric, embedder.name, embedder.fingerprint, 0
        )


def _default_ef(requested: int) -> int:
    if requested > EF_MAX:
        raise invalid("default_ef", f"must be at most {EF_MAX}")
    return requested


def _indexed(message: pb.MetadataIndex) -> frozenset[str]:
    if len(message.fields) > FIELDS_MAX:
        raise invalid("metadata_index.fields", f"has more than {FIELDS_MAX}")
    for position, name in enumerate(message.fields):
        if not 1 <= len(name) <= PATH_CHARS_MAX:
            field = f"metadata_index.fields[{position}]"
            raise invalid(field, f"must have 1 to {PATH_CHARS_MAX} characters")
    return frozenset(message.fields)


def _segments(index: VectorIndex) -> Iterator[pb.Segment]:
    graph = index.graph
    if graph is not None:
        walked = int(np.count_nonzero(index.live[: graph.until]))
        yield pb.Segment(kind=pb.Segment.KIND_HNSW, points=walked, deleted=graph.dead)
    flat = index.live[graph.until if graph is not None else 0 :]
    alive = int(np.count_nonzero(flat))
    yield pb.Segment(kind=pb.Segment.KIND_FLAT, points=alive, deleted=len(flat) - alive)


def _message(listed: Listed) -> pb.Collection:
    descriptor = listed.descriptor
    message = pb.Collection(
        id=descriptor.id,
        name=descriptor.name,
        dimension=descriptor.dimension,
        metric=_METRIC_NAMES[descriptor.metric],
        embedder=descriptor.embedder,
        embedder_fingerprint=descriptor.embedder_fingerprint,
        points=listed.points,
        documents=listed.documents,
        default_ef=descriptor.default_ef,
    )
    if descriptor.indexed is not None:
        message.metadata_index.SetInParent()
        message.metadata_index.fields.extend(sorted(descriptor.indexed))
    message.create_time.FromMilliseconds(descriptor.create_time_ms)
    return message
