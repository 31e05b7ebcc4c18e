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
# Writes one batch here or where its collection is held: it is given as a stream of its own, and as what to
# do here.
PassOn = Callable[
    [pb.UpsertStreamRequest, Callable[[], Awaitable[pb.UpsertStreamResponse]]],
    Awaitable[pb.UpsertStreamResponse],
]


class UpsertStream:
    """The state of one stream between its messages."""

    def __init__(self, open_collection: OpenCollection, pass_on: PassOn | None = None) -> None:
        self._open = open_collection
        self._pass_on = pass_on
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
        if not self._name:
            raise invalid("collection", "is missing: the stream is empty")
        return self._response

    async def _take(self, request: pb.UpsertStreamRequest) -> None:
        if not self._name:
            self._name, self._atomic = request.collection, request.atomic_batches
        elif request.collection not in ("", self._name):
            raise invalid("collection", "must be the first message's, or empty")
        if request.ByteSize() > batches.MESSAGE_BYTES_MAX:
            raise invalid("points", "is larger than 4 MiB; send smaller batches")
        if self._pass_on is None:
            written = await self._write(request)
        else:
            alone = pb.UpsertStreamRequest(
                collection=self._name, points=request.points, atomic_batches=self._atomic
            )
            written = await self._pass_on(alone, lambda: self._write(request))
        self._response.upserted += written.upserted
        self._response.failed += written.failed
        for failure in written.failures[: _FAILURES_MAX - len(self._response.failures)]:
            self._response.failures.add().CopyFrom(failure)
            self._response.failures[-1].position += self._position
        self._position += len(request.points)

    async def _write(self, request: pb.UpsertStreamRequest) -> pb.UpsertStreamResponse:
        """Writes a batch, places counted from its own first."""
        # Opened for each batch: the key may be gone, or the collection.
        use = await self._open(self._name)
        writing.require_points(use)
        descriptor = use.descriptor
        if self._id not in ("", descriptor.id):
            # Deleted and made anew under the same name: not what the stream began to write to.
            raise no_such_collection()
        self._id = descriptor.id
        bad: list[tuple[int, InvalidArgument]] = []
        batch = batches.upsert(
            request.points, descriptor.dimension, descriptor.metric, lambda *found: bad.append(found)
        )
        count = 0
        if batch.places and not (bad and self._atomic):
            written = await editing.upsert(use, batch.operation, batch.fields, partial=not self._atomic)
            count = written.count
            for place in written.refused:
                bad.append((batch.places[place], writing.too_many_fields("metadata")))
        response = pb.UpsertStreamResponse(upserted=count, failed=len(request.points) - count)
        for place, error in sorted(bad, key=lambda found: found[0])[:_FAILURES_MAX]:
            _report(response, place, error)
        return response


def _report(response: pb.UpsertStreamResponse, place: int, error: InvalidArgument) -> None:
    field, description = error.fields[0].field, error.fields[0].description
    response.failures.add(
        position=place,
        field=field.removeprefix(f"points[{place}]."),
        reason=error.reason,
        message=description,
    )
