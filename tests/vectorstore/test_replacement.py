"""A document's new version replaces the older one in the same moment, and a restart finds it so."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sealcomb.internal.v1 import passage_service_pb2 as inner
from sealcomb.v1 import collection_service_pb2 as collections
from sealcomb.v1 import search_service_pb2
from services.vectorstore.node import Limits
from tests.vectorstore.conftest import Rig
from tests.vectorstore.fakes import acting, open_node


async def _collection(rig: Rig) -> str:
    request = collections.CreateCollectionRequest(name="texts", embedder="default")
    return str((await rig.call("CollectionService/CreateCollection", request)).collection.id)


def _put(
    collection: str, version: int, *, replaces: str = "doc", passages: int = 3
) -> inner.PutDocumentRequest:
    request = inner.PutDocumentRequest(
        collection_id=collection,
        document=inner.DocumentRecord(
            id="doc", name="a.txt", object_key=f"key/{version}", principals=[f"v{version}"]
        ),
        replaces_document_id=replaces,
    )
    for index in range(passages):
        vector = struct.pack("<8f", *[1.0 if place == index else 0.1 for place in range(8)])
        request.passages.add(
            index=index, text=f"wax seal version{version} passage {index}", vector_f32=vector
        )
    return request


async def _search(rig: Rig, query: str, **fields: Any) -> list[str]:
    request = inner.SearchPassagesRequest(
        collection="texts",
        query=query,
        top_k=50,
        mode=search_service_pb2.SEARCH_MODE_LEXICAL,
        as_principals=[f"v{n}" for n in range(10)],
        **fields,
    )
    return [hit.text for hit in (await rig.call("PassageService/SearchPassages", request)).hits]


async def _counts(rig: Rig) -> tuple[int, int]:
    request = collections.GetCollectionRequest(collection="texts")
    found = (await rig.call("CollectionService/GetCollection", request)).collection
    return found.points, found.documents


async def test_a_new_version_takes_the_place_of_the_old(rig: Rig) -> None:
    """E27: under the same id, with its passages, its words and its principals."""
    made = await _collection(rig)
    first = (await rig.call("PassageService/PutDocument", _put(made, 1, replaces=""))).document
    second = (await rig.call("PassageService/PutDocument", _put(made, 2, passages=2))).document
    assert (first.object_key, second.object_key) == ("key/1", "key/2")
    assert sorted(await _search(rig, "wax")) == [f"wax seal version2 passage {n}" for n in range(2)]
    assert await _search(rig, "version1") == []
    assert await _counts(rig) == (2, 1)
    listed = (
        await rig.call(
            "PassageService/ListDocumentRecords", inner.ListDocumentRecordsRequest(collection="texts")
        )
    ).documents
    assert [(record.id, list(record.principals)) for record in listed] == [("doc", ["v2"])]


async def test_the_same_put_again_changes_nothing(rig: Rig) -> None:
    """E27: after an answer that was lost, the object key says that it is the same version."""
    made = await _collection(rig)
    await rig.call("PassageService/PutDocument", _put(made, 1, replaces="doc"))
    request = _put(made, 2)
    first = (await rig.call("PassageService/PutDocument", request)).document
    assert (await rig.call("PassageService/PutDocument", request)).document == first
    assert await _counts(rig) == (3, 1)
    # Without a word of replacing, the document that is there stays, whatever its object.
    kept = (await rig.call("PassageService/PutDocument", _put(made, 3, replaces=""))).document
    assert kept.object_key == "key/2"


async def test_at_every_moment_exactly_one_version_is_found(rig: Rig) -> None:
    """E27: while versions follow one another, each search sees one of them, and all of it."""
    made = await _collection(rig)
    await rig.call("PassageService/PutDocument", _put(made, 0, replaces=""))
    done = asyncio.Event()

    async def replace() -> None:
        for version in range(1, 10):
            await rig.call("PassageService/PutDocument", _put(made, version, passages=40))
        done.set()

    task = asyncio.create_task(replace())
    seen = set()
    while not done.is_set():
        found = await _search(rig, "wax")
        versions = {text.split()[2] for text in found}
        assert len(versions) == 1
        assert len(found) == (3 if versions == {"version0"} else 40)
        seen |= versions
    await task
    assert len(seen) > 1


async def test_a_restart_finds_the_newest_version_alone(rig: Rig, tmp_path: Path) -> None:
    made = await _collection(rig)
    for version in range(3):
        await rig.call("PassageService/PutDocument", _put(made, version))
    await rig.node.close()
    again = open_node(rig.folder, rig.keyvault, Limits())
    try:
        rig.node = again
        with acting():
            use = await again.residency.use(await again.catalog.get("texts"))
            state: Any = use.collection.state
            assert (state.points, state.documents) == (3, 1)
            assert state.document("doc").document.object_key == "key/2"
    finally:
        await again.close()


async def test_by_id_a_collection_is_the_same_and_a_foreign_one_is_none(rig: Rig) -> None:
    """D2: for work that knows ids alone."""
    made = await _collection(rig)
    await rig.call("PassageService/PutDocument", _put(made, 1))
    get = inner.GetDocumentRecordRequest(collection_id=made, id="doc")
    assert (await rig.call("PassageService/GetDocumentRecord", get)).document.id == "doc"
    refused = await rig.refused(
        "PassageService/DeleteDocumentRecord",
        inner.DeleteDocumentRecordRequest(collection_id=made, id="doc"),
        account="01" * 13,
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND")
    delete = inner.DeleteDocumentRecordRequest(collection_id=made, id="doc")
    await rig.call("PassageService/DeleteDocumentRecord", delete)
    assert await _counts(rig) == (0, 0)


@pytest.mark.parametrize("replaces", ["nobody", "doc"])
async def test_replacing_what_is_not_there_is_putting(rig: Rig, replaces: str) -> None:
    made = await _collection(rig)
    await rig.call("PassageService/PutDocument", _put(made, 1, replaces=replaces))
    assert await _counts(rig) == (3, 1)
