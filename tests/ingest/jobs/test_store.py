"""The tables of jobs, one contract for both engines: who may work, what a step changes, what comes first."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common import ids
from services.common.errors import AlreadyExists, Unavailable
from services.ingest.ingestions.items import ItemStore, Seen
from services.ingest.ingestions.records import ENDED, Counts, ItemState, Row, State
from services.ingest.ingestions.store import IngestionStore, Lease, LeaseLost
from services.ingest.store import Store, Unsettled
from tests.postgres import Postgres, running_postgres

ACCOUNT = ids.new_id()
COLLECTION = ids.new_id()
NOW = 1_000_000
UNTIL = NOW + 30_000


def row(number: int, **fields: object) -> Row:
    """An ingestion that waits for somebody to work on it."""
    plain = Row(
        id=ids.new_id(),
        account=ACCOUNT,
        collection_id=COLLECTION,
        connection_id=ids.new_id(),
        create_ms=number,
        state=State.QUEUED,
        reason="",
        grant_id="",
        grant_text="",
        holder="",
        lease_until_ms=0,
        fence=0,
        attempts=0,
        not_before_ms=0,
        next_run_ms=None,
        run=1,
        listed=False,
        counts=Counts(),
        start_ms=0,
        finish_ms=0,
        tag_key_id="",
        idempotency_tag=None,
        payload=b"sealed",
        cursor=None,
        full_ms=0,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def seen(number: int, version: int = 1) -> Seen:
    """An item that a listing named."""
    return Seen(number.to_bytes(32, "big"), version.to_bytes(32, "big"), b"sealed")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An open store."""
    made = Store.open(database_url)
    yield made
    made.close()


@pytest.fixture
def ingestions(store: Store) -> IngestionStore:
    """Its ingestions."""
    return IngestionStore(store.database)


def work_on(ingestions: IngestionStore, made: Row) -> tuple[Row, Lease]:
    """The ingestion under a lease, and the lease."""
    ingestions.add(made)
    claimed = ingestions.claim("holder", NOW, UNTIL)
    assert claimed is not None
    return claimed, Lease(claimed.id, claimed.fence)


def claim_all(ingestions: IngestionStore, count: int) -> list[tuple[str, int]]:
    """What eight workers claim who all ask at the same moment until there is nothing left."""
    for number in range(count):
        ingestions.add(row(number))
    begin = threading.Barrier(8)
    claimed: list[tuple[str, int]] = []

    def work(number: int) -> None:
        begin.wait(30)
        while (found := ingestions.claim(f"worker{number}", NOW, UNTIL)) is not None:
            claimed.append((found.id, found.fence))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    return claimed


def test_workers_that_claim_at_once_never_get_the_same(ingestions: IngestionStore) -> None:
    """E27."""
    claimed = claim_all(ingestions, 12)
    assert len({id_ for id_, _fence in claimed}) == 12
    assert sorted(fence for _id, fence in claimed) == [1] * 12


def test_without_the_row_lock_workers_get_the_same(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: what SKIP LOCKED is there for happens without it."""
    monkeypatch.setattr(sa.Select, "with_for_update", lambda self, **_kind: self)
    store = Store.open(postgres.make_database(f"i{secrets.token_hex(6)}"))
    ingestions = IngestionStore(store.database)
    collided = False
    for _ in range(20):
        claimed = claim_all(ingestions, 8)
        collided = len({id_ for id_, _fence in claimed}) < len(claimed)
        if collided:
            break
    store.close()
    assert collided


def test_a_lease_that_lapsed_is_taken_over_and_its_holder_changes_nothing(
    store: Store, ingestions: IngestionStore
) -> None:
    first, slow = work_on(ingestions, row(1))
    assert ingestions.claim("other", NOW, UNTIL) is None
    second = ingestions.claim("other", UNTIL, UNTIL + 30_000)
    assert second is not None
    assert (second.id, second.fence, second.attempts) == (first.id, 2, 2)
    items = ItemStore(store.database)
    with pytest.raises(LeaseLost):
        items.record_batch(slow, 1, [seen(1)], (), (), b"", listed=True, full=True)
    assert items.waiting(first.id, ItemState.PENDING, 10) == []
    assert ingestions.extend([slow, Lease(second.id, 2)], UNTIL + 60_000) == [slow]
    assert not ingestions.release(slow, {"state": State.SUCCEEDED.value})


def test_an_item_goes_from_listed_to_indexed_and_away(store: Store, ingestions: IngestionStore) -> None:
    claimed, lease = work_on(ingestions, row(1))
    items = ItemStore(store.database)
    items.record_batch(lease, 1, [seen(1), seen(2)], (), (), b"cursor", listed=True, full=True)
    item = items.waiting(claimed.id, ItemState.PENDING, 1)[0]
    key = f"{ACCOUNT}/{COLLECTION}/{ids.new_id()}"
    items.start(lease, claimed, item, key, NOW)
    items.fetched(lease, item, b"sealed", 5)
    item = items.waiting(claimed.id, ItemState.FETCHED, 10)[0]
    assert (item.next_key, item.size_bytes, item.fetched, item.attempts) == (key, 5, b"sealed", 0)
    items.indexed(lease, claimed, item, NOW)
    found = ingestions.get(ACCOUNT, claimed.id)
    assert found is not None
    assert found.counts == Counts(found=2, fetched=1, indexed=1)
    assert found.cursor == b"cursor"
    # The next listing names the other one alone.
    items.record_batch(lease, 2, [seen(2, version=2)], (), (), b"", listed=True, full=True)
    gone = items.waiting(claimed.id, ItemState.GONE, 10)
    assert [item.object_key for item in gone] == [key]
    items.removed(lease, claimed, gone[0], NOW)
    assert items.count_documents([claimed.id]) == 0
    assert [left.object_key for left in store.unsettled_before(ACCOUNT, COLLECTION, NOW + 1)] == [key]


def test_pages_go_on_where_they_ended(store: Store, ingestions: IngestionStore) -> None:
    rows = [row(number // 2) for number in range(7)]
    for made in rows:
        ingestions.add(made)
    found: list[Row] = []
    while page := ingestions.page(ACCOUNT, (found[-1].create_ms, found[-1].id) if found else (0, ""), 3):
        found += page
    assert [made.id for made in found] == [
        made.id for made in sorted(rows, key=lambda m: (m.create_ms, m.id))
    ]
    assert ingestions.page(ids.new_id(), (0, ""), 3) == []


def test_an_idempotency_tag_is_there_once(ingestions: IngestionStore) -> None:
    tag = secrets.token_bytes(32)
    made = row(1, idempotency_tag=tag)
    ingestions.add(made)
    with pytest.raises(AlreadyExists):
        ingestions.add(row(2, idempotency_tag=tag))
    assert ingestions.by_idempotency(ACCOUNT, COLLECTION, [tag, bytes(32)]) == made
    # Without one there may be many.
    ingestions.add(row(3))
    ingestions.add(row(4))


def test_what_failed_is_tried_anew_by_the_next_run(store: Store, ingestions: IngestionStore) -> None:
    """E26: three starts, then set aside; the next run begins at none."""
    claimed, lease = work_on(ingestions, row(1))
    items = ItemStore(store.database)
    items.record_batch(lease, 1, [seen(1)], (), (), b"", listed=True, full=True)
    item = items.waiting(claimed.id, ItemState.PENDING, 1)[0]
    for _ in range(3):
        items.start(lease, claimed, item)
    assert items.waiting(claimed.id, ItemState.PENDING, 1)[0].attempts == 3
    items.set_aside(lease, claimed, item, "ITEM_POISON", NOW)
    assert [left.reason for left in items.page(claimed.id, ItemState.FAILED, b"", 10)] == ["ITEM_POISON"]
    assert ingestions.release(lease, {"state": State.FAILED.value, "lease_until_ms": 0})
    assert ingestions.retry(claimed, ENDED, {"state": State.QUEUED}, NOW)
    again = items.waiting(claimed.id, ItemState.PENDING, 1)[0]
    assert (again.attempts, again.reason) == (0, "")


def test_originals_and_removals_are_remembered_once(store: Store) -> None:
    left = Unsettled("a/b/c", ACCOUNT, COLLECTION, ids.new_id(), NOW)
    for _ in range(2):
        store.add_unsettled(left)
        store.add_removal("a/b/")
    assert store.unsettled_before(ACCOUNT, COLLECTION, NOW + 1) == [left]
    assert store.unsettled_before(ACCOUNT, COLLECTION, NOW) == []
    assert store.removals() == ["a/b/"]
    store.finish_removal("a/b/", ACCOUNT, COLLECTION)
    assert store.unsettled_before(ACCOUNT, COLLECTION, NOW + 1) == []
    assert store.removals() == []


def test_a_server_that_is_away_is_said_so_and_is_used_again_once_it_is_back(tmp_path: Path) -> None:
    with running_postgres(tmp_path) as server:
        store = Store.open(server.url)
        store.add_removal("a/b/")
        server.stop()
        for _ in range(2):
            with pytest.raises(Unavailable):
                store.removals()
        server.start()
        assert store.removals() == ["a/b/"]
        store.close()
