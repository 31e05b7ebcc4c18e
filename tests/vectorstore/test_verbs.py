"""The verbs of points and collections beyond the plain ones, over real mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest

from sealcomb.v1 import collection_service_pb2 as collections
from sealcomb.v1 import vector_service_pb2 as vectors
from services.vectorstore import columns, editing
from tests.vectorstore.conftest import Rig
from tests.vectorstore.fakes import Space
from tests.vectorstore.test_servicers import eq, f32, make, put, struct_of, upsert_of

Requests = AsyncIterator[vectors.UpsertStreamRequest]


def plain(id_: str, *numbers: float, **metadata: object) -> vectors.Point:
    """A point of three dimensions."""
    return vectors.Point(id=id_, vector=numbers or (1, 0, 0), metadata=struct_of(**metadata))


async def streamed(*batches: list[vectors.Point], atomic: bool = False) -> Requests:
    """A stream of these batches."""
    for batch in batches:
        yield vectors.UpsertStreamRequest(collection="things", points=batch, atomic_batches=atomic)


async def ids_of(rig: Rig) -> list[str]:
    """All points."""
    answer = await rig.call("VectorService/ListPoints", vectors.ListPointsRequest(collection="things"))
    return [point.id for point in answer.points]


async def read(rig: Rig, id_: str, collection: str = "things") -> vectors.Point:
    """One point with its vector."""
    request = vectors.GetPointsRequest(collection=collection, ids=[id_], with_vectors=True)
    point: vectors.Point = (await rig.call("VectorService/GetPoints", request)).points[0]
    return point


async def test_a_stream_writes_its_batches_and_names_the_bad_points_by_their_place(rig: Rig) -> None:
    await make(rig)
    first = [plain("a"), plain("b", 1, 0), plain("c")]
    second = [plain("a", 0, 1, 0), plain(""), plain("d"), plain("d")]
    answer = await rig.call("VectorService/UpsertStream", streamed(first, second))
    assert (answer.upserted, answer.failed) == (4, 3)
    assert [(f.position, f.field, f.reason) for f in answer.failures] == [
        (1, "vector", "WRONG_DIMENSION"),
        (4, "id", "INVALID_ARGUMENT"),
        (6, "id", "INVALID_ARGUMENT"),
    ]
    assert await ids_of(rig) == ["a", "c", "d"]
    assert (await read(rig, "a")).vector_f32 == f32(0, 1, 0)


async def test_an_atomic_batch_with_a_bad_point_is_left_out_and_the_others_are_not(rig: Rig) -> None:
    await make(rig)
    batches = [[plain("a")], [plain("b"), plain("c", 1, 0)], [plain("d")]]
    answer = await rig.call("VectorService/UpsertStream", streamed(*batches, atomic=True))
    assert (answer.upserted, answer.failed) == (2, 2)
    assert [failure.position for failure in answer.failures] == [2]
    assert await ids_of(rig) == ["a", "d"]


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_point_with_one_field_too_many_is_left_out_of_a_stream(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    monkeypatch.setattr(columns, "FIELDS_MAX", 2)
    await make(rig)
    batch = [plain("a", x=1), plain("b", x=1, y=1, z=1), plain("c", y=1)]
    answer = await rig.call("VectorService/UpsertStream", streamed(batch, atomic=atomic))
    assert [(f.position, f.field, f.reason) for f in answer.failures] == [(1, "metadata", "TOO_MANY_FIELDS")]
    assert await ids_of(rig) == ([] if atomic else ["a", "c"])
    refusal = await rig.refused("VectorService/Upsert", upsert_of(*batch))
    assert (refusal.reason, refusal.fields) == ("TOO_MANY_FIELDS", ["points[1].metadata"])


async def test_a_stream_reports_no_more_than_a_thousand_failures(rig: Rig) -> None:
    await make(rig)
    answer = await rig.call("VectorService/UpsertStream", streamed([plain("")] * 700, [plain("")] * 700))
    assert (answer.failed, len(answer.failures)) == (1400, 1000)


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "collection"),
        ([vectors.UpsertStreamRequest(points=[plain("a")])], "collection"),
        ([vectors.UpsertStreamRequest(collection="things")], "points"),
        ([vectors.UpsertStreamRequest(collection="things", points=[plain("a")] * 1001)], "points"),
        (
            [
                vectors.UpsertStreamRequest(collection="things", points=[plain("a")]),
                vectors.UpsertStreamRequest(collection="others", points=[plain("b")]),
            ],
            "collection",
        ),
        (
            [
                vectors.UpsertStreamRequest(
                    collection="things",
                    points=[vectors.Point(id=str(n), text="x" * 60_000) for n in range(90)],
                )
            ],
            "points",
        ),
    ],
)
async def test_a_bad_stream_names_the_field_and_writes_nothing_of_the_bad_batch(
    rig: Rig, requests: list[vectors.UpsertStreamRequest], field: str
) -> None:
    await make(rig)

    async def stream() -> Requests:
        for request in requests:
            yield request

    refusal = await rig.refused("VectorService/UpsertStream", stream())
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert await ids_of(rig) == (["a"] if len(requests) == 2 else [])


async def _delete(rig: Rig) -> None:
    await rig.call(
        "CollectionService/DeleteCollection", collections.DeleteCollectionRequest(collection="things")
    )


async def _replace(rig: Rig) -> None:
    await _delete(rig)
    await make(rig)


@pytest.mark.parametrize("end", [_delete, _replace])
async def test_a_stream_ends_when_its_collection_does_even_if_another_has_its_name(
    rig: Rig, end: Callable[[Rig], Awaitable[None]]
) -> None:
    await make(rig)
    written = asyncio.Event()

    async def stream() -> Requests:
        yield vectors.UpsertStreamRequest(collection="things", points=[plain("a")])
        await written.wait()
        await end(rig)
        yield vectors.UpsertStreamRequest(points=[plain("b")])

    async def watch() -> None:
        while await ids_of(rig) != ["a"]:  # noqa: ASYNC110  (as a caller would wait)
            await asyncio.sleep(0.01)
        written.set()

    refusal, _ = await asyncio.gather(rig.refused("VectorService/UpsertStream", stream()), watch())
    assert refusal.reason == "COLLECTION_NOT_FOUND"
    if end is _replace:
        assert await ids_of(rig) == []


async def test_a_conditional_upsert_writes_only_over_the_version_it_knows(rig: Rig) -> None:
    await make(rig)
    first = await rig.call("VectorService/Upsert", upsert_of(plain("a")))
    point = await read(rig, "a")
    assert point.version == first.version > 0
    request = upsert_of(point, plain("new"))
    request.if_unchanged = True
    second = await rig.call("VectorService/Upsert", request)
    assert second.version > first.version
    # The same again: "a" has moved on, and "new" exists.
    refusal = await rig.refused("VectorService/Upsert", request)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "VERSION_CONFLICT")
    assert refusal.fields == ["points[0].version", "points[1].version"]
    assert (await read(rig, "a")).version == second.version


async def test_a_version_is_never_given_twice_not_even_to_a_point_that_was_deleted(rig: Rig) -> None:
    await make(rig)
    old = await rig.call("VectorService/Upsert", upsert_of(plain("a")))
    delete = vectors.DeletePointsRequest(collection="things", ids=["a"], versions=[old.version + 1])
    refusal = await rig.refused("VectorService/DeletePoints", delete)
    assert (refusal.reason, refusal.fields) == ("VERSION_CONFLICT", ["ids[0].version"])
    delete.versions[0] = old.version
    assert (await rig.call("VectorService/DeletePoints", delete)).deleted == 1
    new = await rig.call("VectorService/Upsert", upsert_of(plain("a")))
    assert new.version > old.version


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"versions": [1, 2]}, "versions"),
        ({"ids": ["a", "a"], "versions": [1, 1]}, "ids"),
        ({"ids": [], "versions": [1], "filter": eq("x", 1)}, "versions"),
    ],
)
async def test_versions_of_a_deletion_belong_to_its_ids(rig: Rig, bad: dict[str, object], field: str) -> None:
    await make(rig)
    request = vectors.DeletePointsRequest(**{"collection": "things", "ids": ["a"], **bad})  # type: ignore[arg-type]
    refusal = await rig.refused("VectorService/DeletePoints", request)
    assert refusal.fields == [field]


async def test_an_update_replaces_metadata_or_text_and_leaves_the_vector(rig: Rig) -> None:
    await make(rig)
    points = [plain("a", 3, 4, 0, colour="red"), plain("b", colour="red")]
    await rig.call("VectorService/Upsert", upsert_of(*points))
    updates = [
        vectors.PointUpdate(id="nobody", text="x"),
        vectors.PointUpdate(id="a", metadata=struct_of(colour="blue")),
    ]
    answer = await rig.call(
        "VectorService/UpdatePoints", vectors.UpdatePointsRequest(collection="things", updates=updates)
    )
    assert (answer.updated, list(answer.missing)) == (1, [0])
    text = vectors.UpdatePointsRequest(collection="things", updates=[vectors.PointUpdate(id="a", text="t")])
    await rig.call("VectorService/UpdatePoints", text)
    point = await read(rig, "a")
    assert (point.vector_f32, point.text, point.metadata["colour"]) == (f32(3, 4, 0), "t", "blue")
    query = vectors.QueryRequest(collection="things", vector=[3, 4, 0], filter=eq("colour", "blue"))
    assert [hit.id for hit in (await rig.call("VectorService/Query", query)).hits] == ["a"]
    red = vectors.CountPointsRequest(collection="things", filter=eq("colour", "red"))
    assert (await rig.call("VectorService/CountPoints", red)).count == 1
    # An empty struct is metadata too: it takes all fields away.
    empty = vectors.PointUpdate(id="a", version=point.version)
    empty.metadata.SetInParent()
    request = vectors.UpdatePointsRequest(collection="things", updates=[empty], if_unchanged=True)
    await rig.call("VectorService/UpdatePoints", request)
    assert not (await read(rig, "a")).metadata.fields
    refusal = await rig.refused("VectorService/UpdatePoints", request)
    assert (refusal.reason, refusal.fields) == ("VERSION_CONFLICT", ["updates[0].version"])


@pytest.mark.parametrize(
    ("updates", "field"),
    [
        ([], "updates"),
        ([vectors.PointUpdate(id="a")], "updates[0]"),
        ([vectors.PointUpdate(id="", text="x")], "updates[0].id"),
        ([vectors.PointUpdate(id="a", text="x"), vectors.PointUpdate(id="a", text="y")], "updates[1].id"),
        ([vectors.PointUpdate(id="a", text="x" * 65_537)], "updates[0].text"),
        ([vectors.PointUpdate(id="a", metadata=struct_of(x="x" * 65_536))], "updates[0].metadata"),
        ([vectors.PointUpdate(id=str(n), text="x") for n in range(1001)], "updates"),
    ],
)
async def test_a_bad_update_is_named(rig: Rig, updates: list[vectors.PointUpdate], field: str) -> None:
    await make(rig)
    request = vectors.UpdatePointsRequest(collection="things", updates=updates)
    refusal = await rig.refused("VectorService/UpdatePoints", request)
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_text_collection_takes_neither_streams_nor_updates(rig: Rig) -> None:
    await make(rig, "things", 0, embedder="default")
    for method, request in (
        ("UpsertStream", streamed([plain("a")])),
        (
            "UpdatePoints",
            vectors.UpdatePointsRequest(collection="things", updates=[vectors.PointUpdate(id="a", text="x")]),
        ),
    ):
        assert (await rig.refused(f"VectorService/{method}", request)).reason == "TEXT_COLLECTION"


async def test_many_points_are_deleted_by_filter_and_what_is_written_meanwhile_stays(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "_DELETE_BATCH", 10)
    space = Space(rig.node)
    await space.make()
    ids = [f"p{n:03}" for n in range(95)]
    await space.upsert({id_: [1, 0, 0, 0] for id_ in ids}, {id_: {"kind": "x"} for id_ in ids})
    request = vectors.DeletePointsRequest(collection="things", filter=eq("kind", "x"))
    use = await space.use()
    true_write, writes = use.collection.write, 0

    async def write(*arguments: object, **options: object) -> object:
        nonlocal writes
        writes += 1
        if writes == 2:
            # Between two batches: one of the last is replaced, still with metadata that matches.
            await space.upsert({"p094": [0, 1, 0, 0]}, {"p094": {"kind": "x"}})
        return await true_write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(use.collection, "write", write)
    assert (await rig.call("VectorService/DeletePoints", request)).deleted == 94
    assert set(await space.contents()) == {"p094"}


async def test_only_indexed_fields_are_filtered_by_and_the_index_can_be_changed(rig: Rig) -> None:
    index = collections.MetadataIndex(fields=["colour"])
    made = await make(rig, metadata_index=index, default_ef=77)
    assert (made.default_ef, list(made.metadata_index.fields)) == (77, ["colour"])
    await rig.call("VectorService/Upsert", upsert_of(plain("a", colour="red", size=1)))
    by_size = vectors.CountPointsRequest(collection="things", filter=eq("size", 1))
    by_colour = vectors.CountPointsRequest(collection="things", filter=eq("colour", "red"))
    assert (await rig.call("VectorService/CountPoints", by_colour)).count == 1
    refusal = await rig.refused("VectorService/CountPoints", by_size)
    assert (refusal.reason, refusal.fields) == ("FIELD_NOT_INDEXED", ["filter"])

    change = collections.UpdateCollectionRequest(
        collection="things", metadata_index=collections.MetadataIndex(fields=["size"])
    )
    changed = (await rig.call("CollectionService/UpdateCollection", change)).collection
    assert (changed.default_ef, list(changed.metadata_index.fields)) == (77, ["size"])
    assert (await rig.call("VectorService/CountPoints", by_size)).count == 1
    assert (await rig.refused("VectorService/CountPoints", by_colour)).reason == "FIELD_NOT_INDEXED"

    everything = collections.UpdateCollectionRequest(
        collection="things", index_all_metadata=True, default_ef=0
    )
    changed = (await rig.call("CollectionService/UpdateCollection", everything)).collection
    assert (changed.default_ef, changed.HasField("metadata_index")) == (0, False)
    for request in (by_size, by_colour):
        assert (await rig.call("VectorService/CountPoints", request)).count == 1
    assert (await read(rig, "a")).metadata["size"] == 1


async def test_fields_that_are_not_indexed_take_no_room_in_the_index(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "FIELDS_MAX", 1)
    await make(rig, metadata_index=collections.MetadataIndex(fields=["x"]))
    await rig.call("VectorService/Upsert", upsert_of(plain("a", x=1, y=1, z=1)))


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"default_ef": 4097}, "default_ef"),
        ({"metadata_index": collections.MetadataIndex(fields=[""])}, "metadata_index.fields[0]"),
        ({"metadata_index": collections.MetadataIndex(fields=["x"] * 1025)}, "metadata_index.fields"),
        ({"metadata_index": collections.MetadataIndex(), "index_all_metadata": True}, "index_all_metadata"),
    ],
)
async def test_a_bad_change_of_a_collection_is_named(rig: Rig, bad: dict[str, object], field: str) -> None:
    await make(rig)
    request = collections.UpdateCollectionRequest(collection="things", **bad)  # type: ignore[arg-type]
    refusal = await rig.refused("CollectionService/UpdateCollection", request)
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_the_default_frontier_is_that_of_the_collection(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(rig, default_ef=50)
    asked = []
    true_query = rig.node.finder.query

    async def query(use: object, wanted: object) -> object:
        asked.append(wanted.ef)  # type: ignore[attr-defined]
        return await true_query(use, wanted)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.node.finder, "query", query)
    for ef, k in ((0, 10), (0, 60), (70, 10)):
        request = vectors.QueryRequest(collection="things", vector=[1, 0, 0], ef=ef, top_k=k)
        await rig.call("VectorService/Query", request)
    assert asked == [50, 60, 70]


async def test_statistics_tell_what_a_collection_takes_without_opening_it(rig: Rig) -> None:
    made = await make(rig)
    request = collections.GetCollectionStatsRequest(collection="things")
    closed = await rig.call("CollectionService/GetCollectionStats", request)
    assert (closed.points, closed.resident, closed.log_records) == (0, False, 0)
    assert rig.node.residency.count == 0
    await rig.call("VectorService/Upsert", upsert_of(plain("a"), plain("b")))
    await rig.call("VectorService/DeletePoints", vectors.DeletePointsRequest(collection="things", ids=["a"]))
    opened = await rig.call("CollectionService/GetCollectionStats", request)
    assert (opened.points, opened.resident, opened.log_records) == (1, True, 2)
    assert opened.log_bytes > 0
    assert opened.resident_bytes > 0
    assert [(segment.kind, segment.points, segment.deleted) for segment in opened.segments] == [
        (collections.Segment.KIND_FLAT, 1, 1)
    ]
    await rig.node.residency.drop(made.id)
    assert not (await rig.call("CollectionService/GetCollectionStats", request)).resident


async def test_a_text_collection_is_filtered_by_its_indexed_fields_alone(rig: Rig) -> None:
    made = await make(
        rig, "texts", 0, embedder="default", metadata_index=collections.MetadataIndex(fields=["topic"])
    )
    await put(rig, made.id, "doc1", ["some text"], topic="bees", size=1)
    count = vectors.CountPointsRequest(collection="texts", filter=eq("topic", "bees"))
    assert (await rig.call("VectorService/CountPoints", count)).count == 1
    count.filter.CopyFrom(eq("size", 1))
    assert (await rig.refused("VectorService/CountPoints", count)).reason == "FIELD_NOT_INDEXED"
