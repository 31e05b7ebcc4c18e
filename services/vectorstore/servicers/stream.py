"""One UpsertStream: batches in, each durable before the next is read, bad points counted and named.

A batch shares its fate with no other: when the stream breaks, all batches before stay and nothing of the one
that broke it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from sealcomb.v1 import vector_service_pb2 as pb
from services.common.errors import InvalidArgument, invalid
from services.vectorstore import editing, writing
from services.vectorstore.catalog import no_such_collection
from services.vectorstore.residency import Use
from services.vectorstore.servicers import batches

_FAILURES_MAX = 1000

# Opens the collection with a name for the current caller.
OpenCollection = Callable[[str], Awaitable[Use]]


class UpsertStream:
    """The state of one stream between its messages."""

    def __init__(self, open_collection: OpenCollection) -> None:
        self._open = open_collection
        self._name = ""
        self._id = ""
        self._atomic = False
        # Points of all batches so far.
        self._position = 0
        self._response = pb.UpsertStreamResponse()

    async def run(self, requests: AsyncIterator[pb.UpsertStreamRequest]) -> pb.UpsertStreamResponse:
        """Writes every batch and sums up."""
        async for request in requests:
            await self._take(request)
        if not self._id:
            raise invalid("collection", "is missing: the stream is empty")
        return self._response

    async def _take(self, request: pb.UpsertStreamRequest) -> None:
        if not self._name:
            self._name, self._atomic = request.collection, request.atomic_batches
        elif request.collection not in ("", self._name):
            raise invalid("collection", "must be the first message's, or empty")
        if request.ByteSize() > batches.MESSAGE_BYTES_MAX:
            raise invalid("points", "is larger than 4 MiB; send smaller batches")
        # Opened for each batch: the key may be gone, or the collection.
        use = await self._open(self._name)
        writing.require_points(use)
        if self._id not in ("", use.descriptor.id):
            # Deleted and made anew under the same name: not what the stream began to write to.
            raise no_such_collection()
        self._id = use.descriptor.id
        await self._write(use, request)
        self._position += len(request.points)

    async def _write(self, use: Use, request: pb.UpsertStreamRequest) -> None:
        bad: list[tuple[int, InvalidArgument]] = []
        descriptor = use.descriptor
        batch = batches.upsert(
            request.points, descriptor.dimension, descriptor.metric, lambda *found: bad.append(found)
        )
        count = 0
        if batch.places and not (bad and self._atomic):
            written = await editing.upsert(use, batch.operation, batch.fields, partial=not self._atomic)
            count = written.count
            for place in written.refused:
                bad.append((batch.places[place], writing.too_many_fields("metadata")))
        self._response.upserted += count
        self._response.failed += len(request.points) - count
        for place, error in sorted(bad, key=lambda found: found[0]):
            self._report(place, error)

    def _report(self, place: int, error: InvalidArgument) -> None:
        if len(self._response.failures) == _FAILURES_MAX:
            return
        field, description = error.fields[0].field, error.fields[0].description
        self._response.failures.add(
            position=self._position + place,
            field=field.removeprefix(f"points[{place}]."),
            reason=error.reason,
            message=description,
        )
