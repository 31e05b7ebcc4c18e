"""ExportCollection and ImportCollection: a collection out as frames, and in again as a new one.

An export is of one moment, whatever is written meanwhile. An import takes its frames in order (header,
points, end) and is nothing unless the end came and names as many points as there were.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

import numpy as np
from google.protobuf.message import DecodeError

from sealcomb.v1 import collection_service_pb2 as pb
from sealcomb.v1 import vector_service_pb2 as vectors
from services.common import ids
from services.common.context import current_account
from services.common.datakeys import DataKeys
from services.common.errors import NotFound, Unavailable, invalid
from services.common.sealing import OpenFailed, key_id_of
from services.vectorstore.catalog import CATALOG, Descriptor
from services.vectorstore.exports import OpenedExport, SealedExport, bad_export
from services.vectorstore.importing import Import, Importer
from services.vectorstore.operations import UpsertPoints
from services.vectorstore.places import Places
from services.vectorstore.residency import Use
from services.vectorstore.servicers import batches
from services.vectorstore.state import Capture
from services.vectorstore.writing import require_points

_FRAME_BYTES = 1024 * 1024
_FRAME_POINTS = 500
_EXPORTS_MAX = 8
_ACCOUNT_EXPORTS_MAX = 2

# What the header of an export asks for, checked, under a name.
Wanted = Callable[[str, pb.ExportHeader], Descriptor]


def export_places() -> Places:
    """Places for exports: each keeps all that its collection was in memory until its caller has read it."""
    return Places("exports", _EXPORTS_MAX, _ACCOUNT_EXPORTS_MAX)


async def exported(
    use: Use, header: pb.ExportHeader, keys: DataKeys, *, clear: bool
) -> AsyncGenerator[pb.ExportFrame, None]:
    """The frames of a collection as it is now. Raises Unavailable if it is closed meanwhile."""
    require_points(use)
    account = use.descriptor.account
    name = ids.new_id()
    sealed = None if clear else SealedExport(await keys.current(CATALOG, CATALOG), account, name)
    capture = await use.collection.at_rest(use.collection.state.capture)
    try:
        items = capture.live_items.nonzero()[0]
        header.points = len(items)
        if sealed is not None:
            yield pb.ExportFrame(seal=pb.ExportSeal(export=name, points=len(items)))
        for frame in _frames(capture, items, header):
            if not use.collection.usable:
                # Its key may have been turned off, or it is gone.
                raise Unavailable("the collection was closed during the export; export again")
            if sealed is None:
                yield frame
            else:
                yield pb.ExportFrame(sealed=sealed.seal(frame.SerializeToString()))
            await asyncio.sleep(0)
        if sealed is not None:
            yield pb.ExportFrame(sealed=sealed.end())
    finally:
        capture.release()


def _frames(
    capture: Capture, items: np.ndarray[tuple[int], np.dtype[np.int64]], header: pb.ExportHeader
) -> Iterator[pb.ExportFrame]:
    yield pb.ExportFrame(header=header)
    for start in range(0, len(items), _FRAME_POINTS):
        some = items[start : start + _FRAME_POINTS]
        ends = np.cumsum(capture.sizes(some))
        places = np.searchsorted(ends, np.arange(_FRAME_BYTES, int(ends[-1]), _FRAME_BYTES))
        for part in np.split(some, np.unique(places)):
            for operation in capture.operations(part):
                if isinstance(operation, UpsertPoints) and operation.ids:
                    yield pb.ExportFrame(points=pb.ExportPoints(points=_points(operation)))
    yield pb.ExportFrame(end=pb.ExportEnd(points=len(items)))


def _points(operation: UpsertPoints) -> Iterator[vectors.Point]:
    raw = np.ascontiguousarray(operation.vectors, "<f4")
    versions = operation.versions or [0] * len(operation.ids)
    for place, id_ in enumerate(operation.ids):
        point = vectors.Point(
            id=id_, vector_f32=raw[place].tobytes(), text=operation.texts[place], version=versions[place]
        )
        if operation.metadata[place]:
            point.metadata.ParseFromString(operation.metadata[place])
        yield point


class ImportStream:
    """One ImportCollection between its messages."""

    def __init__(self, importer: Importer, keys: DataKeys, wanted: Wanted) -> None:
        self._importer = importer
        self._keys = keys
        self._wanted = wanted
        self._name = ""
        self._seal: str | None = None
        self._opened: OpenedExport | None = None
        self._import: Import | None = None
        self._ended = False

    async def run(self, requests: AsyncIterator[pb.ImportCollectionRequest]) -> Descriptor:
        """Takes all frames; the collection that is there then."""
        with self._importer.places.take(current_account()):
            try:
                async for request in requests:
                    await self._take(request)
                if self._opened is not None:
                    for frame in self._opened.end():
                        await self._plain(_parsed(frame))
                if self._import is None or not self._ended:
                    raise invalid("frame", "is missing: the export has no end", reason="EXPORT_BROKEN")
                return await self._import.finish()
            finally:
                if self._import is not None:
                    await asyncio.shield(self._import.close())

    async def _take(self, request: pb.ImportCollectionRequest) -> None:
        if not self._name:
            if not 1 <= len(request.collection) <= 256:
                raise invalid("collection", "must have 1 to 256 characters")
            self._name = request.collection
        elif request.collection not in ("", self._name):
            raise invalid("collection", "must be the first message's, or empty")
        if request.ByteSize() > batches.MESSAGE_BYTES_MAX:
            raise invalid("frame", "is larger than 4 MiB")
        frame = request.frame
        match frame.WhichOneof("content"):
            case "seal" if self._import is None and self._seal is None:
                self._seal = frame.seal.export
            case "sealed" if self._seal is not None:
                for raw in await self._open(frame.sealed):
                    await self._plain(_parsed(raw))
            case "header" | "points" | "end" if self._seal is None:
                await self._plain(frame)
            case _:
                raise bad_export()

    async def _open(self, sealed: bytes) -> Iterator[bytes]:
        if self._opened is None:
            try:
                key = await self._keys.by_id(CATALOG, CATALOG, key_id_of(sealed))
            except (OpenFailed, NotFound):
                raise bad_export() from None
            self._opened = OpenedExport(key, current_account(), self._seal or "")
        return self._opened.open(sealed)

    async def _plain(self, frame: pb.ExportFrame) -> None:
        kind = frame.WhichOneof("content")
        if self._ended:
            raise bad_export()
        if kind == "header" and self._import is None:
            self._import = await self._importer.begin(self._wanted(self._name, frame.header))
        elif kind == "points" and self._import is not None:
            made = self._import.descriptor
            batch = batches.upsert(frame.points.points, made.dimension, made.metric)
            self._import.add(batch.operation, batch.fields)
        elif kind == "end" and self._import is not None and frame.end.points == self._import.points:
            self._ended = True
        else:
            raise bad_export()


def _parsed(raw: bytes) -> pb.ExportFrame:
    try:
        return pb.ExportFrame.FromString(raw)
    except DecodeError:
        raise bad_export() from None
