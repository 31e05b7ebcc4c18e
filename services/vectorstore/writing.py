"""What can be written to an open text collection, and the checks of every write.

Each function is one durable write; those to collections of points are in editing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.common.errors import FailedPrecondition, InvalidArgument, invalid
from services.vectorstore import quotas
from services.vectorstore.collection import Decision
from services.vectorstore.columns import FIELDS_MAX
from services.vectorstore.documents import DocumentState, Stored
from services.vectorstore.metadata import Fields
from services.vectorstore.operations import (
    DeleteDocument,
    Operation,
    PutDocument,
    UpdatePoints,
    UpsertPoints,
)
from services.vectorstore.residency import Use
from services.vectorstore.state import State

_VECTOR_OVERHEAD_BYTES = 64


def require_points(use: Use) -> None:
    """Raises FailedPrecondition for a text collection, whose points are made of documents."""
    if use.descriptor.embedder:
        raise not_points()


def require_text(use: Use) -> None:
    """Raises FailedPrecondition unless it is a text collection."""
    if not use.descriptor.embedder:
        raise not_text()


def not_points() -> FailedPrecondition:
    """What a text collection answers to writes of points."""
    return FailedPrecondition(
        "this is a text collection; write to it with DocumentService", reason="TEXT_COLLECTION"
    )


def not_text() -> FailedPrecondition:
    """What a collection without an embedder answers to text."""
    return FailedPrecondition(
        "this collection has no embedder; create one with an embedder to search by text",
        reason="NOT_A_TEXT_COLLECTION",
    )


async def put_document(use: Use, operation: PutDocument, fields: Fields) -> Stored:
    """Puts a document; an idempotency key that was used answers with the document put under it."""
    require_text(use)
    check_shape(use, operation, len(operation.passages))
    size = size_of(operation, use.descriptor.dimension)
    wanted = operation.document

    def decide(state: State) -> Decision[Stored]:
        texts = _texts(state)
        earlier = texts.document_by_key(wanted.idempotency_key) if wanted.idempotency_key else None
        same = texts.document(wanted.id)
        if earlier is None and same is not None and not _is_newer(operation, same):
            # The same put again, after an answer that was lost.
            earlier = same
        if earlier is not None:
            found = earlier
            return Decision((), lambda _counts: found)
        check_room(use, state, len(operation.passages), size)
        if texts.columns.too_many([fields]):
            raise too_many_fields("document.metadata")
        document = replace(wanted, sequence=texts.next_sequence)

        def result(_counts: Sequence[int]) -> Stored:
            stored = _texts(use.collection.state).document(document.id)
            if stored is None:
                raise LookupError("an applied document is gone")
            return stored

        return Decision([replace(operation, document=document)], result)

    return await use.collection.write(decide, use.key, size_bytes=size)


async def delete_document(use: Use, id_: str) -> Stored | None:
    """Deletes a document and its passages; returns what it was, None if it was not there."""
    require_text(use)

    def decide(state: State) -> Decision[Stored | None]:
        stored = _texts(state).document(id_)
        operations: list[Operation] = [] if stored is None else [DeleteDocument(id_)]
        return Decision(operations, lambda _counts: stored)

    return await use.collection.write(decide, use.key)


def size_of(operation: UpsertPoints | UpdatePoints | PutDocument, dimension: int) -> int:
    """About how many bytes an operation takes."""
    match operation:
        case UpsertPoints():
            content = (
                sum(map(len, operation.ids))
                + sum(map(len, operation.metadata))
                + sum(map(len, operation.texts))
            )
            rows = len(operation.ids)
        case UpdatePoints():
            content = sum(len(raw or b"") for raw in operation.metadata)
            content += sum(len(text or "") for text in operation.texts) + sum(map(len, operation.ids))
            rows = len(operation.ids)
        case PutDocument():
            content = len(operation.document.metadata) + sum(
                len(passage.text) for passage in operation.passages
            )
            rows = len(operation.passages)
    return content + rows * (4 * dimension + _VECTOR_OVERHEAD_BYTES)


def check_shape(use: Use, operation: UpsertPoints | PutDocument, count: int) -> None:
    # What is in the log must apply at every restart, so what could not is stopped before it.
    if operation.vectors.shape != (count, use.descriptor.dimension):
        raise ValueError("vectors do not fit the collection")


def _is_newer(operation: PutDocument, stored: Stored) -> bool:
    """Whether a put under the id of a stored document is a new version of it."""
    replaces_itself = operation.replaces == operation.document.id
    return replaces_itself and operation.document.object_key != stored.document.object_key


def _texts(state: State) -> DocumentState:
    if not isinstance(state, DocumentState):
        raise not_text()
    return state


def check_room(use: Use, state: State, points: int, size_bytes: int) -> None:
    """Raises ResourceExhausted if the collection or its account cannot hold so much more."""
    collection = use.collection
    quotas.check(
        collection.parts.caps, collection.usage, (state.points, state.size_bytes), (points, size_bytes)
    )


def too_many_fields(field: str) -> InvalidArgument:
    return invalid(
        field,
        f"the collection would have more than {FIELDS_MAX} distinct metadata fields",
        reason="TOO_MANY_FIELDS",
    )
