"""Twins: with one control switched off, what its test forbids happens. So the tests can fail."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common.errors import ResourceExhausted, SealcombError
from services.common.sealing import Opener
from services.vectorstore import parts
from services.vectorstore.collection import Collection
from services.vectorstore.filters import OneOf
from services.vectorstore.index import Graph, Metric, VectorIndex, build_graph
from services.vectorstore.operations import DeletePoints
from services.vectorstore.parts import SnapshotBroken
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node
from tests.vectorstore.snapshots import SCOPE, dump, dumped, moment_of, open_whole, pieces, points, sealed


def _graph_after_a_deletion() -> list[int]:
    vectors = np.random.default_rng(1).normal(size=(9000, 8)).astype(np.float32)
    index = VectorIndex(8, Metric.COSINE)
    index.publish(index.reserve(vectors), len(vectors))
    graph = build_graph(index.plan_graph(), threading.Event())
    assert graph is not None
    index.adopt_graph(graph)
    index.remove(np.array([7]))
    return index.search(vectors[7], 10).rows.tolist()  # type: ignore[no-any-return]


def test_f12_a_deleted_point_is_not_found_though_the_graph_still_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F12, and its twin: without the mark the graph returns it."""
    assert 7 not in _graph_after_a_deletion()
    monkeypatch.setattr(Graph, "remove", lambda _self, _rows: None)
    assert 7 in _graph_after_a_deletion()


def _dump_of_a_capture_before_a_deletion() -> bytes:
    state = points()
    capture = state.capture()
    moment = moment_of(state)
    state.apply(DeletePoints(["p1", "p2"]))
    raw = b"".join(dump(moment, capture))
    capture.release()
    return raw


def test_f23_a_capture_stays_as_it_was_while_the_state_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """F23, and its twin: without the pin, deleted vectors turn to zeros under the snapshot."""
    before = dumped(points())
    assert _dump_of_a_capture_before_a_deletion() == before
    true_freeze = VectorIndex.freeze

    def careless(self: VectorIndex) -> Any:
        frozen = true_freeze(self)
        self._pins -= 1
        return frozen

    monkeypatch.setattr(VectorIndex, "freeze", careless)
    assert _dump_of_a_capture_before_a_deletion() != before


def test_f2_twin_without_end_and_digest_a_cut_snapshot_would_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F2's twin: what was authenticated so far would pass for the whole."""
    raw, digest = sealed(dumped(points(2000)))
    cut = raw[: len(raw) // 2]
    with pytest.raises(SnapshotBroken):
        open_whole(SCOPE, digest, pieces(cut))
    monkeypatch.setattr(Opener, "finalize", lambda _self: b"")
    monkeypatch.setattr(parts.hashlib, "sha256", _Anything)  # type: ignore[attr-defined]
    assert len(open_whole(SCOPE, digest, pieces(cut))) > 10_000


class _Anything:
    """A digest that fits whatever it is compared with."""

    def update(self, _part: bytes) -> None:
        """Takes no note."""

    def digest(self) -> Any:
        """Equals everything."""

        class _Equal:
            def __ne__(self, _other: object) -> bool:
                return False

        return _Equal()


async def test_f16_twin_a_store_that_shows_before_it_commits_shows_a_refused_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16's twin: the order of commit and apply is what keeps a refused write out of sight."""
    node = open_node(tmp_path, FakeKeyvault())
    space = Space(node)
    await space.make()
    await space.use()

    def full(_appends: object) -> list[bool]:
        raise ResourceExhausted("full", reason="STORAGE_FULL")

    monkeypatch.setattr(node.committer, "_append", full)
    with pytest.raises(ResourceExhausted):
        await space.upsert({"refused": [1, 0, 0, 0]})
    assert not await space.contents()

    true_commit = Collection._commit

    async def hasty(self: Collection, decided: Any) -> None:
        await self._apply(decided)
        await true_commit(self, decided)

    monkeypatch.setattr(Collection, "_commit", hasty)
    await space.upsert({"refused": [1, 0, 0, 0]})
    assert set(await space.contents()) == {"refused"}
    await node.close()


def test_f13_twin_the_index_itself_takes_a_vector_that_is_no_number() -> None:
    """F13's twin: nothing behind the check of the request would stop a NaN; it would rank as it likes."""
    index = VectorIndex(2, Metric.DOT)
    index.publish(index.reserve(np.array([[np.nan, 0.0], [1.0, 0.0]], np.float32)), 2)
    assert np.isnan(index.search(np.array([1.0, 0.0], np.float32), 2).scores).any()


HOSTILE = (
    "' OR '1'='1",
    '"; DROP TABLE collections; --',
    "${jndi:ldap://x}",
    "{{7*7}}",
    "\x00",
    "%s%n",
    "\u202e",
    "*",
)


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_f21_hostile_strings_are_values_and_fields_like_any_other(tmp_path: Path, hostile: str) -> None:
    """F21 through the whole store: as a value, as a field's name and as an id."""
    node = open_node(tmp_path, FakeKeyvault())
    space = Space(node)
    await space.make()
    await space.upsert(
        {hostile: [1, 0, 0, 0], "other": [1, 0, 0, 0]}, {hostile: {hostile: hostile}, "other": {hostile: "x"}}
    )
    assert await space.nearest([1, 0, 0, 0], condition=OneOf(hostile, (hostile,))) == [hostile]
    assert await space.delete(hostile) == 1
    with pytest.raises(SealcombError):
        await space.nearest([1, 0, 0, 0], condition=OneOf(hostile + "?", (hostile,)))
    assert set(await space.contents()) == {"other"}
    await node.close()
