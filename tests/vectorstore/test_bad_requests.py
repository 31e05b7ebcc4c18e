"""F13 and bad input: each gets a typed error that names the field, and changes nothing."""

from __future__ import annotations

import math
import struct
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from sealcomb.internal.v1 import passage_service_pb2 as inner
from sealcomb.v1 import collection_service_pb2 as collections
from sealcomb.v1 import filter_pb2
from sealcomb.v1 import vector_service_pb2 as vectors
from tests.vectorstore.conftest import Rig
from tests.vectorstore.test_servicers import eq, f32, make, put, struct_of, upsert_of

GOOD = vectors.Point(id="good", vector=[1, 0, 0])


def point(**changes: Any) -> vectors.Point:
    """A point that is right but for the changes."""
    made = vectors.Point(id="a", vector=[1, 0, 0])
    for name, value in changes.items():
        made.ClearField(name)  # type: ignore[arg-type]
        if name == "vector":
            made.vector.extend(value)
        elif name == "metadata":
            made.metadata.CopyFrom(value)
        else:
            setattr(made, name, value)
    return made


def nested(depth: int) -> Struct:
    """A struct of this depth."""
    made = Struct()
    inner_struct = made
    for _ in range(depth - 1):
        inner_struct = inner_struct.fields["a"].struct_value
    inner_struct.fields["a"].number_value = 1
    return made


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (point(id=""), "points[1].id"),
        (point(id="x" * 257), "points[1].id"),
        (point(id="good"), "points[1].id"),
        (point(vector=[]), "points[1].vector"),
        (point(vector=[1, 0]), "points[1].vector"),
        (point(vector=[1, 0, math.nan]), "points[1].vector"),
        (point(vector=[1, 0, math.inf]), "points[1].vector"),
        (point(vector=[0, 0, 0]), "points[1].vector"),
        (point(vector=[3e38, 3e38, 0]), "points[1].vector"),
        (point(vector_f32=f32(1, 0, 0)), "points[1].vector"),
        (point(vector=[], vector_f32=b"\0" * 11), "points[1].vector_f32"),
        (point(vector=[], vector_f32=f32(1, 0)), "points[1].vector_f32"),
        (point(vector=[], vector_f32=f32(math.nan, 0, 1)), "points[1].vector_f32"),
        (point(text="x" * 65537), "points[1].text"),
        (point(metadata=struct_of(a="x" * 65536)), "points[1].metadata"),
        (point(metadata=nested(17)), "points[1].metadata"),
        (point(metadata=struct_of(a=math.inf)), "points[1].metadata"),
        (point(metadata=struct_of(**{"": 1})), "points[1].metadata"),
    ],
)
async def test_a_bad_point_refuses_the_whole_batch_and_is_named(
    rig: Rig, bad: vectors.Point, field: str
) -> None:
    await make(rig)
    refusal = await rig.refused("VectorService/Upsert", upsert_of(GOOD, bad))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    count = await rig.call("VectorService/CountPoints", vectors.CountPointsRequest(collection="things"))
    assert count.count == 0


def filtered(**condition: Any) -> filter_pb2.Filter:
    """A filter with one condition."""
    return filter_pb2.Filter(**condition)


def deep(depth: int) -> filter_pb2.Filter:
    """A filter of this depth."""
    made = filtered(exists=filter_pb2.Filter.Exists(field="a"))
    for _ in range(depth - 1):
        made = filtered(**{"not": made})
    return made


RANGE = filter_pb2.Filter.Range
MANY = filter_pb2.Filter.Or(filters=[eq("colour", "red")] * 256)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (filtered(), "filter"),
        (deep(17), "filter"),
        (filtered(**{"or": MANY}), "filter"),
        (eq("", 1), "filter.eq.field"),
        (filtered(eq=filter_pb2.Filter.Eq(field="a")), "filter.eq.value"),
        (filtered(**{"in": filter_pb2.Filter.In(field="a")}), "filter.in.values"),
        (filtered(range=RANGE(field="a")), "filter.range"),
        (filtered(range=RANGE(field="a", gt=math.nan)), "filter.range.gt"),
        (
            filtered(**{"and": filter_pb2.Filter.And(filters=[eq("colour", 1), filtered()])}),
            "filter.and.filters[1]",
        ),
        (eq("size", 1), "filter"),
    ],
)
async def test_a_bad_filter_is_named_by_its_place(rig: Rig, bad: filter_pb2.Filter, field: str) -> None:
    await make(rig)
    await rig.call("VectorService/Upsert", upsert_of(point(metadata=struct_of(colour="red"))))
    for method, request in (
        ("Query", vectors.QueryRequest(collection="things", vector=[1, 0, 0], filter=bad)),
        ("CountPoints", vectors.CountPointsRequest(collection="things", filter=bad)),
        ("ListPoints", vectors.ListPointsRequest(collection="things", filter=bad)),
        ("DeletePoints", vectors.DeletePointsRequest(collection="things", filter=bad)),
    ):
        refusal = await rig.refused(f"VectorService/{method}", request)
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    count = await rig.call("VectorService/CountPoints", vectors.CountPointsRequest(collection="things"))
    assert count.count == 1


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"top_k": 1001}, "top_k"),
        ({"top_k": 2**32 - 1}, "top_k"),
        ({"ef": 5}, "ef"),
        ({"ef": 4097}, "ef"),
        ({"vector": [1, 0]}, "vector"),
        ({"vector": [math.nan, 0, 0]}, "vector"),
        ({"vector": [0, 0, 0]}, "vector"),
        ({"vector_f32": f32(1, 0, 0)}, "vector"),
        ({"collection": ""}, "collection"),
        ({"collection": "x" * 10_000}, "collection"),
    ],
)
async def test_f13_a_query_that_would_cost_too_much_or_mean_nothing_is_refused(
    rig: Rig, bad: dict[str, Any], field: str
) -> None:
    """F13: bounded before anything is computed."""
    await make(rig)
    await rig.call("VectorService/Upsert", upsert_of(GOOD))
    fields = {"collection": "things", "vector": [1, 0, 0]} | bad
    refusal = await rig.refused("VectorService/Query", vectors.QueryRequest(**fields))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_f13_subnormal_and_extreme_but_finite_vectors_are_answered(rig: Rig) -> None:
    for metric in (collections.METRIC_COSINE, collections.METRIC_DOT, collections.METRIC_L2):
        name = f"m{metric}"
        await make(rig, name, metric=metric)
        extremes = [point(id=str(n), vector=[10.0**n, 0, 1e-40]) for n in (-17, -5, 0, 17)]
        await rig.call("VectorService/Upsert", upsert_of(*extremes, collection=name))
        for query in extremes:
            request = vectors.QueryRequest(collection=name, vector=query.vector)
            answer = await rig.call("VectorService/Query", request)
            assert len(answer.hits) == 4
            assert all(math.isfinite(hit.score) for hit in answer.hits)


async def test_f13_a_batch_of_queries_is_bounded_as_a_whole(rig: Rig) -> None:
    await make(rig)
    query = vectors.QueryRequest(vector=[1, 0, 0], ef=4096)
    for queries, field in (([], "queries"), ([query] * 257, "queries"), ([query] * 20, "queries")):
        request = vectors.QueryBatchRequest(collection="things", queries=queries)
        assert (await rig.refused("VectorService/QueryBatch", request)).fields == [field]
    other = vectors.QueryRequest(collection="other", vector=[1, 0, 0])
    request = vectors.QueryBatchRequest(collection="things", queries=[query, other])
    assert (await rig.refused("VectorService/QueryBatch", request)).fields == ["queries[1].collection"]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 10_000}, "name"),
        ({"dimension": 0}, "dimension"),
        ({"dimension": 4097}, "dimension"),
        ({"metric": 9}, "metric"),
        ({"embedder": "unknown", "dimension": 0}, "embedder"),
        ({"embedder": "default", "dimension": 3}, "dimension"),
        ({"embedder": "default", "dimension": 0, "metric": collections.METRIC_L2}, "metric"),
        ({"idempotency_key": "x" * 257}, "idempotency_key"),
    ],
)
async def test_a_bad_collection_is_not_made(rig: Rig, bad: dict[str, Any], field: str) -> None:
    fields: dict[str, Any] = {"name": "things", "dimension": 3} | bad
    request = collections.CreateCollectionRequest(**fields)
    refusal = await rig.refused("CollectionService/CreateCollection", request)
    assert refusal.fields == [field]
    listed = await rig.call("CollectionService/ListCollections", collections.ListCollectionsRequest())
    assert not listed.collections


async def test_page_tokens_are_bound_to_their_listing_and_account(rig: Rig) -> None:
    for number in range(3):
        await make(rig, f"c{number}")
    page = await rig.call(
        "CollectionService/ListCollections", collections.ListCollectionsRequest(page_size=2)
    )
    assert [collection.name for collection in page.collections] == ["c0", "c1"]
    token = page.next_page_token
    rest = await rig.call(
        "CollectionService/ListCollections", collections.ListCollectionsRequest(page_token=token)
    )
    assert [collection.name for collection in rest.collections] == ["c2"]
    for bad in ("x", token[:-2], token[:40] + "AAAA" + token[44:], "x" * 10_000):
        request = collections.ListCollectionsRequest(page_token=bad)
        assert (await rig.refused("CollectionService/ListCollections", request)).fields == ["page_token"]
    foreign = vectors.ListPointsRequest(collection="c0", page_token=token)
    assert (await rig.refused("VectorService/ListPoints", foreign)).fields == ["page_token"]
    other = collections.ListCollectionsRequest(page_token=token)
    refusal = await rig.refused("CollectionService/ListCollections", other, account="0" * 25 + "2")
    assert refusal.fields == ["page_token"]


async def test_a_listing_shows_a_restricted_token_its_own_collections(rig: Rig) -> None:
    for number in range(4):
        await make(rig, f"c{number}")
    listed = await rig.call(
        "CollectionService/ListCollections",
        collections.ListCollectionsRequest(page_size=1),
        collections=("c1", "c3"),
    )
    assert [collection.name for collection in listed.collections] == ["c1"]
    more = collections.ListCollectionsRequest(page_size=5, page_token=listed.next_page_token)
    rest = await rig.call("CollectionService/ListCollections", more, collections=("c1", "c3"))
    assert [collection.name for collection in rest.collections] == ["c3"]


async def test_a_collection_is_made_once_a_name_and_once_a_key(rig: Rig) -> None:
    first = await make(rig, idempotency_key="k")
    assert (await make(rig, "another name", idempotency_key="k")).id == first.id
    refusal = await rig.refused(
        "CollectionService/CreateCollection", collections.CreateCollectionRequest(name="things", dimension=3)
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "COLLECTION_EXISTS")


async def test_text_and_vector_collections_are_not_mixed_up(rig: Rig) -> None:
    plain = await make(rig)
    texts = await make(rig, "texts", 0, embedder="default")
    await put(rig, texts.id, "doc1", ["some text"])
    refusal = await rig.refused("VectorService/Upsert", upsert_of(GOOD, collection="texts"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TEXT_COLLECTION")
    for method, request in (
        ("PutDocument", inner.PutDocumentRequest(collection_id=plain.id)),
        ("ListDocumentRecords", inner.ListDocumentRecordsRequest(collection="things")),
        (
            "SearchPassages",
            inner.SearchPassagesRequest(collection="things", query="x", vector_f32=f32(1, 0, 0)),
        ),
    ):
        refusal = await rig.refused(f"PassageService/{method}", request)
        assert refusal.reason == "NOT_A_TEXT_COLLECTION"
    query = vectors.QueryRequest(collection="texts", vector=range(1, 9), with_text=True)
    (hit,) = (await rig.call("VectorService/Query", query)).hits
    assert (hit.id, hit.text) == ("doc1#00000", "some text")


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"document": inner.DocumentRecord(id="", name="n")}, "document.id"),
        ({"document": inner.DocumentRecord(id="a#b", name="n")}, "document.id"),
        ({"document": inner.DocumentRecord(id="a", name="")}, "document.name"),
        ({"document": inner.DocumentRecord(id="a", name="n", principals=["p"] * 257)}, "document.principals"),
        ({"passages": [inner.Passage(vector_f32=struct.pack("<f", 1))]}, "passages[0].vector_f32"),
        ({"passages": [inner.Passage(vector_f32=f32(*[1] * 8))] * 2}, "passages"),
        ({"passages": [inner.Passage(text="x" * 65537, vector_f32=f32(*[1] * 8))]}, "passages[0].text"),
    ],
)
async def test_a_bad_document_is_refused_whole(rig: Rig, bad: dict[str, Any], field: str) -> None:
    texts = await make(rig, "texts", 0, embedder="default")
    right = {"collection_id": texts.id, "document": inner.DocumentRecord(id="a", name="n")}
    fields: dict[str, Any] = right | bad
    refusal = await rig.refused("PassageService/PutDocument", inner.PutDocumentRequest(**fields))
    assert refusal.fields == [field]


async def test_metadata_may_not_have_fields_without_end(rig: Rig) -> None:
    await make(rig)
    wide = struct_of(**{f"f{number}": 1 for number in range(1025)})
    refusal = await rig.refused("VectorService/Upsert", upsert_of(point(metadata=wide)))
    assert (refusal.reason, refusal.fields) == ("TOO_MANY_FIELDS", ["points[0].metadata"])
