"""What can be written to an open collection of points.

Each function is one durable write, all or nothing, except a deletion by filter, which takes many points in
several writes so that no other call waits for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.common.errors import Aborted, FieldViolation
from services.vectorstore.collection import Decision
from services.vectorstore.filters import Filter
from services.vectorstore.metadata import Fields
from services.vectorstore.operations import DeletePoints, UpdatePoints, UpsertPoints
from services.vectorstore.points import PointState
from services.vectorstore.residency import Use
from services.vectorstore.searching import Finder
from services.vectorstore.state import State
from services.vectorstore.writing import (
    check_room,
    check_shape,
    not_points,
    require_points,
    size_of,
    too_many_fields,
)

# What one write of a deletion by filter takes: some milliseconds of the event loop.
_DELETE_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: how many points, their version, and the places of those that could not be written."""

    count: int
    version: int
    refused: Sequence[int] = ()


async def upsert(
    use: Use,
    operation: UpsertPoints,
    fields: Sequence[Fields],
    *,
    versions: Sequence[int] | None = None,
    partial: bool = False,
) -> Written:
    """Writes points, all or none; with `partial` those whose fields there is room for.

    With `versions` only if each point still has its version, 0 for one that is not there; else Aborted.
    """
    require_points(use)
    check_shape(use, operation, len(operation.ids))
    size = size_of(operation, use.descriptor.dimension)

    def decide(state: State) -> Decision[Written]:
        points = _points(state)
        check_room(use, state, sum(points.row_of(id_) is None for id_ in operation.ids), size)
        if versions is not None:
            _check_versions(points, operation.ids, versions, "points")
        refused = points.columns.too_many(fields)
        wanted = _without(operation, refused)
        if not wanted.ids or (refused and not partial):
            return Decision((), lambda _counts: Written(0, 0, refused))
        return Decision([wanted], lambda counts: Written(sum(counts), _version(use), refused))

    return await use.collection.write(decide, use.key, size_bytes=size, alone=versions is not None)


async def update(
    use: Use, operation: UpdatePoints, fields: Sequence[Fields], versions: Sequence[int] | None
) -> Written:
    """Replaces metadata or texts of points; `refused` are those that do not exist."""
    require_points(use)
    size = size_of(operation, use.descriptor.dimension)

    def decide(state: State) -> Decision[Written]:
        points = _points(state)
        check_room(use, state, 0, size)
        if versions is not None:
            _check_versions(points, operation.ids, versions, "updates", must_exist=True)
        too_many = points.columns.too_many(fields)
        if too_many:
            raise too_many_fields(f"updates[{too_many[0]}].metadata")
        missing = [place for place, id_ in enumerate(operation.ids) if points.row_of(id_) is None]
        if len(missing) == len(operation.ids):
            return Decision((), lambda _counts: Written(0, 0, missing))
        return Decision([operation], lambda counts: Written(sum(counts), _version(use), missing))

    return await use.collection.write(decide, use.key, size_bytes=size)


async def delete(use: Use, ids: Sequence[str], versions: Sequence[int] | None = None) -> int:
    """Deletes points by id; returns how many were there. With `versions` see `upsert`."""
    require_points(use)
    size = sum(len(id_) for id_ in ids)
    operation = DeletePoints(ids)

    def decide(state: State) -> Decision[int]:
        if versions is not None:
            _check_versions(_points(state), ids, versions, "ids")
        return Decision([operation], sum)

    return await use.collection.write(decide, use.key, size_bytes=size, alone=versions is not None)


async def delete_matching(use: Use, finder: Finder, condition: Filter) -> int:
    """Deletes the points that match now; returns how many.

    What is written to one of them meanwhile comes after the deletion, so that point stays.
    """
    require_points(use)
    state, mask = await finder.matching(use, condition)
    rows = np.arange(0) if mask is None else mask.nonzero()[0]
    deleted = 0
    for start in range(0, len(rows), _DELETE_BATCH):
        # The state may have been compacted into another meanwhile; a version means the same in both.
        there = (row for row in rows[start : start + _DELETE_BATCH].tolist() if state.is_live(row))
        batch = [state.point(row) for row in there]
        deleted += await _delete_unchanged(use, {point.id: point.version for point in batch})
    return deleted


async def _delete_unchanged(use: Use, versions: dict[str, int]) -> int:
    def decide(state: State) -> Decision[int]:
        points = _points(state)
        ids = [id_ for id_, version in versions.items() if points.version_of(id_) == version]
        return Decision([DeletePoints(ids)] if ids else [], sum)

    return await use.collection.write(decide, use.key, size_bytes=sum(map(len, versions)))


def _points(state: State) -> PointState:
    if not isinstance(state, PointState):
        raise not_points()
    return state


def _version(use: Use) -> int:
    return _points(use.collection.state).next_version - 1


def _without(operation: UpsertPoints, places: Sequence[int]) -> UpsertPoints:
    if not places:
        return operation
    out = set(places)
    kept = [place for place in range(len(operation.ids)) if place not in out]
    return UpsertPoints(
        [operation.ids[place] for place in kept],
        operation.vectors[kept],
        [operation.metadata[place] for place in kept],
        [operation.texts[place] for place in kept],
    )


def _check_versions(
    points: PointState, ids: Sequence[str], versions: Sequence[int], field: str, *, must_exist: bool = False
) -> None:
    """Raises Aborted that names each point whose version is another."""
    violations = []
    for place, (id_, wanted) in enumerate(zip(ids, versions, strict=True)):
        actual = points.version_of(id_)
        if actual != wanted or (must_exist and not actual):
            found = f"the version is {actual}" if actual else "the point does not exist"
            violations.append(FieldViolation(f"{field}[{place}].version", found))
    if violations:
        raise Aborted(
            f"{len(violations)} of the points changed; read them and repeat",
            reason="VERSION_CONFLICT",
            fields=violations,
        )
