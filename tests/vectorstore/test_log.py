"""The log: what is written is what is read, or it is refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import ids
from services.common.errors import DataLoss, ResourceExhausted, SealcombError
from services.common.sealing import DataKey, Identity
from services.vectorstore import log
from services.vectorstore.log import (
    Committer,
    Head,
    LostPlace,
    Scope,
    open_head,
    open_records,
    seal_head,
    seal_record,
)
from services.vectorstore.operations import (
    DeleteDocument,
    DeletePoints,
    Document,
    Operation,
    Passage,
    PutDocument,
    UpsertPoints,
    decode,
    encode,
)
from services.vectorstore.reader import DataDamaged
from services.vectorstore.schema import Append

KEY = DataKey(ids.from_bytes(bytes(16)), bytes(range(32)))
KEYS = {KEY.id: KEY}
SCOPE = Scope("account", "collection")
Records = list[tuple[int, bytes]]

TEXT = st.text(max_size=20)
OPERATIONS = st.lists(
    st.one_of(
        st.builds(
            lambda rows: UpsertPoints(
                [row[0] for row in rows],
                np.array([row[3] for row in rows], np.float32).reshape(len(rows), 3),
                [row[1] for row in rows],
                [row[2] for row in rows],
            ),
            st.lists(
                st.tuples(
                    TEXT, st.binary(max_size=9), TEXT, st.lists(st.floats(width=32), min_size=3, max_size=3)
                ),
                max_size=4,
            ),
        ),
        st.builds(DeletePoints, st.lists(TEXT, max_size=4)),
        st.builds(DeleteDocument, TEXT),
        st.builds(
            lambda name, rows: PutDocument(
                Document("d", name, "t", 2**40, 3, b"m", ("p", name), -1, "o", "k", 7),
                [Passage(place, 1, text, heading) for place, (text, heading) in enumerate(rows)],
                np.ones((len(rows), 3), np.float32),
                replaces=name,
            ),
            TEXT,
            st.lists(st.tuples(TEXT, st.sampled_from(["", "Spring"])), max_size=3),
        ),
    ),
    max_size=4,
)


def written(count: int, scope: Scope = SCOPE) -> tuple[Head, Records]:
    """A log of deletions, one a record."""
    head, records = Head(), []
    for number in range(count):
        sealed, head = seal_record(KEY, scope, head, [DeletePoints([str(number)])])
        records.append((head.lsn, sealed))
    return head, records


def opened(head: Head, records: Sequence[tuple[int, bytes]], start: Head = Head()) -> list[list[Operation]]:  # noqa: B008
    """What a restart reads."""
    return open_records(KEYS, SCOPE, start, head, records, 3)


def chain_at(records: Records) -> bytes:
    """Where the chain is after records."""
    chain = log.NO_HASH
    for _lsn, sealed in records:
        chain = hashlib.sha256(chain + sealed).digest()
    return chain


def renumbered(records: Records) -> Records:
    """The same bytes under consecutive lsns, as whoever forges a log would number them."""
    return [(lsn, sealed) for lsn, (_old, sealed) in enumerate(records, 1)]


@given(OPERATIONS)
def test_operations_survive_their_bytes(operations: list[Operation]) -> None:
    raw = encode(operations)
    assert encode(decode(raw, 3)) == raw


@given(OPERATIONS, st.data())
def test_bytes_that_end_early_are_damage(operations: list[Operation], data: st.DataObject) -> None:
    raw = encode(operations)
    with pytest.raises(DataDamaged):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))], 3)
    with pytest.raises(DataDamaged):
        decode(raw + b"\0", 3)


def test_a_log_reads_back_in_order() -> None:
    head, records = written(200)
    assert [operations[0].ids for operations in opened(head, records)] == [[str(n)] for n in range(200)]  # type: ignore[union-attr]


def _forgeries(records: Records, foreign: Records, place: int) -> dict[str, Records]:
    swapped = list(records)
    if place + 1 < len(records):
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    return {
        "dropped": records[:place] + records[place + 1 :],
        "doubled": records[: place + 1] + records[place:],
        "swapped": swapped if swapped != records else records[:-1],
        "spliced": [*records[:place], foreign[place], *records[place + 1 :]],
        "cut": records[:place],
    }


def test_f4_no_forged_order_of_records_is_accepted_at_any_place() -> None:
    """F4: dropped, doubled, swapped, spliced from another collection, cut; numbered anew or not."""
    head, records = written(200)
    _other_head, foreign = written(200, Scope("account", "other"))
    for place in range(200):
        for forged in _forgeries(records, foreign, place).values():
            for numbered in (forged, renumbered(forged)):
                with pytest.raises(DataLoss):
                    opened(head, numbered)


def test_f4_twin_without_identity_and_chain_a_forged_order_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F4's twin: the same forgeries pass once lsn, collection and chain are not bound."""
    monkeypatch.setattr(Scope, "identity", lambda _self, kind, _version: Identity("", "", kind))
    monkeypatch.setattr(log, "_link", lambda chain, _sealed: chain)
    head, records = written(20)
    _other_head, foreign = written(20, Scope("account", "other"))
    forged = _forgeries(records, foreign, 5)
    for name in ("swapped", "spliced", "doubled"):
        shorter = renumbered(forged[name])[:20]
        assert len(opened(head, shorter)) == 20


def test_f5_every_flipped_byte_and_every_cut_of_a_record_is_refused() -> None:
    """F5: rows are whole or absent in SQL, so anything that does not open is refused, never skipped."""
    head, records = written(5)
    for place in range(5):
        lsn, sealed = records[place]
        for position in range(len(sealed)):
            flipped = bytearray(sealed)
            flipped[position] ^= 1
            for bad in (bytes(flipped), sealed[:position]):
                with pytest.raises((DataLoss, KeyError)):
                    opened(head, [*records[:place], (lsn, bad), *records[place + 1 :]])


def test_f3_a_log_that_ends_before_its_head_is_a_rollback() -> None:
    """F3, within one database: the head outlives the records. All heads put back too is not noticed."""
    head, records = written(9)
    with pytest.raises(log.RollbackDetected):
        opened(head, records[:8])
    older = Head(8, chain_at(records[:8]))
    assert len(opened(older, records[:8])) == 8


def test_records_beyond_the_head_are_refused() -> None:
    head, records = written(9)
    older = Head(8, chain_at(records[:8]))
    assert older.lsn < head.lsn
    with pytest.raises(log.LogBroken):
        opened(older, records)


def test_a_head_opens_for_its_own_collection_and_lsn_alone() -> None:
    head = Head(7, b"c" * 32, 3, b"d" * 32)
    sealed = seal_head(KEY, SCOPE, head)
    assert open_head(KEYS, SCOPE, 7, sealed) == head
    for scope, lsn in ((Scope("other", "collection"), 7), (Scope("account", "x"), 7), (SCOPE, 8)):
        with pytest.raises(DataLoss):
            open_head(KEYS, scope, lsn, sealed)


def _append(number: int) -> Append:
    return Append(str(number), 1, 0, 1, b"", 0, 0, 0)


async def test_those_that_wait_share_a_commit_and_each_learns_its_own_fate() -> None:
    groups: list[int] = []

    def append(appends: Sequence[Append]) -> list[bool]:
        groups.append(len(appends))
        return [each.collection != "3" for each in appends]

    committer = Committer(append)
    results = await asyncio.gather(
        *(committer.commit(_append(number)) for number in range(50)), return_exceptions=True
    )
    committer.close()
    assert [number for number, result in enumerate(results) if result is not None] == [3]
    assert isinstance(results[3], LostPlace)
    assert sum(groups) == 50
    assert len(groups) < 50


@pytest.mark.parametrize(
    "failure", [ResourceExhausted("full", reason="STORAGE_FULL"), RuntimeError("unforeseen")]
)
async def test_a_failed_commit_fails_everybody_in_it_and_the_next_one_works(failure: Exception) -> None:
    failures = [failure]

    def append(appends: Sequence[Append]) -> list[bool]:
        if failures:
            raise failures.pop()
        return [True] * len(appends)

    committer = Committer(append)
    with pytest.raises(SealcombError):
        await committer.commit(_append(1))
    await committer.commit(_append(2))
    committer.close()


def test_a_record_moves_the_head_and_nothing_else() -> None:
    head = Head(4, b"c" * 32, 2, b"d" * 32)
    _sealed, after = seal_record(KEY, SCOPE, head, [DeletePoints([])])
    assert replace(after, lsn=4, chain=head.chain) == head
    assert after.chain != head.chain
