"""The vectorstore as its peers see it, over real mutual TLS."""

from __future__ import annotations

import struct
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct

from sealcomb.internal.v1 import passage_service_pb2 as inner
from sealcomb.v1 import collection_service_pb2 as collections
from sealcomb.v1 import filter_pb2, search_service_pb2
from sealcomb.v1 import vector_service_pb2 as vectors
from services.common.errors import ResourceExhausted
from services.vectorstore.node import Limits
from tests.vectorstore.conftest import Rig
from tests.vectorstore.fakes import OTHER, acting, open_node


def struct_of(**fields: Any) -> Struct:
    """A Struct with these fields."""
    made = Struct()
    made.update(fields)
    return made


def f32(*numbers: float) -> bytes:
    """Little-endian floats."""
    return struct.pack(f"<{len(numbers)}f", *numbers)


def eq(field: str, value: Any) -> filter_pb2.Filter:
    """A filter for one value."""
    made = filter_pb2.Filter()
    made.eq.field = field
    if isinstance(value, bool):
        made.eq.value.bool_value = value
    elif isinstance(value, str):
        made.eq.value.string_value = value
    else:
        made.eq.value.number_value = value
    return made


async def make(rig: Rig, name: str = "things", dimension: int = 3, **more: Any) -> collections.Collection:
    """Creates a collection."""
    request = collections.CreateCollectionRequest(name=name, dimension=dimension, **more)
    response: collections.CreateCollectionResponse = await rig.call(
        "CollectionService/CreateCollection", request
    )
    return response.collection


def upsert_of(*points: vectors.Point, collection: str = "things") -> vectors.UpsertRequest:
    """An Upsert."""
    return vectors.UpsertRequest(collection=collection, points=points)


async def test_points_go_in_and_are_found_read_counted_listed_and_deleted(rig: Rig) -> None:
    await make(rig)
    points = [
        vectors.Point(id="a", vector=[1, 0, 0], metadata=struct_of(colour="red", size=1), text="first"),
        vectors.Point(id="b", vector_f32=f32(0, 2, 0), metadata=struct_of(colour="blue", size=2)),
        vectors.Point(id="c", vector=[0.9, 0.1, 0], metadata=struct_of(colour="red", size=3)),
    ]
    assert (await rig.call("VectorService/Upsert", upsert_of(*points))).upserted == 3
    request = vectors.QueryRequest(
        collection="things",
        vector=[1, 0, 0],
        top_k=2,
        with_vectors=True,
        with_metadata=True,
        with_text=True,
    )
    hits = (await rig.call("VectorService/Query", request)).hits
    assert [hit.id for hit in hits] == ["a", "c"]
    assert hits[0].score == pytest.approx(1.0)
    assert hits[0].vector_f32 == f32(1, 0, 0)
    assert hits[0].metadata["colour"] == "red"
    assert hits[0].text == "first"

    request.filter.CopyFrom(eq("colour", "blue"))
    assert [hit.id for hit in (await rig.call("VectorService/Query", request)).hits] == ["b"]
    count = vectors.CountPointsRequest(collection="things", filter=eq("colour", "red"))
    assert (await rig.call("VectorService/CountPoints", count)).count == 2
    got = await rig.call(
        "VectorService/GetPoints",
        vectors.GetPointsRequest(collection="things", ids=["b", "nobody"], with_vectors=True),
    )
    assert [point.id for point in got.points] == ["b"]
    assert got.points[0].vector_f32 == f32(0, 2, 0)

    first = await rig.call(
        "VectorService/ListPoints", vectors.ListPointsRequest(collection="things", page_size=2)
    )
    assert [point.id for point in first.points] == ["a", "b"]
    rest = vectors.ListPointsRequest(collection="things", page_size=2, page_token=first.next_page_token)
    second = await rig.call("VectorService/ListPoints", rest)
    assert [point.id for point in second.points] == ["c"]
    assert second.next_page_token == ""

    deleted = await rig.call(
        "VectorService/DeletePoints", vectors.DeletePointsRequest(collection="things", ids=["a"])
    )
    assert deleted.deleted == 1
    matching = vectors.DeletePointsRequest(collection="things", filter=eq("colour", "red"))
    assert (await rig.call("VectorService/DeletePoints", matching)).deleted == 1
    described = await rig.call(
        "CollectionService/GetCollection", collections.GetCollectionRequest(collection="things")
    )
    assert described.collection.points == 1


async def test_a_batch_of_queries_answers_each_in_order(rig: Rig) -> None:
    await make(rig)
    await rig.call(
        "VectorService/Upsert",
        upsert_of(*(vectors.Point(id=str(n), vector=row) for n, row in enumerate(np.eye(3)))),
    )
    queries = [vectors.QueryRequest(vector=row, top_k=1) for row in np.eye(3)]
    answer = await rig.call(
        "VectorService/QueryBatch", vectors.QueryBatchRequest(collection="things", queries=queries)
    )
    assert [[hit.id for hit in result.hits] for result in answer.results] == [["0"], ["1"], ["2"]]


async def test_an_empty_collection_has_no_hits_even_for_a_filter(rig: Rig) -> None:
    await make(rig)
    request = vectors.QueryRequest(collection="things", vector=[1, 0, 0], filter=eq("colour", "red"))
    assert not (await rig.call("VectorService/Query", request)).hits


async def test_documents_are_put_searched_listed_and_deleted(rig: Rig) -> None:
    await make(rig, "texts", 0, embedder="default")
    resolved = await rig.call(
        "PassageService/ResolveCollection", inner.ResolveCollectionRequest(collection="texts")
    )
    assert (resolved.dimension, resolved.embedder) == (8, "tiny-embedder")
    await put(
        rig, resolved.collection_id, "doc1", ["Bees seal honey with wax", "Keys are rotated"], topic="bees"
    )
    await put(rig, resolved.collection_id, "doc2", ["Wax is soft"], topic="wax")
    await put(rig, resolved.collection_id, "doc3", ["Secret wax recipe"], ("ann",), topic="secret")

    found = await search(rig, "sealed honey")
    assert [(hit.document_id, hit.chunk_index) for hit in found][:1] == [("doc1", 0)]
    assert found[0].metadata["topic"] == "bees"
    assert found[0].document_name == "doc1.txt"
    assert {
        hit.document_id for hit in await search(rig, "wax", mode=search_service_pb2.SEARCH_MODE_LEXICAL)
    } == {"doc1", "doc2"}
    ann = await search(rig, "wax", mode=search_service_pb2.SEARCH_MODE_LEXICAL, as_principals=["ann"])
    assert {hit.document_id for hit in ann} == {"doc1", "doc2", "doc3"}
    assert {hit.document_id for hit in await search(rig, "wax", filter=eq("topic", "wax"))} == {"doc2"}

    listed = await rig.call(
        "PassageService/ListDocumentRecords",
        inner.ListDocumentRecordsRequest(collection="texts", page_size=2),
    )
    assert [record.id for record in listed.documents] == ["doc1", "doc2"]
    more = inner.ListDocumentRecordsRequest(
        collection="texts", page_size=2, page_token=listed.next_page_token
    )
    rest = await rig.call("PassageService/ListDocumentRecords", more)
    assert [record.id for record in rest.documents] == ["doc3"]
    gone = await rig.call(
        "PassageService/DeleteDocumentRecord",
        inner.DeleteDocumentRecordRequest(collection="texts", id="doc1"),
    )
    assert gone.object_key == "key/doc1"
    assert {hit.document_id for hit in await search(rig, "honey wax")} == {"doc2"}


async def put(
    rig: Rig,
    collection_id: str,
    id_: str,
    texts: list[str],
    principals: tuple[str, ...] = (),
    **metadata: Any,
) -> Any:
    """Puts a document whose passages have random vectors."""
    rng = np.random.default_rng(len(texts[0]))
    record = inner.DocumentRecord(
        id=id_,
        name=f"{id_}.txt",
        content_type="text/plain",
        metadata=struct_of(**metadata),
        principals=principals,
        object_key=f"key/{id_}",
        idempotency_key=f"once-{id_}",
    )
    passages = [
        inner.Passage(index=n, page=1, text=text, vector_f32=f32(*rng.normal(size=8)))
        for n, text in enumerate(texts)
    ]
    request = inner.PutDocumentRequest(collection_id=collection_id, document=record, passages=passages)
    return (await rig.call("PassageService/PutDocument", request)).document


async def search(rig: Rig, query: str, **more: Any) -> Any:
    """Searches by words and a fixed vector."""
    request = inner.SearchPassagesRequest(
        collection="texts", query=query, vector_f32=f32(*range(1, 9)), **more
    )
    return (await rig.call("PassageService/SearchPassages", request)).hits


async def test_one_per_document_gives_each_documents_best_passage(rig: Rig) -> None:
    made = await make(rig, "texts", 0, embedder="default")
    await put(rig, made.id, "long", ["wax", "wax and wax", "the wax cap", *(f"wax {n}" for n in range(30))])
    await put(rig, made.id, "short", ["a cap of wax"])
    await put(rig, made.id, "other", ["nectar"])
    lexical = {"mode": search_service_pb2.SEARCH_MODE_LEXICAL, "top_k": 3}
    every = await search(rig, "wax", **lexical)
    assert [hit.document_id for hit in every] == ["long"] * 3
    hits = await search(rig, "wax", **lexical, one_per_document=True)
    assert [hit.document_id for hit in hits] == ["long", "short"]
    assert hits[0] == every[0]
    for mode in (search_service_pb2.SEARCH_MODE_DENSE, search_service_pb2.SEARCH_MODE_HYBRID):
        every = await search(rig, "wax", mode=mode, top_k=50)
        best = list({hit.document_id: hit for hit in reversed(every)}.values())
        hits = await search(rig, "wax", mode=mode, top_k=3, one_per_document=True)
        assert sorted(hit.document_id for hit in hits) == ["long", "other", "short"]
        assert sorted(hits, key=lambda hit: str(hit.document_id)) == sorted(
            best, key=lambda hit: str(hit.document_id)
        )
        one = await search(rig, "wax", mode=mode, top_k=1, one_per_document=True)
        assert list(one) == list(hits)[:1]


async def test_a_heading_stays_with_its_passage_over_a_restart(rig: Rig) -> None:
    made = await make(rig, "texts", 0, embedder="default")
    await put(rig, made.id, "plain", ["wax"])
    record = inner.DocumentRecord(id="headed", name="headed.md", object_key="k")
    passages = [
        inner.Passage(index=n, text=f"nectar {n}", heading=heading, vector_f32=f32(*range(1, 9)))
        for n, heading in enumerate(("", "Spring"))
    ]
    request = inner.PutDocumentRequest(collection_id=made.id, document=record, passages=passages)
    await rig.call("PassageService/PutDocument", request)
    hits = await search(rig, "nectar wax", mode=search_service_pb2.SEARCH_MODE_LEXICAL)
    wanted = {("plain", 0): "", ("headed", 0): "", ("headed", 1): "Spring"}
    assert {(hit.document_id, hit.chunk_index): hit.heading for hit in hits} == wanted
    long = inner.Passage(text="x", heading="h" * 201, vector_f32=f32(*range(1, 9)))
    request = inner.PutDocumentRequest(
        collection_id=made.id, document=inner.DocumentRecord(id="n", name="n"), passages=[long]
    )
    refusal = await rig.refused("PassageService/PutDocument", request)
    assert refusal.fields == ["passages[0].heading"]
    await rig.node.close()
    again = open_node(rig.folder, rig.keyvault, Limits())
    rig.node = again
    try:
        with acting():
            use = await again.residency.use(await again.catalog.get("texts"))
            state: Any = use.collection.state
            rows = np.flatnonzero(state.index.live)
            assert [state.passage(int(row))[1].heading for row in rows] == ["", "", "Spring"]
    finally:
        await again.close()


async def test_a_document_put_twice_under_a_key_is_there_once(rig: Rig) -> None:
    made = await make(rig, "texts", 0, embedder="default")
    resolve = inner.ResolveCollectionRequest(collection="texts", idempotency_key="once-doc1")
    assert not (await rig.call("PassageService/ResolveCollection", resolve)).HasField("document")
    first = await put(rig, made.id, "doc1", ["some text"])
    assert (await rig.call("PassageService/ResolveCollection", resolve)).document == first
    again = inner.PutDocumentRequest(
        collection_id=made.id,
        document=inner.DocumentRecord(id="other", name="x", idempotency_key="once-doc1"),
        passages=[inner.Passage(text="other", vector_f32=f32(*range(1, 9)))],
    )
    assert (await rig.call("PassageService/PutDocument", again)).document == first


async def test_a_foreign_collection_answers_like_one_that_does_not_exist(rig: Rig) -> None:
    made = await make(rig)
    for method, request in (
        ("VectorService/Upsert", upsert_of(vectors.Point(id="a", vector=[1, 0, 0]))),
        ("VectorService/Query", vectors.QueryRequest(collection="things", vector=[1, 0, 0])),
        ("CollectionService/GetCollection", collections.GetCollectionRequest(collection="things")),
        ("CollectionService/DeleteCollection", collections.DeleteCollectionRequest(collection="things")),
        ("PassageService/PutDocument", inner.PutDocumentRequest(collection_id=made.id)),
    ):
        foreign = await rig.refused(method, request, account=OTHER)
        assert (foreign.code, foreign.reason) == (grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND")
        barred = await rig.refused(method, request, collections=("another",))
        assert barred == foreign


async def test_a_deleted_collection_is_gone_and_its_name_free(rig: Rig) -> None:
    made = await make(rig)
    await rig.call("VectorService/Upsert", upsert_of(vectors.Point(id="a", vector=[1, 0, 0])))
    await rig.call(
        "CollectionService/DeleteCollection", collections.DeleteCollectionRequest(collection="things")
    )
    assert (ACCOUNT_ID, made.id) in rig.keyvault.destroyed
    refusal = await rig.refused(
        "CollectionService/GetCollection", collections.GetCollectionRequest(collection="things")
    )
    assert refusal.reason == "COLLECTION_NOT_FOUND"
    anew = await make(rig)
    assert anew.id != made.id
    count = vectors.CountPointsRequest(collection="things")
    assert (await rig.call("VectorService/CountPoints", count)).count == 0


ACCOUNT_ID = "0" * 25 + "1"


async def test_a_deletion_that_meets_a_full_disk_says_that_it_has_begun_and_ends_when_it_is_repeated(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16: the keys are gone, so the refusal must not be the one that says that nothing was written."""
    await rig.call(
        "CollectionService/CreateCollection", collections.CreateCollectionRequest(name="things", dimension=4)
    )

    def full(_account: str, _id: str) -> list[str]:
        raise ResourceExhausted("the storage is full; nothing was written", reason="STORAGE_FULL")

    request = collections.DeleteCollectionRequest(collection="things")
    with monkeypatch.context() as patch:
        patch.setattr(rig.node.store, "delete", full)
        refusal = await rig.refused("CollectionService/DeleteCollection", request)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DELETION_UNFINISHED")
    await rig.call("CollectionService/DeleteCollection", request)
    listed = await rig.call("CollectionService/ListCollections", collections.ListCollectionsRequest())
    assert not listed.collections
