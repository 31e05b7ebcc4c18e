"""Several replicas over one database: any answers any call, and what is acknowledged is there for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from sqlalchemy.pool import QueuePool

from sealcomb.v1 import collection_service_pb2 as collections_pb
from sealcomb.v1 import vector_service_pb2 as pb
from sealcomb.v1.collection_service_pb2_grpc import CollectionServiceStub
from sealcomb.v1.vector_service_pb2_grpc import VectorServiceStub
from services.common.context import HEADER
from services.common.rpc.channel import open_channel
from services.common.rpc.keyvault import KeyEvent
from services.common.rpc.status import error_from_call
from services.vectorstore.main import on_key_event
from tests.vectorstore.fakes import ACCOUNT, OTHER
from tests.vectorstore.replicas import Replica, Replicas


async def test_any_replica_answers_any_call_and_one_holds(replicas: Replicas) -> None:
    one, two, three = [await replicas.start() for _ in range(3)]
    await one.make("things")
    assert await one.upsert("things", "a", "b") == 2
    assert await two.upsert("things", "c") == 1
    for replica in (one, two, three):
        assert await replica.count("things") == 3
    assert [len(replica.leases.held()) for replica in (one, two, three)] == [1, 0, 0]
    # What a caller used is counted once, where the edge's call arrived.
    assert [len(replica.counted) for replica in (one, two, three)] == [1, 1, 0]


async def test_no_thread_of_a_replica_waits_for_a_connection(replicas: Replicas) -> None:
    """The one that renews the leases least of all: a pool that is empty would cost everything held."""
    node = (await replicas.start()).node
    pool = node._engine.pool
    assert isinstance(pool, QueuePool)
    # Beside these one commits and one renews; those that search use no database.
    threads = sum(executor._max_workers for executor in (node.workers, node._sql, node._builders)) + 2
    assert threads <= pool.size() + pool._max_overflow


async def test_an_error_of_the_holder_is_the_error_of_the_call(replicas: Replicas) -> None:
    one, two = [await replicas.start() for _ in range(2)]
    await one.make("things")
    await one.upsert("things", "a")
    bad = pb.UpsertRequest(collection="things", points=[pb.Point(id="b", vector=[1, 2, 3])])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await two.call("VectorService/Upsert", bad)
    error = error_from_call(refused.value)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.fields] == ["points[0].vector"]


async def test_another_account_finds_nothing_by_any_replica(replicas: Replicas) -> None:
    """D2: the holder checks the caller's own context, whoever passes the call on."""
    one, two = [await replicas.start() for _ in range(2)]
    await one.make("things")
    await one.upsert("things", "a")
    for replica in (one, two):
        request = pb.CountPointsRequest(collection="things")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await replica.call("VectorService/CountPoints", request, account=OTHER)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_vectorstore_that_was_not_told_of_replicas_takes_no_call_of_one(replicas: Replicas) -> None:
    """C1: the certificate alone opens nothing. The twin is above: replicas pass calls on to one another."""
    replicas.allowed = False
    one, two = [await replicas.start() for _ in range(2)]
    await one.make("things")
    await one.upsert("things", "a")
    tls = replicas.ca.service_files(replicas.folder, "vectorstore")
    metadata = ((HEADER, two.context("VectorService/CountPoints")),)
    request = pb.CountPointsRequest(collection="things")
    async with open_channel(f"127.0.0.1:{one.server.port}", "vectorstore", tls) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await VectorServiceStub(channel).CountPoints(request, metadata=metadata, timeout=60)
    assert error_from_call(refused.value).reason == "PEER_REFUSED"
    # Nothing was done, and whoever calls may try elsewhere.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await two.upsert("things", "b")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert error_from_call(refused.value).reason == "HELD_ELSEWHERE"
    assert await one.count("things") == 1


async def test_a_replica_is_let_through_only_under_a_callers_context(replicas: Replicas) -> None:
    """C4, C5: where replicas may call, the certificate without a context of the method opens nothing."""
    one = await replicas.start()
    await one.make("things")
    tls = replicas.ca.service_files(replicas.folder, "vectorstore")
    request = pb.CountPointsRequest(collection="things")
    async with open_channel(f"127.0.0.1:{one.server.port}", "vectorstore", tls) as channel:
        stub = VectorServiceStub(channel)
        for context in (
            "",
            one.context("VectorService/Upsert"),
            one.context("VectorService/CountPoints")[:-4],
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.CountPoints(request, metadata=((HEADER, context),), timeout=60)
            assert error_from_call(refused.value).reason == "CONTEXT_REFUSED"
        metadata = ((HEADER, one.context("VectorService/CountPoints")),)
        assert (await stub.CountPoints(request, metadata=metadata, timeout=60)).count == 0


async def test_a_call_that_was_passed_on_is_not_passed_on_again(replicas: Replicas) -> None:
    """The guard against loops, and its twin: the edge cannot say that a call was passed on."""
    one, two = [await replicas.start() for _ in range(2)]
    await one.make("things")
    await one.upsert("things", "a")
    tls = replicas.ca.service_files(replicas.folder, "vectorstore")
    context = two.context("VectorService/CountPoints")
    metadata = ((HEADER, context), ("x-sealcomb-forwarded", "1"))
    request = pb.CountPointsRequest(collection="things")
    peer = open_channel(f"127.0.0.1:{two.server.port}", "vectorstore", tls)
    async with peer as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await VectorServiceStub(channel).CountPoints(request, metadata=metadata, timeout=60)
    assert error_from_call(refused.value).reason == "NOT_HOLDER"
    answer = await VectorServiceStub(two.edge).CountPoints(request, metadata=metadata, timeout=60)
    assert answer.count == 1


async def test_batches_of_a_stream_go_to_the_holder_though_it_changes(replicas: Replicas) -> None:
    one, two, three = [await replicas.start() for _ in range(3)]
    await one.make("things")
    await one.upsert("things", "a")

    async def batches() -> AsyncIterator[pb.UpsertStreamRequest]:
        yield pb.UpsertStreamRequest(collection="things", points=[pb.Point(id="b", vector=[1, 1])])
        while await three.count("things") < 2:  # noqa: ASYNC110  (another replica's doing)
            await asyncio.sleep(0.02)
        await one.leave()
        good, bad = pb.Point(id="c", vector=[1, 1]), pb.Point(id="d", vector=[1])
        yield pb.UpsertStreamRequest(points=[good, bad])

    metadata = ((HEADER, two.context("VectorService/UpsertStream")),)
    answer = await VectorServiceStub(two.edge).UpsertStream(batches(), metadata=metadata, timeout=60)
    replicas.started.remove(one)
    assert (answer.upserted, answer.failed) == (2, 1)
    assert [(failure.position, failure.field) for failure in answer.failures] == [(2, "vector")]
    assert await three.count("things") == 3


async def test_an_export_is_streamed_from_the_holder(replicas: Replicas) -> None:
    one, two = [await replicas.start() for _ in range(2)]
    await one.make("things")
    await one.upsert("things", "a", "b")
    method = "CollectionService/ExportCollection"
    request = collections_pb.ExportCollectionRequest(
        collection="things", form=collections_pb.EXPORT_FORM_CLEAR
    )
    exported = []
    for replica in (one, two):
        metadata = ((HEADER, replica.context(method)),)
        stream = CollectionServiceStub(replica.edge).ExportCollection(request, metadata=metadata, timeout=60)
        exported.append([answer.frame async for answer in stream])
    assert len(exported[0]) == len(exported[1]) > 0
    assert sum(frame.ByteSize() for frame in exported[1]) > 16
    missing = collections_pb.ExportCollectionRequest(collection="none", form=collections_pb.EXPORT_FORM_CLEAR)
    metadata = ((HEADER, two.context(method)),)
    stream = CollectionServiceStub(two.edge).ExportCollection(missing, metadata=metadata, timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.read()
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_lost_holder_is_replaced_and_nothing_that_was_acknowledged_is_lost(
    replicas: Replicas,
) -> None:
    """F15's other half: within the lease and the time to open it; reads wait for it, none fails."""
    one, two = await replicas.start(lease_s=1.0), await replicas.start(lease_s=1.0)
    await one.make("things")
    for number in range(20):
        await two.upsert("things", f"p{number}")
    assert one.leases.held() or two.leases.held()
    holder, other = (one, two) if one.leases.held() else (two, one)
    await holder.crash()
    replicas.started.remove(holder)
    started = time.monotonic()
    assert await other.count("things") == 20
    assert time.monotonic() - started < 30
    assert await other.upsert("things", "after") == 1
    await holder.node.close()


async def test_a_planned_move_fails_no_call(replicas: Replicas) -> None:
    """G8's inner half: holders leave one after the other under writes and reads, and no call fails."""
    living = [await replicas.start(lease_s=1.0) for _ in range(2)]
    await living[0].make("things")
    await living[0].upsert("things", "first")
    stop, acknowledged, reads = asyncio.Event(), ["first"], [0]

    async def write(worker: int) -> None:
        number = 0
        while not stop.is_set():
            name = f"w{worker}-{number}"
            assert await living[-1].upsert("things", name) == 1
            acknowledged.append(name)
            number += 1

    async def read() -> None:
        while not stop.is_set():
            known = len(acknowledged)
            assert await living[-1].count("things") >= known
            reads[0] += 1

    async with asyncio.TaskGroup() as group:
        for worker in range(3):
            group.create_task(write(worker))
        group.create_task(read())
        for _ in range(2):
            before = len(acknowledged)
            while len(acknowledged) < before + 10:  # noqa: ASYNC110  (polled, as a person would)
                await asyncio.sleep(0.02)
            holder = next(replica for replica in living if replica.leases.held())
            fresh = await replicas.start(lease_s=1.0)
            living.append(fresh)
            await asyncio.sleep(0.1)
            living.remove(holder)
            await holder.leave()
            replicas.started.remove(holder)
        stop.set()
    assert reads[0] > 0
    assert await living[0].count("things") == len(acknowledged)


async def test_settings_and_names_are_the_newest_at_every_replica(replicas: Replicas) -> None:
    one, two = [await replicas.start() for _ in range(2)]
    await one.make("things")
    await one.upsert("things", "a")
    assert await two.count("things") == 1
    change = collections_pb.UpdateCollectionRequest(collection="things", default_ef=77)
    await two.call("CollectionService/UpdateCollection", change)
    for replica in (one, two):
        get = collections_pb.GetCollectionRequest(collection="things")
        found = await replica.call("CollectionService/GetCollection", get)
        assert found.collection.default_ef == 77
    delete = collections_pb.DeleteCollectionRequest(collection="things")
    await two.call("CollectionService/DeleteCollection", delete)
    await one.make("things")
    # Nobody has told this replica that the name is another collection's now.
    assert await two.count("things") == 0


async def test_a_deleted_collection_is_removed_once_by_its_holder(replicas: Replicas) -> None:
    one, two = [await replicas.start() for _ in range(2)]
    await one.make("things")
    await one.upsert("things", "a")
    (id_,) = one.leases.held()
    await on_key_event(two.node)(KeyEvent.RESOURCE_DESTROYED, ACCOUNT, id_)
    assert one.node.store.owned(ACCOUNT) == [(ACCOUNT, id_)]
    await on_key_event(one.node)(KeyEvent.RESOURCE_DESTROYED, ACCOUNT, id_)
    assert one.node.store.owned(ACCOUNT) == []
    await on_key_event(two.node)(KeyEvent.RESOURCE_DESTROYED, ACCOUNT, id_)


async def test_what_is_closed_for_want_of_memory_may_be_held_by_others(replicas: Replicas) -> None:
    small: Replica = await replicas.start(resident_bytes_max=1)
    large = await replicas.start()
    for name in ("one", "two"):
        await small.make(name)
        await small.upsert(name, "a")
    deadline = time.monotonic() + 30
    while len(small.leases.held()) > 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert await large.count("one") == 1
    assert len(large.leases.held()) == 1
