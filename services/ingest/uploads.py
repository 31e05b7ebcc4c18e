"""One upload from its first byte to a searchable document, or to nothing.

    resolve collection -> earlier document of the same key? -> receive -> pipeline
    -> original written -> record and passages committed -> answered

The call's context lives for seconds; what takes longer runs under a permit of keyvault's, bound to this
upload (see standing). Until the original is written nothing is stored. From there to the commit the work
is a task of its own that a caller who leaves does not tear apart. What a crash or an unclear answer
leaves between the two is settled later by `Originals.sweep`; an upload must never be answered before
its commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from services.common import ids
from services.common.clock import Clock
from services.common.context import acting_as, current_account
from services.common.errors import DeadlineExceeded, Kind, SealcombError, invalid
from services.ingest.budget import Reservation, UploadBudget
from services.ingest.originals import Originals
from services.ingest.pipeline import Processed
from services.ingest.records import CollectionInfo, DocumentRecord, Passage, UploadHeader
from services.ingest.standing import Permits, Standing

DOCUMENT_TOO_LARGE = "DOCUMENT_TOO_LARGE"
_PERMIT_MARGIN_S = 90
# How slow a commit may be on a machine that has other work: an original to be sealed and written, a passage
# to be analysed, logged and put into the index.
_COMMIT_BYTES_PER_S = 256 * 1024
_COMMIT_PASSAGES_PER_S = 100
# After these answers the record is certainly not there; after any other one it may be.
_CERTAIN = frozenset(
    {
        Kind.INVALID_ARGUMENT,
        Kind.NOT_FOUND,
        Kind.ALREADY_EXISTS,
        Kind.PERMISSION_DENIED,
        Kind.RESOURCE_EXHAUSTED,
        Kind.FAILED_PRECONDITION,
        Kind.UNIMPLEMENTED,
        Kind.UNAUTHENTICATED,
    }
)


class PassageWriter(Protocol):
    """What an upload needs of vectorstore."""

    async def find(
        self, collection: str, idempotency_key: str
    ) -> tuple[CollectionInfo, DocumentRecord | None]:
        """A collection by name, and its document of an idempotency key that is not empty. Raises NotFound."""

    async def put(
        self, collection_id: str, record: DocumentRecord, passages: tuple[Passage, ...]
    ) -> DocumentRecord:
        """Commits a record with its passages; the record that is there now."""


class DocumentPipeline(Protocol):
    """Bytes to passages."""

    async def run(self, declared_type: str, name: str, content: bytes) -> Processed:
        """The passages of a document."""


class CollectionCheck(Protocol):
    """Whether a collection's vectors are this service's embedder's."""

    def __call__(self, collection: CollectionInfo) -> None:
        """Raises FailedPrecondition if they are not."""


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one upload may take."""

    document_bytes_max: int = 64 * 1024 * 1024
    idle_s_max: float = 30.0
    total_s_max: float = 600.0


class Uploads:
    """Takes documents in."""

    def __init__(
        self,
        *,
        passages: PassageWriter,
        permits: Permits,
        pipeline: DocumentPipeline,
        originals: Originals,
        budget: UploadBudget,
        check_collection: CollectionCheck,
        clock: Clock,
        limits: UploadLimits,
    ) -> None:
        self._passages = passages
        self._permits = permits
        self._pipeline = pipeline
        self._originals = originals
        self._budget = budget
        self._check_collection = check_collection
        self._clock = clock
        self._limits = limits
        self._tasks: set[asyncio.Task[Any]] = set()

    async def upload(
        self, header: UploadHeader, parts: AsyncIterator[bytes]
    ) -> tuple[CollectionInfo, DocumentRecord]:
        """Takes a document in; returns once it is durable and searchable.

        Raises what the collection, the budget, the pipeline and the commit raise; then nothing is left of it.
        """
        collection, earlier = await self._passages.find(header.collection, header.idempotency_key)
        self._check_collection(collection)
        if earlier is not None:
            return collection, earlier
        ttl_s = int(self._limits.total_s_max) + _PERMIT_MARGIN_S
        with Standing(self._permits, self._clock, ttl_s, self._spawn) as standing:
            return collection, await self._take_in(collection, header, parts, standing)

    async def drain(self, timeout_s: float) -> None:
        """Waits for commits that are on their way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _take_in(
        self,
        collection: CollectionInfo,
        header: UploadHeader,
        parts: AsyncIterator[bytes],
        standing: Standing,
    ) -> DocumentRecord:
        with self._budget.reserve(current_account()) as reservation:
            try:
                async with asyncio.timeout(self._limits.total_s_max):
                    received = await self._receive(parts, reservation)
                    size_bytes = sum(len(part) for part in received)
                    processed = await self._pipeline.run(header.content_type, header.name, b"".join(received))
            except TimeoutError:
                raise DeadlineExceeded(
                    "the upload took too long; send it again", reason="UPLOAD_TOO_SLOW"
                ) from None
            record = self._record(collection, header, processed, size_bytes)
            work_s = size_bytes / _COMMIT_BYTES_PER_S + len(processed.passages) / _COMMIT_PASSAGES_PER_S
            with acting_as(await standing.caller(work_s=work_s)):
                # Cancelled half way, a commit would be neither done nor undone.
                return await asyncio.shield(
                    self._spawn(self._commit(collection, record, processed.passages, received))
                )

    async def _receive(self, parts: AsyncIterator[bytes], reservation: Reservation) -> list[bytes]:
        received: list[bytes] = []
        size_bytes = 0
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_s_max):
                    part = await anext(parts, None)
            except TimeoutError:
                raise DeadlineExceeded(
                    "the upload stood still; send it again", reason="UPLOAD_IDLE"
                ) from None
            if part is None:
                return received
            size_bytes += len(part)
            if size_bytes > self._limits.document_bytes_max:
                limit = self._limits.document_bytes_max
                raise invalid(
                    "chunk", f"the document is larger than {limit} bytes", reason=DOCUMENT_TOO_LARGE
                )
            reservation.grow(len(part))
            received.append(part)

    def _record(
        self, collection: CollectionInfo, header: UploadHeader, processed: Processed, size_bytes: int
    ) -> DocumentRecord:
        document_id = ids.new_id()
        return DocumentRecord(
            id=document_id,
            name=header.name,
            content_type=processed.form.value,
            size_bytes=size_bytes,
            passages=len(processed.passages),
            pages=processed.pages,
            metadata=header.metadata,
            principals=header.principals,
            create_time_ms=int(self._clock.now_s() * 1000),
            object_key=f"{current_account()}/{collection.id}/{document_id}",
            idempotency_key=header.idempotency_key,
        )

    async def _commit(
        self,
        collection: CollectionInfo,
        record: DocumentRecord,
        passages: tuple[Passage, ...],
        parts: list[bytes],
    ) -> DocumentRecord:
        # The permit has at most its margin left, and what it cannot do any more cannot happen.
        within_s = self._limits.total_s_max + _PERMIT_MARGIN_S
        try:
            object_key = await self._originals.write(
                current_account(), collection.id, record.id, parts, within_s
            )
        except SealcombError:
            with contextlib.suppress(SealcombError):
                await self._originals.discard(record.object_key)
            raise
        try:
            stored = await self._passages.put(collection.id, record, passages)
        except SealcombError as error:
            if error.kind in _CERTAIN:
                await self._originals.discard(object_key)
            raise
        if stored.id == record.id:
            self._originals.keep_soon(object_key)
        else:
            # Another upload with the same idempotency key was faster.
            await self._originals.discard(object_key)
        return stored

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen where the caller has left
