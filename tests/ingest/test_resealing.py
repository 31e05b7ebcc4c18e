"""Originals sealed anew: page by page, in no race with a deletion, never at the cost of a key in use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.common import ids
from services.common.datakeys import AgedKeys
from services.common.errors import NotFound, PermissionDenied
from services.common.sealing import DataKey, Opener, key_id_of
from services.ingest import resealing as resealing_module
from services.ingest.originals import PURPOSE, Originals
from services.ingest.records import CollectionInfo
from services.ingest.resealing import Page, Place, Resealer
from tests.ingest.test_originals import ACCOUNT, COLLECTION, Bench, bench

__all__ = ["bench"]


@dataclass
class Vectorstore:
    """The documents that have a record."""

    documents: set[str] = field(default_factory=set)

    async def resolve(self, _collection: str) -> CollectionInfo:
        """The one collection."""
        return CollectionInfo(COLLECTION, 2, "", "")

    async def get_by_id(self, collection_id: str, document_id: str) -> None:
        """Whether there is a record."""
        if collection_id != COLLECTION or document_id not in self.documents:
            raise NotFound("no such document")


@dataclass
class Keyvault:
    """What was reported."""

    reports: list[tuple[set[str], float]] = field(default_factory=list)

    async def report_data_keys(
        self, resource: str, purpose: str, in_use: Iterable[str], looked_s: float
    ) -> AgedKeys:
        """Keeps it."""
        assert (resource, purpose) == (COLLECTION, PURPOSE)
        self.reports.append((set(in_use), looked_s))
        return AgedKeys(1, 5.0)


@dataclass
class Rows:
    """Keys that ingestions sealed their rows under."""

    named: set[str] = field(default_factory=set)

    def sealing_keys(self, _account: str, _collection_id: str) -> set[str]:
        """Those."""
        return self.named


@dataclass
class Pass:
    """A resealer over a bench."""

    bench: Bench
    vectorstore: Vectorstore = field(default_factory=Vectorstore)
    keyvault: Keyvault = field(default_factory=Keyvault)
    rows: Rows = field(default_factory=Rows)

    def __post_init__(self) -> None:
        b = self.bench
        self.resealer = Resealer(
            self.vectorstore, b.originals, b.data_keys, self.rows, self.keyvault, b.clock
        )

    async def write(self, *, settled: bool = True) -> str:
        """A document's original, with its record unless it is not settled."""
        document = ids.new_id()
        key = await self.bench.write(document)
        if settled:
            self.vectorstore.documents.add(document)
            await self.bench.originals.keep(key)
        return key

    def rotate(self) -> DataKey:
        """A new current key; the bench's keys are by resource, so the old one opens by its id."""
        new = DataKey(ids.new_id(), b"n" * 32)
        old = self.bench.keys.made[COLLECTION]
        self.bench.keys.by_id |= {old.id: old, new.id: new}
        self.bench.keys.made[COLLECTION] = new
        self.bench.data_keys.drop_all()
        return new

    def sealed_under(self) -> list[str]:
        """The key of each object."""
        folder = self.bench.folder / "objects"
        return [key_id_of((folder / key).read_bytes()) for key in self.bench.objects]


@pytest.fixture
def passing(bench: Bench) -> Pass:
    """The resealer."""
    return Pass(bench)


async def test_all_originals_move_to_the_new_key_page_by_page(
    passing: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [await passing.write() for _ in range(5)]
    ingestion_object = await passing.write(settled=False)
    new = passing.rotate()
    passing.rows.named = {"named by an ingestion"}
    monkeypatch.setattr(resealing_module, "_LOOKED_MAX", 2)
    pages: list[Page] = []
    place: Place | None = Place()
    began_s = passing.bench.clock.now
    while place is not None:
        pages.append(await passing.resealer.page("texts", place))
        passing.bench.clock.now += 10
        place = pages[-1].following
    assert [page.resealed for page in pages] == [2, 2, 2]
    assert set(passing.sealed_under()) == {new.id}
    assert passing.keyvault.reports == [({"named by an ingestion"}, began_s)]
    assert pages[-1].aged == AgedKeys(1, 5.0)
    for key in [*objects, ingestion_object]:
        assert await passing.bench.read(key, 5) == b"words"
    # Nothing is left to settle but what was not settled before, whose time is its own.
    passing.bench.clock.now += 10_000
    unsettled = passing.bench.store.unsettled_before(ACCOUNT, COLLECTION, 10**13)
    assert [row.object_key for row in unsettled] == [ingestion_object]
    assert (await passing.resealer.page("texts", Place())).resealed == 0


async def test_an_original_whose_document_goes_meanwhile_is_swept(
    passing: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await passing.write()
    document = key.rpartition("/")[2]
    passing.rotate()
    real = Originals.reseal

    async def racing(originals: Originals, *arguments: Any) -> None:
        await originals.discard(key)
        passing.vectorstore.documents.discard(document)
        # The deletion is done, and the original is written once more.
        await originals.unsettle(ACCOUNT, COLLECTION, document, 10.0, key)
        await originals.put(ACCOUNT, COLLECTION, document, [b"words"])
        await real(originals, *arguments)

    monkeypatch.setattr(Originals, "reseal", racing)
    await passing.resealer.page("texts", Place())
    assert passing.bench.objects == [key]

    async def exists(_document_id: str) -> bool:
        return False

    passing.bench.clock.now += 10_000
    assert await passing.bench.originals.sweep(ACCOUNT, COLLECTION, exists) == 1
    assert passing.bench.objects == []


async def test_an_original_that_is_deleted_while_it_is_read_does_not_come_back(
    passing: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await passing.write(settled=False)
    passing.rotate()
    finalize = Opener.finalize

    def delete_first(opener: Opener) -> bytes:
        (passing.bench.folder / "objects" / key).unlink()
        return finalize(opener)

    monkeypatch.setattr(Opener, "finalize", delete_first)
    await passing.resealer.page("texts", Place())
    assert passing.bench.objects == []


async def test_a_folder_that_takes_long_to_list_is_gone_through_all_the_same(
    passing: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await passing.write()
    passing.rotate()
    real = Originals.object_keys

    async def slow(originals: Originals, *arguments: str) -> list[str]:
        passing.bench.clock.now += 60
        return await real(originals, *arguments)

    monkeypatch.setattr(Originals, "object_keys", slow)
    page = await passing.resealer.page("texts", Place())
    assert (page.resealed, page.following) == (2, None)


async def test_a_damaged_original_is_left_and_counted_and_no_key_goes(
    passing: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that something is sealed under is never told to be out of use; the others are sealed anew."""
    keys = sorted([await passing.write() for _ in range(3)])
    new = passing.rotate()
    path = passing.bench.folder / "objects" / keys[0]
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    monkeypatch.setattr(resealing_module, "_LOOKED_MAX", 1)
    place: Place | None = Place()
    pages: list[Page] = []
    while place is not None:
        pages.append(await passing.resealer.page("texts", place))
        place = pages[-1].following
    assert [(page.resealed, page.damaged) for page in pages] == [(0, 1), (1, 0), (1, 0)]
    assert passing.keyvault.reports == [(set(), 0.0)]
    assert path.read_bytes() == raw
    assert passing.sealed_under().count(new.id) == 2


async def test_a_whole_pass_goes_by_the_collections_id(
    passing: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody calls there is no name; all pages are gone through, and keyvault is told once."""
    for _ in range(5):
        await passing.write()
    new = passing.rotate()
    monkeypatch.setattr(resealing_module, "_LOOKED_MAX", 2)
    monkeypatch.setattr(passing.vectorstore, "resolve", None)
    await passing.resealer.all(COLLECTION)
    assert passing.sealed_under() == [new.id] * 5
    assert len(passing.keyvault.reports) == 1


async def test_a_whole_pass_whose_permit_ends_goes_on_with_the_next_one(
    passing: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection that takes longer than a permit is finished all the same, by one pass."""
    for _ in range(9):
        await passing.write()
    new = passing.rotate()
    monkeypatch.setattr(resealing_module, "_LOOKED_MAX", 2)
    current, left = passing.resealer._keys.current, [0]

    async def under_a_permit(resource: str, purpose: str) -> DataKey:
        if not left[0]:
            raise PermissionDenied("the permit has ended")
        left[0] -= 1
        return await current(resource, purpose)

    monkeypatch.setattr(passing.resealer._keys, "current", under_a_permit)
    began_s = passing.bench.clock.now_s()
    for _ in range(2):
        left[0] = 2
        with pytest.raises(PermissionDenied):
            await passing.resealer.all(COLLECTION)
        passing.bench.clock.now += 900.0
    assert not passing.keyvault.reports
    left[0] = 2
    await passing.resealer.all(COLLECTION)
    assert passing.sealed_under() == [new.id] * 9
    # As of the beginning of what was looked at first.
    [(_, looked_s)] = passing.keyvault.reports
    assert looked_s == pytest.approx(began_s, abs=1.0)
    assert not passing.resealer._places
