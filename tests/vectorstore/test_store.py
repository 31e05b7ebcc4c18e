"""The store's contract, on SQLite and on a real PostgreSQL: what holds on one holds on the other."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from services.common import ids
from services.common.database import migrate, open_engine
from services.common.errors import AlreadyExists, ResourceExhausted, Unavailable
from services.vectorstore.schema import Append, NewCollection, SnapshotRow
from services.vectorstore.store import Store, storage_errors
from tests.postgres import Postgres
from tests.vectorstore.fakes import ACCOUNT, OTHER


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store on each engine in turn."""
    url = f"sqlite:///{tmp_path}/vectorstore.db"
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.make_database(f"v{secrets.token_hex(6)}")
    engine = open_engine(url)
    migrate(engine, "services.vectorstore")
    yield Store(engine)
    engine.dispose()


def new(name: str, account: str = ACCOUNT, idempotency: bytes | None = None) -> NewCollection:
    """A collection with a name."""
    tag = name.encode().ljust(32, b"\0")
    return NewCollection(ids.new_id(), account, ids.new_id(), tag, idempotency, b"descriptor", b"head 0")


def move(collection: str, lsn: int, **changes: Any) -> Append:
    """The append of one record."""
    values: dict[str, Any] = {
        "collection": collection,
        "epoch": 1,
        "expected_lsn": lsn - 1,
        "lsn": lsn,
        "head": f"head {lsn}".encode(),
        "points": lsn,
        "documents": 0,
        "size_bytes": 10 * lsn,
        "records": [(lsn, bytes([lsn % 256, 0, 255]) * 40)],
    }
    return Append(**(values | changes))


def test_a_collection_is_found_by_its_names_and_by_nobody_else(store: Store) -> None:
    made = new("one", idempotency=b"i" * 32)
    store.add(made, 10)
    found = store.by_tag(ACCOUNT, made.name_tag)
    assert found is not None
    assert (found.id, found.epoch, found.head_lsn, found.head) == (made.id, 1, 0, b"head 0")
    assert store.by_id(ACCOUNT, made.id) == found == store.by_idempotency_tag(ACCOUNT, b"i" * 32)
    assert store.key_ids(ACCOUNT) == [made.key_id]
    assert store.by_tag(OTHER, made.name_tag) is store.by_id(OTHER, made.id) is None
    assert not any((store.owned(OTHER), store.page(OTHER, 0, 10), store.usage(OTHER), store.key_ids(OTHER)))


def test_a_taken_name_changes_nothing_and_accounts_have_names_of_their_own(store: Store) -> None:
    first = new("one")
    store.add(first, 10)
    with pytest.raises(AlreadyExists):
        store.add(new("one"), 10)
    store.add(new("one", OTHER), 10)
    assert [row.id for row in store.page(ACCOUNT, 0, 10)] == [first.id]


def test_an_account_has_no_more_collections_than_it_may_though_many_are_made_at_once(store: Store) -> None:
    gate = threading.Barrier(4)

    def add(number: int) -> bool:
        gate.wait()
        try:
            store.add(new(f"n{number}"), 2)
        except ResourceExhausted:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(add, range(4))) == 2
    assert len(store.owned(ACCOUNT)) == 2


def test_pages_are_in_order_of_creation(store: Store) -> None:
    made = [new(f"n{number}") for number in range(5)]
    for one in made:
        store.add(one, 10)
    first = store.page(ACCOUNT, 0, 3)
    rest = store.page(ACCOUNT, first[-1].sequence, 3)
    assert [row.id for row in (*first, *rest)] == [one.id for one in made]


def test_an_append_moves_the_head_and_a_second_writer_loses_its_place(store: Store) -> None:
    """F15: of two who believe that they write next, one does, and the other is told."""
    one, two = new("one"), new("two")
    store.add(one, 10)
    store.add(two, 10)
    assert store.append([move(two.id, 1), move(one.id, 1)]) == [True, True]
    assert store.append([move(one.id, 2), move(two.id, 1, head=b"stale")]) == [True, False]
    assert store.append([move(one.id, 3, epoch=2)]) == [False]
    assert store.append([move(ids.new_id(), 1)]) == [False]
    read = store.read(ACCOUNT, one.id)
    assert read is not None
    row, snapshots, records, _parts = read
    assert (row.head_lsn, row.head, row.points) == (2, b"head 2", 2)
    assert snapshots == []
    assert records == [(lsn, bytes([lsn, 0, 255]) * 40) for lsn in (1, 2)]
    assert store.log_size(one.id) == (2, 240)
    assert sorted(store.usage(ACCOUNT)) == sorted([(one.id, 2, 20), (two.id, 1, 10)])


def test_of_many_writers_at_once_exactly_one_makes_each_step(store: Store) -> None:
    """F15, in earnest: four threads race for every step of one log."""
    made = new("one")
    store.add(made, 10)
    gate = threading.Barrier(4)

    def race(_writer: int) -> list[int]:
        won = []
        for lsn in range(1, 16):
            gate.wait()
            if store.append([move(made.id, lsn)])[0]:
                won.append(lsn)
        return won

    with ThreadPoolExecutor(4) as pool:
        assert sorted(lsn for won in pool.map(race, range(4)) for lsn in won) == list(range(1, 16))
    assert store.log_size(made.id)[0] == 15


def test_a_snapshot_is_noted_trims_the_log_and_is_forgotten(store: Store) -> None:
    made = new("one")
    store.add(made, 10)
    for lsn in (1, 2, 3):
        store.append([move(made.id, lsn)])
    for lsn in (2, 1):
        assert store.plan_snapshot(made.id, 1, SnapshotRow(lsn, f"a/{lsn}", made.key_id))
    assert store.plan_snapshot(made.id, 1, SnapshotRow(2, "a/again", made.key_id))
    assert [(row.lsn, row.object_key) for row in store.snapshots(made.id)] == [(1, "a/1"), (2, "a/again")]
    assert not store.plan_snapshot(made.id, 2, SnapshotRow(3, "a/stale", made.key_id))
    assert store.append([move(made.id, 3, expected_lsn=3, records=(), trim_to=2)]) == [True]
    assert [row.lsn for row in store.noted(made.id, 1)[0]] == [1, 2]
    assert store.noted(made.id, 2) == ([], [])
    assert store.log_size(made.id)[0] == 1
    store.forget_snapshot(made.id, SnapshotRow(1, "a/1", made.key_id))
    assert [row.lsn for row in store.snapshots(made.id)] == [2]


def test_f15_who_is_late_to_forget_an_old_snapshot_does_not_forget_the_new_one(store: Store) -> None:
    """F15: a paused holder deleted an object that a crash had left; its successor used the same lsn since."""
    made = new("one")
    store.add(made, 10)
    left, named = SnapshotRow(0, "a/left", made.key_id), SnapshotRow(0, "a/named", made.key_id)
    assert store.plan_snapshot(made.id, 1, left)
    assert store.plan_snapshot(made.id, 1, named)
    store.forget_snapshot(made.id, left)
    assert store.snapshots(made.id) == [named]
    store.forget_snapshot(made.id, named)
    assert store.snapshots(made.id) == []


def test_a_deletion_takes_everything_and_names_the_objects(store: Store) -> None:
    made, other = new("one"), new("two")
    store.add(made, 10)
    store.add(other, 10)
    store.append([move(made.id, 1), move(other.id, 1)])
    assert store.plan_snapshot(made.id, 1, SnapshotRow(1, "a/1", made.key_id))
    assert store.delete(OTHER, made.id) == []
    assert store.delete(ACCOUNT, made.id) == ["a/1"]
    assert store.delete(ACCOUNT, made.id) == []
    assert store.read(ACCOUNT, made.id) is None
    assert store.log_size(made.id) == (0, 0)
    assert store.log_size(other.id)[0] == 1


def test_a_descriptor_is_replaced_once(store: Store) -> None:
    made = new("one")
    store.add(made, 10)
    row = store.by_id(ACCOUNT, made.id)
    assert row is not None
    assert store.replace_descriptor(row, b"changed")
    assert not store.replace_descriptor(row, b"lost")
    changed = store.by_id(ACCOUNT, made.id)
    assert changed is not None
    assert changed.descriptor == b"changed"


def test_a_database_that_is_gone_is_unavailable_and_comes_back_by_itself(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "postgres")
    server.start()
    try:
        engine = open_engine(server.url)
        migrate(engine, "services.vectorstore")
        store = Store(engine)
        made = new("one")
        store.add(made, 10)
        server.stop()
        with pytest.raises(Unavailable) as refused:
            store.append([move(made.id, 1)])
        assert refused.value.reason == "STORAGE_FAILED"
        server.start()
        assert store.append([move(made.id, 1)]) == [True]
        engine.dispose()
    finally:
        server.stop()


@pytest.mark.parametrize(("ended", "expected"), [(False, ResourceExhausted), (True, Unavailable)])
def test_f16_a_full_disk_has_changed_nothing_unless_the_server_ended_of_it(
    expected: type[Exception], *, ended: bool
) -> None:
    """F16: what is said to have changed nothing is not looked at again, so it must be known."""
    full = Exception("PANIC: could not write to file pg_wal/xlogtemp: No space left on device")
    with pytest.raises(expected), storage_errors():
        raise sa.exc.OperationalError("COMMIT", {}, full, connection_invalidated=ended)


def test_values_never_show_in_a_failure(store: Store) -> None:
    made = new("one")
    store.add(made, 10)
    with pytest.raises(Unavailable) as refused:
        store.append([move(made.id, 1, records=[(1, b"canary"), (1, b"canary")])])
    cause = refused.value.__cause__
    assert isinstance(cause, sa.exc.DBAPIError)
    assert "canary" not in str(refused.value) + str(cause)
    assert store.log_size(made.id) == (0, 0)
