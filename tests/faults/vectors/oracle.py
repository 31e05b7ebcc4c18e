"""What a store must hold after a fault: everything acknowledged, and of the call in flight all or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from sealcomb.v1 import collection_service_pb2 as collections
from sealcomb.v1 import vector_service_pb2 as vectors
from services.common.rpc.status import DETAILS_KEY
from tests.faults.vectors.rig import Rig

DIMENSION = 16
# Reasons of refusals that say that nothing was changed.
_UNCHANGED = frozenset({"STORAGE_FULL"})
_SETTLED_WITHIN_S = 30.0

# What a point is: its vector's bytes, and its text.
Content = dict[str, tuple[bytes, str]]
State = dict[str, Content]


@dataclass
class Verdict:
    """What a comparison found."""

    lost: int = 0
    wrong: int = 0
    notes: list[str] = field(default_factory=list)


def content_of(ids: range, salt: str = "", text_chars: int = 0) -> Content:
    """Points whose vectors follow from their numbers and a salt, and the length of their texts."""
    made = {}
    for number in ids:
        chance = np.random.default_rng([number, *salt.encode()])
        vector = chance.normal(size=DIMENSION).astype("<f4")
        made[f"p{number:06d}"] = (vector.tobytes(), f"text {salt} of {number}".ljust(text_chars, "."))
    return made


def _points_of(content: Content) -> list[vectors.Point]:
    return [vectors.Point(id=id_, vector_f32=vector, text=text) for id_, (vector, text) in content.items()]


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason that a refusal gives; empty where it gives none."""
    raw = dict(error.trailing_metadata() or ()).get(DETAILS_KEY)
    info = error_details_pb2.ErrorInfo()
    if isinstance(raw, bytes):
        for detail in status_pb2.Status.FromString(raw).details:
            if detail.Unpack(info):
                break
    return str(info.reason)


class Oracle:
    """The states that are possible: one, or two while a call's fate is not known."""

    def __init__(self, rig: Rig, only: str = "") -> None:
        self.rig = rig
        # Looks at one collection alone, where others write beside.
        self.only = only
        self.possible: list[State] = [{}]
        # Collections of whose deletion is not known whether it happened: they may still go.
        self._going: set[str] = set()
        self.acknowledged = 0
        self.refusals: list[str] = []

    def copy(self) -> Oracle:
        """The same, to go on from here more than once."""
        twin = Oracle(self.rig, self.only)
        twin.possible = [dict(state) for state in self.possible]
        twin._going = set(self._going)
        return twin

    async def create(self, name: str) -> bool:
        """Creates a collection; True once it is acknowledged."""
        request = collections.CreateCollectionRequest(
            name=name, dimension=DIMENSION, metric=collections.METRIC_L2
        )
        return await self._write("CollectionService/CreateCollection", request, {name: {}})

    async def drop(self, name: str) -> bool:
        """Deletes a collection."""
        request = collections.DeleteCollectionRequest(collection=name)
        return await self._write("CollectionService/DeleteCollection", request, {name: None})

    async def bring(self, name: str, content: Content) -> bool:
        """Imports points as a new collection."""
        points = _points_of(content)
        frames = [
            collections.ExportFrame(
                header=collections.ExportHeader(dimension=DIMENSION, metric=collections.METRIC_L2)
            ),
            collections.ExportFrame(points=collections.ExportPoints(points=points)),
            collections.ExportFrame(end=collections.ExportEnd(points=len(points))),
        ]
        requests = [collections.ImportCollectionRequest(collection=name, frame=frame) for frame in frames]
        return await self._write("CollectionService/ImportCollection", requests, {name: content})

    async def upsert(self, name: str, content: Content) -> bool:
        """Writes points in one call."""
        request = vectors.UpsertRequest(collection=name, points=_points_of(content))
        return await self._write("VectorService/Upsert", request, {name: self._now(name) | content})

    async def delete(self, name: str, ids: range) -> bool:
        """Deletes points in one call."""
        gone = [f"p{number:06d}" for number in ids]
        request = vectors.DeletePointsRequest(collection=name, ids=gone)
        left = {id_: value for id_, value in self._now(name).items() if id_ not in set(gone)}
        return await self._write("VectorService/DeletePoints", request, {name: left})

    def _now(self, name: str) -> Content:
        return self.possible[0].get(name, {})

    async def _write(self, method: str, request: Any, change: Mapping[str, Content | None]) -> bool:
        before = self.possible[0]
        after = {name: content for name, content in {**before, **change}.items() if content is not None}
        try:
            await self.rig.call(method, request)
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            self.refusals.append(f"{error.code().name} {reason}")
            if reason == "COLLECTION_NOT_FOUND":
                # A deletion of which nobody knew whether it happened did.
                self.possible = [state for state in self.possible if not set(change) & set(state)]
                assert self.possible, f"{change.keys()} is gone"
            elif reason not in _UNCHANGED:
                self.possible = [before, after]
                self._going |= {name for name, content in change.items() if content is None}
            return False
        self.possible = [after]
        self._going -= set(change)
        self.acknowledged += 1
        return True

    async def settle(self) -> bool:
        """Learns which of the possible states is there; False while nothing answers."""
        try:
            seen = await self.read()
        except grpc.aio.AioRpcError:
            return False
        # What is there need not stay: a commit that failed at its last step may yet be found.
        self.possible = [seen, *(state for state in self.possible if state != seen)][:2]
        return seen in self.possible[:1]

    async def compare(self) -> Verdict:
        """What is there against what may be; what is in doubt is settled by it."""
        end = asyncio.get_running_loop().time() + _SETTLED_WITHIN_S
        while True:
            seen = await self.read()
            late = asyncio.get_running_loop().time() > end
            if any(seen == state for state in self.possible):
                try:
                    verdict = await self._ask(seen)
                except grpc.aio.AioRpcError as error:
                    if late or not self._may_settle(seen) or error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                else:
                    if not self._may_settle(seen):
                        self.possible = [seen]
                    return verdict
            # A collection whose keys are destroyed is removed in the background.
            if late or not self._may_settle(seen):
                break
            await asyncio.sleep(0.1)
        verdict = Verdict()
        for name, wanted in min(self.possible, key=len).items():
            there = seen.get(name, {})
            verdict.lost += sum(id_ not in there for id_ in wanted)
            verdict.wrong += sum(there[id_] != value for id_, value in wanted.items() if id_ in there)
            verdict.wrong += sum(id_ not in wanted for id_ in there)
            verdict.lost += name not in seen
        verdict.wrong += sum(name not in state for state in self.possible for name in seen)
        verdict.notes.append(f"there {_sizes(seen)}, possible {[_sizes(state) for state in self.possible]}")
        self.possible = [seen]
        return verdict

    def _may_settle(self, seen: State) -> bool:
        return any(set(state) < set(seen) <= set(state) | self._going for state in self.possible)

    async def read(self) -> State:
        """Everything that the store says it holds."""
        listed = await self.rig.call(
            "CollectionService/ListCollections", collections.ListCollectionsRequest(page_size=100)
        )
        seen: State = {}
        for collection in listed.collections:
            if self.only not in ("", collection.name):
                continue
            try:
                seen[collection.name] = await self._points(collection.name)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                seen[collection.name] = {"being removed": (b"", "")}
        return seen

    async def _points(self, name: str) -> Content:
        found: Content = {}
        request = vectors.ListPointsRequest(collection=name, page_size=1000, with_vectors=True)
        while True:
            page = await self.rig.call("VectorService/ListPoints", request)
            for each in page.points:
                found[each.id] = (each.vector_f32, each.text)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def _ask(self, state: State) -> Verdict:
        """The nearest of some points, against brute force."""
        verdict = Verdict()
        for name, content in state.items():
            if not content:
                continue
            ids = list(content)
            matrix = np.array([np.frombuffer(content[id_][0], "<f4") for id_ in ids])
            for place in (0, len(ids) // 2, len(ids) - 1):
                query = matrix[place] + np.float32(0.001)
                request = vectors.QueryRequest(collection=name, vector_f32=query.tobytes(), top_k=3)
                hits = (await self.rig.call("VectorService/Query", request)).hits
                nearest = ids[int(((matrix - query) ** 2).sum(axis=1).argmin())]
                if not hits or hits[0].id != nearest or any(hit.id not in content for hit in hits):
                    verdict.wrong += 1
                    verdict.notes.append(f"{name}: nearest to {ids[place]} is not {nearest}")
        return verdict


def _sizes(state: State) -> dict[str, int]:
    return {name: len(content) for name, content in state.items()}
