"""Sealed originals: never half there, never in clear, and what an interruption left is found again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.common import ids
from services.common.context import CallContext, Caller, acting_as
from services.common.datakeys import DataKeys
from services.common.errors import KeyDisabled, ResourceExhausted, Unavailable
from services.common.objects import FolderStore
from services.common.rpc.keyvault import KeyEvent
from services.common.sealing import DataKey, Identity, OpenFailed, seal
from services.ingest.budget import UploadBudget
from services.ingest.originals import PURPOSE, Originals
from services.ingest.rerank import Reranker
from services.ingest.search import EmbedderIdentity, Search
from services.ingest.servicers.events import KeyEvents
from services.ingest.store import Store
from tests.ingest.rig import eventually

ACCOUNT, OTHER = ids.from_bytes(bytes(16)), ids.from_bytes(b"o" * 16)
COLLECTION = ids.from_bytes(b"c" * 16)
_CONTEXT = CallContext("gateway", (), ACCOUNT, "", (), (), "", 0.0, 0.0, "")


@dataclass
class ManualClock:
    """Time as the test says."""

    now: float = 1_000_000.0

    def now_s(self) -> float:
        """The test's time."""
        return self.now

    def monotonic_s(self) -> float:
        """The same."""
        return self.now


@dataclass
class DictKeys:
    """One key for each resource, until it is disabled."""

    made: dict[str, DataKey] = field(default_factory=dict)
    by_id: dict[str, DataKey] = field(default_factory=dict)
    disabled: bool = False

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        """The key of a resource."""
        if self.disabled:
            raise KeyDisabled
        if key_id in self.by_id:
            return self.by_id[key_id]
        return self.made.setdefault(resource, DataKey(ids.new_id(), bytes(32)))


@dataclass
class Bench:
    """Originals over real files and a real database, with a clock and keys of the test's."""

    folder: Path
    clock: ManualClock
    keys: DictKeys
    store: Store
    originals: Originals
    data_keys: DataKeys

    @property
    def objects(self) -> list[str]:
        """Keys of all objects."""
        return FolderStore(self.folder / "objects", ManualClock()).list("")

    async def write(self, document_id: str, content: bytes = b"words", collection: str = COLLECTION) -> str:
        """Writes an original that is to be committed within ten seconds."""
        return await self.originals.write(ACCOUNT, collection, document_id, [content], 10.0)

    async def read(self, object_key: str, size_bytes: int, account: str = ACCOUNT) -> bytes:
        """Reads an original to its end."""
        parts = self.originals.read(account, COLLECTION, object_key, size_bytes)
        return b"".join([part async for part in parts])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench within a call of ACCOUNT."""
    clock, keys = ManualClock(), DictKeys()
    store = Store.open(f"sqlite:///{tmp_path}/ingest.db")
    data_keys = DataKeys(keys, clock)
    originals = Originals(FolderStore(tmp_path / "objects", ManualClock()), data_keys, store, clock)
    with acting_as(Caller(_CONTEXT, "")):
        yield Bench(tmp_path, clock, keys, store, originals, data_keys)
    store.close()


async def _exists(_document_id: str) -> bool:
    return True


async def _is_gone(_document_id: str) -> bool:
    return False


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 1024 * 1024, 3 * 1024 * 1024 + 7])
async def test_an_original_of_any_length_reads_back_whole(bench: Bench, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    object_key = await bench.write(ids.new_id(), content[:size])
    assert await bench.read(object_key, size) == content[:size]


async def test_an_original_of_another_length_account_or_place_does_not_open(bench: Bench) -> None:
    """D8-like: an object opens as itself alone."""
    first, second = await bench.write(ids.new_id(), b"first"), await bench.write(ids.new_id(), b"other")
    with pytest.raises(OpenFailed):
        await bench.read(first, 6)
    with pytest.raises(OpenFailed):
        await bench.read(first, 5, account=OTHER)
    with pytest.raises(OpenFailed):
        await bench.read(f"{ACCOUNT}/{COLLECTION}/../{first}", 5)
    folder = bench.folder / "objects"
    (folder / first).write_bytes((folder / second).read_bytes())
    with pytest.raises(OpenFailed):
        await bench.read(first, 5)


async def test_the_twin_an_object_sealed_as_this_one_opens(bench: Bench) -> None:
    """D8-like, twin: with the identity in the context right, the exchanged object would open."""
    document_id = ids.new_id()
    first = await bench.write(document_id, b"first")
    key = await bench.data_keys.current(COLLECTION, PURPOSE)
    forged = seal(key, Identity(ACCOUNT, COLLECTION, "original", document_id), b"other")
    (bench.folder / "objects" / first).write_bytes(forged)
    assert await bench.read(first, 5) == b"other"


async def test_a_sweep_removes_what_was_never_committed_and_keeps_what_was(bench: Bench) -> None:
    kept, lost = ids.new_id(), ids.new_id()
    for document_id in (kept, lost):
        await bench.write(document_id)

    async def exists(document_id: str) -> bool:
        return document_id == kept

    bench.clock.now += 1000
    assert await bench.originals.sweep(ACCOUNT, COLLECTION, exists) == 1
    assert bench.objects == [f"{ACCOUNT}/{COLLECTION}/{kept}"]
    assert bench.store.unsettled_before(ACCOUNT, COLLECTION, 2**60) == []


async def test_a_sweep_leaves_alone_what_may_still_be_committed(bench: Bench) -> None:
    """The permit of a running upload has not expired: its record may come at any moment."""
    await bench.write(ids.new_id())
    bench.clock.now += 100
    assert await bench.originals.sweep(ACCOUNT, COLLECTION, _is_gone) == 0
    assert len(bench.objects) == 1
    # And the twin: after the permit and its last call it cannot.
    bench.clock.now += 100
    assert await bench.originals.sweep(ACCOUNT, COLLECTION, _is_gone) == 1


async def test_sweeps_of_one_collection_are_rare_and_touch_no_other_one(bench: Bench) -> None:
    await bench.write(ids.new_id())
    other = ids.new_id()
    await bench.write(ids.new_id(), collection=other)
    bench.clock.now += 1000
    assert await bench.originals.sweep(ACCOUNT, COLLECTION, _is_gone) == 1
    await bench.write(ids.new_id())
    bench.clock.now += 30
    assert await bench.originals.sweep(ACCOUNT, COLLECTION, _is_gone) == 0
    assert await bench.originals.sweep(OTHER, other, _is_gone) == 0
    assert await bench.originals.sweep(ACCOUNT, other, _exists) == 0
    assert len(bench.objects) == 2


async def test_a_settled_original_is_remembered_no_more(bench: Bench) -> None:
    await bench.originals.keep(await bench.write(ids.new_id()))
    await bench.originals.discard(await bench.write(ids.new_id()))
    assert bench.store.unsettled_before(ACCOUNT, COLLECTION, 2**60) == []
    assert len(bench.objects) == 1


async def test_what_is_unsettled_again_while_it_is_being_settled_stays_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that comes right after an upload and is interrupted must be found by the sweep."""
    begun, go_on = threading.Event(), threading.Event()
    forget = bench.store.remove_unsettled

    def remove(*object_keys: str) -> None:
        begun.set()
        go_on.wait(30)
        forget(*object_keys)

    monkeypatch.setattr(bench.store, "remove_unsettled", remove)
    document = ids.new_id()
    key = await bench.write(document)
    bench.originals.keep_soon(key)
    await eventually(begun.is_set)
    again = asyncio.create_task(bench.originals.unsettle(ACCOUNT, COLLECTION, document, 10.0, key))
    await asyncio.sleep(0.2)
    go_on.set()
    await again
    await bench.originals.settle()
    assert [row.object_key for row in bench.store.unsettled_before(ACCOUNT, COLLECTION, 2**60)] == [key]


async def test_originals_that_are_settled_together_share_a_transaction(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    forget = bench.store.remove_unsettled

    def remove(*object_keys: str) -> None:
        calls.append(object_keys)
        forget(*object_keys)

    monkeypatch.setattr(bench.store, "remove_unsettled", remove)
    keys = [await bench.write(ids.new_id()) for _ in range(3)]
    for key in keys[:2]:
        bench.originals.keep_soon(key)
    await eventually(lambda: bool(calls))
    bench.originals.keep_soon(keys[2])
    await bench.originals.settle()
    assert calls == [tuple(keys[:2]), (keys[2],)]
    assert bench.store.unsettled_before(ACCOUNT, COLLECTION, 2**60) == []
    # A storage that fails leaves them remembered, and a sweep settles them.
    monkeypatch.setattr(bench.store, "remove_unsettled", _unavailable)
    key = await bench.write(ids.new_id())
    bench.originals.keep_soon(key)
    await bench.originals.settle()
    assert [row.object_key for row in bench.store.unsettled_before(ACCOUNT, COLLECTION, 2**60)] == [key]


def _unavailable(*_object_keys: str) -> None:
    raise Unavailable("down")


async def test_a_full_disk_is_a_typed_error_and_leaves_no_part(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: FolderStore, _key: str, parts: Iterator[bytes]) -> None:
        next(parts)
        raise ResourceExhausted("the storage is full; nothing was written", reason="STORAGE_FULL")

    monkeypatch.setattr(FolderStore, "put", full)
    with pytest.raises(ResourceExhausted):
        await bench.write(ids.new_id())
    assert bench.objects == []


async def test_a_removal_that_was_interrupted_is_finished_by_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await bench.write(ids.new_id())
    await bench.write(ids.new_id(), collection=ids.from_bytes(b"k" * 16))
    deleted = 0
    delete = FolderStore.delete

    def die_at_second(self: FolderStore, key: str) -> None:
        nonlocal deleted
        deleted += 1
        if deleted == 2:
            raise KeyboardInterrupt
        delete(self, key)

    monkeypatch.setattr(FolderStore, "delete", die_at_second)
    task = asyncio.to_thread(lambda: asyncio.run(bench.originals.remove_all(ACCOUNT, COLLECTION)))
    with pytest.raises(KeyboardInterrupt):
        await task
    monkeypatch.undo()
    assert len(bench.objects) == 3
    restarted = Originals(
        FolderStore(bench.folder / "objects", ManualClock()), bench.data_keys, bench.store, bench.clock
    )
    await restarted.resume_removals()
    assert len(bench.objects) == 1
    assert bench.store.removals() == []
    assert bench.store.unsettled_before(ACCOUNT, COLLECTION, 2**60) == []


async def test_a_reading_in_progress_stops_when_the_key_is_disabled(bench: Bench) -> None:
    """D14-like: also between two parts of one download; and the twin, without the event it goes on."""
    content = bytes(5 * 1024 * 1024)
    object_key = await bench.write(ids.new_id(), content)
    bench.keys.disabled = True
    parts = bench.originals.read(ACCOUNT, COLLECTION, object_key, len(content))
    assert await anext(parts)
    assert await anext(parts)
    bench.data_keys.drop_account(ACCOUNT)
    bench.originals.keys_dropped(ACCOUNT)
    with pytest.raises(KeyDisabled):
        async for _part in parts:
            pass


async def test_key_events_drop_keys_and_say_what_they_could_not_remove(bench: Bench) -> None:
    identity = EmbedderIdentity("", 0)
    search = Search(None, None, identity, Reranker(None), bench.clock)  # type: ignore[arg-type]
    handler = KeyEvents(bench.data_keys, bench.originals, search)
    object_key = await bench.write(ids.new_id())
    bench.keys.disabled = True
    for event in (KeyEvent.ENABLED, KeyEvent.RESUMED):
        await handler(event, ACCOUNT, "")
    assert await bench.read(object_key, 5) == b"words"
    with pytest.raises(ValueError, match="key"):
        await handler(KeyEvent.RESOURCE_DESTROYED, ACCOUNT, "../../etc")
    for event in (KeyEvent.DISABLED, KeyEvent.SUSPENDED, KeyEvent.RECONNECTED):
        bench.keys.disabled = False
        await bench.data_keys.current(COLLECTION, PURPOSE)
        bench.keys.disabled = True
        await handler(event, "" if event is KeyEvent.RECONNECTED else ACCOUNT, "")
        with pytest.raises(KeyDisabled):
            await bench.read(object_key, 5)


def test_the_budget_bounds_all_and_each_and_gives_back_what_was_taken() -> None:
    budget = UploadBudget(100, 60)
    with budget.reserve("a") as first, budget.reserve("b") as second:
        first.grow(60)
        with pytest.raises(ResourceExhausted) as caught:
            first.grow(1)
        assert caught.value.retry_after_s
        second.grow(40)
        with pytest.raises(ResourceExhausted):
            second.grow(1)
        assert budget.bytes_in_flight == 100
    assert budget.bytes_in_flight == 0
    with budget.reserve("a") as again:
        again.grow(60)
