"""Snapshots of before there were parts: whole and unchanged, or refused before a byte is parsed."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.errors import DataLoss
from services.vectorstore import whole
from services.vectorstore.documents import DocumentState
from services.vectorstore.index import Metric
from services.vectorstore.log import Scope
from services.vectorstore.operations import UpsertPoints
from services.vectorstore.parts import SnapshotBroken
from services.vectorstore.points import PointState
from services.vectorstore.reader import DataDamaged
from services.vectorstore.state import State
from services.vectorstore.whole import load
from tests.vectorstore.fakes import vector_of
from tests.vectorstore.snapshots import (
    SCOPE,
    documents,
    dumped,
    moment_of,
    open_whole,
    pieces,
    points,
    sealed,
)


@pytest.mark.parametrize("make", [points, documents])
def test_a_loaded_snapshot_is_the_state_without_its_dead_rows(make: type[State]) -> None:
    state = make()  # type: ignore[call-arg]
    raw, digest = sealed(dumped(state))
    moment, loaded = load(open_whole(SCOPE, digest, pieces(raw)))
    assert moment == moment_of(state)
    assert loaded.index.dead == 0
    assert (loaded.points, loaded.documents) == (state.points, state.documents)
    assert list(loaded.ids_after("")) == list(state.ids_after(""))
    # The same again, byte for byte: nothing was lost or added on the way.
    assert dumped(loaded) == dumped(state)


def test_the_next_version_is_the_same_after_loading() -> None:
    """Its second batch holds versions that the first one had, which is no reason for a new one."""
    state = PointState(8, Metric.COSINE)
    for first, many in ((0, 500), (500, 1000)):
        names = [f"p{number}" for number in range(first, first + many)]
        vectors = np.stack([vector_of(name, 8) for name in names])
        state.apply(UpsertPoints(names, vectors, [b""] * many, [""] * many))
    raw, digest = sealed(dumped(state))
    _, loaded = load(open_whole(SCOPE, digest, pieces(raw)))
    assert loaded.next_number == state.next_number == 3


def test_postings_come_back_with_the_same_scores() -> None:
    state = documents()
    loaded = load(dumped(state))[1]
    assert isinstance(loaded, DocumentState)
    before = state.lexical.search("wax honey 7", 50, state.index.live)
    after = loaded.lexical.search("wax honey 7", 50, loaded.index.live)
    assert before.rows.tolist() == after.rows.tolist()
    assert before.scores.tolist() == after.scores.tolist()


def test_postings_of_another_analyser_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = dumped(documents())
    monkeypatch.setattr(whole, "ANALYSER", "another")
    loaded = load(raw)[1]
    assert isinstance(loaded, DocumentState)
    assert len(loaded.lexical.search("wax", 50, loaded.index.live).rows) == 30


def test_f1_every_flipped_byte_of_the_head_and_many_of_the_rest_are_refused_before_parsing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F1: nothing is parsed, let alone given to native code, before the whole object proved right."""
    raw, digest = sealed(dumped(points()))
    monkeypatch.setattr(whole, "load", lambda _plaintext: pytest.fail("parsed"))
    for position in [*range(400), *range(400, len(raw), 97), len(raw) - 1]:
        flipped = bytearray(raw)
        flipped[position] ^= 1
        with pytest.raises(SnapshotBroken):
            open_whole(SCOPE, digest, pieces(bytes(flipped)))


def test_f1_twin_unauthenticated_bytes_would_be_parsed() -> None:
    """F1's twin: the parser itself cannot tell a flipped vector from a true one."""
    raw = bytearray(dumped(points()))
    raw[-20] ^= 1
    assert load(raw)[1].points == 240


def test_f2_every_cut_is_refused() -> None:
    """F2: at every 16 KiB and a byte before and after, and at the ends."""
    raw, digest = sealed(dumped(points(2000)))
    cuts = {0, 1, len(raw) - 1, *(step + shift for step in range(0, len(raw), 16384) for shift in (-1, 0, 1))}
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(raw)):
        with pytest.raises(SnapshotBroken):
            open_whole(SCOPE, digest, pieces(raw[:cut]))


def test_f3_another_snapshot_of_the_same_collection_is_refused() -> None:
    """F3: one that was put back from an older time, whatever it says it is."""
    raw, digest = sealed(dumped(points()))
    older, _digest = sealed(dumped(points(10)), 8)
    same_lsn, _digest = sealed(dumped(points(10)))
    for bad in (older, same_lsn):
        with pytest.raises(SnapshotBroken):
            open_whole(SCOPE, digest, pieces(bad))
    with pytest.raises(SnapshotBroken):
        open_whole(Scope("account", "other"), digest, pieces(raw))


def test_f7_deleted_content_is_in_no_snapshot() -> None:
    """F7: a snapshot holds living rows alone, while the state may still hold the dead ones."""
    state = points()
    raw = dumped(state)
    assert vector_of("p1", 8).tobytes() in raw
    assert vector_of("p0", 8).tobytes() not in raw
    assert b"text p0." not in raw


def test_damaged_plaintext_is_refused_not_misread() -> None:
    raw = dumped(points(3))
    for cut in range(len(raw)):
        with pytest.raises(DataLoss):
            load(raw[:cut])
    for bad in (b"X" + raw[1:], raw + b"\0"):
        with pytest.raises(DataDamaged):
            load(bad)
