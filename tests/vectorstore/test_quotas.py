"""F14: what a collection and an account may hold, refused with the limit by name and with nothing written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from sealcomb.v1 import collection_service_pb2 as collections
from sealcomb.v1 import vector_service_pb2 as vectors
from services.common.errors import ResourceExhausted
from services.vectorstore.node import Limits, Node
from services.vectorstore.quotas import Caps, Usage, Usages, check
from tests.vectorstore.conftest import Rig
from tests.vectorstore.fakes import ACCOUNT, OTHER, FakeKeyvault, Space, acting, open_node
from tests.vectorstore.test_servicers import make, put, upsert_of
from tests.vectorstore.test_verbs import ids_of, plain, read, streamed


@pytest.fixture
def limits() -> Limits:
    """Room for 3 points in a collection, 5 in an account, and 2 collections."""
    caps = Caps(collection_points=3, account_points=5)
    return replace(Limits(), caps=caps, collections_per_account_max=2)


async def test_f14_a_collection_holds_no_more_points_than_it_may(rig: Rig) -> None:
    """F14: the write that passes the limit is refused whole; replacing and updating go on at the limit."""
    await make(rig)
    await rig.call("VectorService/Upsert", upsert_of(plain("a"), plain("b")))
    refusal = await rig.refused("VectorService/Upsert", upsert_of(plain("c"), plain("d")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "COLLECTION_FULL")
    assert refusal.quotas == ["points of a collection"]
    assert await ids_of(rig) == ["a", "b"]
    await rig.call("VectorService/Upsert", upsert_of(plain("a", 0, 1, 0), plain("c")))
    await rig.call("VectorService/Upsert", upsert_of(plain("a"), plain("b"), plain("c")))
    update = vectors.PointUpdate(id="a", text="x")
    await rig.call(
        "VectorService/UpdatePoints", vectors.UpdatePointsRequest(collection="things", updates=[update])
    )
    assert (await read(rig, "a")).text == "x"
    await rig.call("VectorService/DeletePoints", vectors.DeletePointsRequest(collection="things", ids=["a"]))
    await rig.call("VectorService/Upsert", upsert_of(plain("d")))
    assert await ids_of(rig) == ["b", "c", "d"]


async def test_f14_a_stream_that_fills_the_collection_ends_with_what_fits(rig: Rig) -> None:
    await make(rig)
    refusal = await rig.refused(
        "VectorService/UpsertStream", streamed([plain("a"), plain("b")], [plain("c"), plain("d")])
    )
    assert (refusal.reason, refusal.quotas) == ("COLLECTION_FULL", ["points of a collection"])
    assert await ids_of(rig) == ["a", "b"]


async def test_f14_an_account_holds_no_more_than_it_may_and_no_other_account_notices(rig: Rig) -> None:
    for name in ("things", "more"):
        await make(rig, name)
    await rig.call("VectorService/Upsert", upsert_of(plain("a"), plain("b"), plain("c")))
    more = upsert_of(plain("d"), plain("e"), plain("f"), collection="more")
    refusal = await rig.refused("VectorService/Upsert", more)
    assert (refusal.reason, refusal.quotas) == ("ACCOUNT_FULL", ["points of an account"])
    refusal = await rig.refused(
        "CollectionService/CreateCollection", collections.CreateCollectionRequest(name="third", dimension=3)
    )
    assert (refusal.reason, refusal.quotas) == ("COLLECTION_LIMIT", ["collections of an account"])
    other = collections.CreateCollectionRequest(name="more", dimension=3)
    await rig.call("CollectionService/CreateCollection", other, account=OTHER)
    await rig.call("VectorService/Upsert", more, account=OTHER)
    # A deleted collection makes room at once.
    await rig.call(
        "CollectionService/DeleteCollection", collections.DeleteCollectionRequest(collection="things")
    )
    await rig.call("VectorService/Upsert", more)


async def test_passages_of_documents_count_as_points(rig: Rig) -> None:
    made = await make(rig, "texts", 0, embedder="default")
    await put(rig, made.id, "doc1", ["one", "two"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(rig, made.id, "doc2", ["three", "four"])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await put(rig, made.id, "doc3", ["three"])


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with room for 5 points in an account."""
    made = open_node(tmp_path, FakeKeyvault(), replace(Limits(), caps=Caps(account_points=5)))
    yield made
    await made.close()


async def test_f14_what_closed_collections_hold_counts_too(node: Node, tmp_path: Path) -> None:
    """F14: closing a collection, or the whole process, makes no room."""
    space = Space(node)
    for name in ("one", "two"):
        await space.make(name)
    await space.upsert({f"p{n}": [1, 0, 0, n] for n in range(4)}, name="one")
    with acting():
        await node.residency.drop((await node.catalog.get("one")).id)
    with pytest.raises(ResourceExhausted):
        await space.upsert({"a": [1, 0, 0, 0], "b": [1, 0, 0, 0]}, name="two")
    await node.residency.close()
    again = Space(open_node(tmp_path, node.keys._source, replace(Limits(), caps=Caps(account_points=5))))  # type: ignore[arg-type]
    with pytest.raises(ResourceExhausted) as caught:
        await again.upsert({"a": [1, 0, 0, 0], "b": [1, 0, 0, 0]}, name="two")
    assert caught.value.reason == "ACCOUNT_FULL"
    await again.upsert({"a": [1, 0, 0, 0]}, name="two")
    await again.node.close()


async def test_f14_twin_without_caps_the_same_writes_are_taken(tmp_path: Path) -> None:
    """The twin: with the default caps nothing of this is refused."""
    space = Space(open_node(tmp_path, FakeKeyvault()))
    await space.make()
    await space.upsert({f"p{n}": [1, 0, 0, n] for n in range(100)})
    assert len(await space.contents()) == 100
    await space.node.close()


def test_bytes_are_bounded_like_points_and_every_passed_limit_is_named() -> None:
    caps = Caps(collection_points=10, collection_bytes=100, account_points=20, account_bytes=200)
    usage = Usage()
    usage.set("a", 10, 150)
    check(caps, usage, (5, 50), (5, 50))
    with pytest.raises(ResourceExhausted) as caught:
        check(caps, usage, (5, 50), (6, 51))
    assert [quota.subject for quota in caught.value.quotas] == [
        "points of a collection",
        "bytes of a collection in memory",
    ]
    with pytest.raises(ResourceExhausted) as caught:
        check(caps, usage, (5, 40), (1, 60))
    assert [quota.subject for quota in caught.value.quotas] == ["bytes of an account in memory"]


def test_usage_follows_every_collection_and_is_forgotten_with_it() -> None:
    usages = Usages()
    usage = usages.begin(ACCOUNT, [("a", 3, 30), ("b", 4, 40)])
    usage.set("a", 1, 10)
    usage.set("c", 5, 50)
    assert (usage.points, usage.size_bytes) == (10, 100)
    assert usages.begin(ACCOUNT, [("a", 3, 30)]) is usage
    usage.forget("b")
    usage.forget("nobody")
    assert (usage.points, usage.size_bytes) == (6, 60)
    assert usages.of(OTHER) is None
    del usage
    assert usages.of(ACCOUNT) is None
