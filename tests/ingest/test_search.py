"""SearchService over real mutual TLS, and the rules of which vectors may be compared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sealcomb.v1 import filter_pb2
from sealcomb.v1 import search_service_pb2 as search
from tests.ingest.rig import OTHER_ACCOUNT, Rig, details, running


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A running ingest with three documents in `notes`."""
    async with running(tmp_path) as made:
        made.collection()
        for name, text in (
            ("bees.txt", b"bees gather nectar in the morning"),
            ("wax.txt", b"the wax cap seals each cell"),
            ("keys.txt", b"rotate the key before it leaks"),
        ):
            await made.upload(text, name=name)
        yield made


async def _refusal(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return (caught.value.code(), *details(caught.value))


async def test_a_search_by_meaning_finds_the_nearest_passage(rig: Rig) -> None:
    request = search.SearchRequest(collection="notes", query="which cap seals the cell", top_k=2)
    for mode in (search.SEARCH_MODE_UNSPECIFIED, search.SEARCH_MODE_HYBRID, search.SEARCH_MODE_DENSE):
        request.mode = mode
        hits = (await rig.call("Search", request)).hits
        assert [hit.document_name for hit in hits][:1] == ["wax.txt"]
        assert len(hits) == 2
        assert hits[0].text == "the wax cap seals each cell"
        assert (hits[0].page, hits[0].chunk_index) == (0, 0)


async def test_a_hit_says_under_which_heading_it_stands(rig: Rig) -> None:
    text = b"# Apiary\n\nsome words\n\n## Swarms\n\n" + b"a swarm leaves the hive in may " * 90
    await rig.upload(text, name="swarms.md")
    request = search.SearchRequest(collection="notes", query="swarm leaves hive", top_k=1)
    assert [hit.heading for hit in (await rig.call("Search", request)).hits] == ["Swarms"]
    await rig.call("Search", search.SearchRequest(collection="notes", query="x", one_per_document=True))
    assert [asked.one_per_document for asked in rig.vectorstore.searches] == [False, True]


async def test_each_mode_asks_vectorstore_for_what_it_needs(rig: Rig) -> None:
    condition = filter_pb2.Filter(exists=filter_pb2.Filter.Exists(field="team"))
    for mode in (search.SEARCH_MODE_HYBRID, search.SEARCH_MODE_DENSE, search.SEARCH_MODE_LEXICAL):
        request = search.SearchRequest(
            collection="notes", query="cell", mode=mode, filter=condition, as_principals=["ana"]
        )
        await rig.call("Search", request)
    hybrid, dense, lexical = rig.vectorstore.searches
    assert [bool(asked.vector_f32) for asked in (hybrid, dense, lexical)] == [True, True, False]
    assert [asked.query for asked in (hybrid, dense, lexical)] == ["cell", "", "cell"]
    assert all(asked.top_k == 10 for asked in (hybrid, dense, lexical))
    assert all(asked.filter == condition for asked in (hybrid, dense, lexical))
    assert all(list(asked.as_principals) == ["ana"] for asked in (hybrid, dense, lexical))


async def test_a_batch_answers_in_order(rig: Rig) -> None:
    searches = [search.SearchRequest(query=text, top_k=1) for text in ("nectar", "wax", "leaks")] * 10
    batch = search.SearchBatchRequest(collection="notes", searches=searches)
    results = (await rig.call("SearchBatch", batch)).results
    assert [result.hits[0].document_name for result in results] == ["bees.txt", "wax.txt", "keys.txt"] * 10


async def test_an_error_in_a_batch_is_the_answer_to_the_batch(rig: Rig) -> None:
    searches = [search.SearchRequest(query="a"), search.SearchRequest(query="b" * 8193)]
    batch = search.SearchBatchRequest(collection="notes", searches=searches)
    code, _reason, fields = await _refusal(rig.call("SearchBatch", batch))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["searches[1].query"])


_BAD: list[tuple[dict[str, Any], str]] = [
    ({"query": ""}, "query"),
    ({"query": " \n "}, "query"),
    ({"query": "q" * 8193}, "query"),
    ({"collection": ""}, "collection"),
    ({"collection": "c" * 10_000}, "collection"),
    ({"top_k": 201}, "top_k"),
    ({"mode": 17}, "mode"),
    ({"as_principals": ["p"] * 101}, "as_principals"),
    ({"as_principals": [""]}, "as_principals[0]"),
]


async def test_bad_searches_name_their_field(rig: Rig) -> None:
    for changes, field in _BAD:
        request = search.SearchRequest(**({"collection": "notes", "query": "q"} | changes))
        code, _reason, fields = await _refusal(rig.call("Search", request))
        assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    for batch, field in (
        (search.SearchBatchRequest(collection="notes"), "searches"),
        (
            search.SearchBatchRequest(collection="notes", searches=[search.SearchRequest(query="q")] * 33),
            "searches",
        ),
        (
            search.SearchBatchRequest(
                collection="notes", searches=[search.SearchRequest(query="q", collection="other")]
            ),
            "searches[0].collection",
        ),
    ):
        code, _reason, fields = await _refusal(rig.call("SearchBatch", batch))
        assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_missing_foreign_and_forbidden_collections_answer_alike(rig: Rig) -> None:
    rig.collection("theirs", OTHER_ACCOUNT)
    answers = set()
    for name in ("theirs", "nowhere"):
        for mode in (search.SEARCH_MODE_HYBRID, search.SEARCH_MODE_LEXICAL):
            request = search.SearchRequest(collection=name, query="q", mode=mode)
            answers.add(str(await _refusal(rig.call("Search", request))))
    request = search.SearchRequest(collection="notes", query="q")
    answers.add(str(await _refusal(rig.call("Search", request, collections=("other",)))))
    assert len(answers) == 1
    assert "COLLECTION_NOT_FOUND" in answers.pop()


async def test_vectors_of_other_weights_are_never_compared_but_words_are(rig: Rig) -> None:
    rig.collection("old", fingerprint="other weights")
    rig.collection("short", dimension=32)
    rig.collection("vectors", embedder="", fingerprint="")
    for name, reason in (
        ("old", "EMBEDDER_MISMATCH"),
        ("short", "EMBEDDER_MISMATCH"),
        ("vectors", "NOT_A_TEXT_COLLECTION"),
    ):
        for mode in (search.SEARCH_MODE_DENSE, search.SEARCH_MODE_HYBRID):
            request = search.SearchRequest(collection=name, query="q", mode=mode)
            code, got, _fields = await _refusal(rig.call("Search", request))
            assert (code, got) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    lexical = search.SearchRequest(collection="old", query="q", mode=search.SEARCH_MODE_LEXICAL)
    assert list((await rig.call("Search", lexical)).hits) == []
