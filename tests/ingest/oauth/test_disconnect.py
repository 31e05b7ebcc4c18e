"""Disconnecting: at any moment, more than once, with a provider in trouble; by the source's own log."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from sealcomb.v1 import ingestion_service_pb2 as ingestion
from sealcomb.v1 import source_service_pb2 as pb
from services.common.errors import Unavailable
from services.ingest.connections import oauth
from services.ingest.connections.records import Revoked
from services.ingest.connections.service import Connections
from services.ingest.connections.store import ConnectionStore
from tests.ingest.jobs.rig import call, create, ended, get, sql, texts
from tests.ingest.oauth.dance import World, connect, refused, types_of
from tests.ingest.rig import Rig, eventually


async def test_after_disconnect_nothing_reaches_the_source(rig: Rig, world: World) -> None:
    """E10, B16: the key is gone, the provider is told, the job stops; by the source's own log."""
    stuck = asyncio.Event()
    reached = asyncio.Event()

    async def wait(_item: object) -> None:
        reached.set()
        await stuck.wait()

    guarded = types_of(rig)[0]
    guarded.pace = wait
    connection = await connect(rig, world)
    begun = await create(rig, connection_id=connection.id)
    async with asyncio.timeout(10):
        await reached.wait()
    calls = await world.one.counted("api")
    done = await call(rig, "Disconnect", pb.DisconnectRequest(connection_id=connection.id))
    assert (done.revocation, done.cancelled_ingestions) == (pb.REVOCATION_REVOKED, 1)
    assert connection.id in rig.keyvault.destroyed
    stuck.set()
    found = await ended(rig, begun.id)
    assert (found.state, found.reason) == (ingestion.INGESTION_STATE_CANCELLED, "DISCONNECTED")
    await asyncio.sleep(0.5)
    assert await world.one.counted("api") == calls
    assert await world.one.counted("request", path="/token/revocation") >= 2
    assert not (await call(rig, "ListConnections", pb.ListConnectionsRequest())).connections
    again = call(rig, "Disconnect", pb.DisconnectRequest(connection_id=connection.id))
    assert (await refused(again))[0] == "CONNECTION_NOT_FOUND"
    assert sql(rig, "select count(*) from connections")[0][0] == 0


@pytest.mark.parametrize("delete", [False, True])
async def test_what_was_ingested_stays_or_goes_as_asked(rig: Rig, world: World, delete: bool) -> None:
    connection = await connect(rig, world)
    await ended(rig, (await create(rig, connection_id=connection.id)).id)
    assert len(texts(rig)) == 2
    request = pb.DisconnectRequest(connection_id=connection.id, delete_documents=delete)
    done = await call(rig, "Disconnect", request)
    assert done.deleting_documents == (2 if delete else 0)
    if delete:
        await eventually(lambda: not texts(rig) and not rig.objects)
    else:
        await asyncio.sleep(0.3)
        assert len(texts(rig)) == 2


async def disconnect(rig: Rig, connection: pb.Connection, **fields: Any) -> pb.DisconnectResponse:
    """Ends a connection."""
    request = pb.DisconnectRequest(connection_id=connection.id, **fields)
    done: pb.DisconnectResponse = await call(rig, "Disconnect", request)
    return done


def left(rig: Rig) -> int:
    """Connections and flows that are still in the database."""
    return sum(
        int(sql(rig, f"select count(*) from {table}")[0][0]) for table in ("connections", "connection_flows")
    )


async def test_disconnecting_straight_after_an_ingestion(rig: Rig, world: World) -> None:
    """E10: the pool may still hold an open connection to the source; nothing goes over it any more."""
    connection = await connect(rig, world)
    await ended(rig, (await create(rig, connection_id=connection.id)).id)
    calls = await world.one.counted("api")
    done = await disconnect(rig, connection)
    assert (done.revocation, done.cancelled_ingestions) == (pb.REVOCATION_REVOKED, 0)
    await asyncio.sleep(0.3)
    assert await world.one.counted("api") == calls
    assert left(rig) == 0
    request = ingestion.CreateIngestionRequest(collection="notes", connection_id=connection.id)
    assert (await refused(call(rig, "CreateIngestion", request)))[0] == "CONNECTION_NOT_FOUND"


async def test_without_the_end_of_its_jobs_the_source_is_still_reached(
    rig: Rig, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: a disconnection that ends neither job nor key leaves the source in reach."""

    async def nothing(*_arguments: Any, **_fields: Any) -> tuple[int, int]:
        return 0, 0

    monkeypatch.setattr("services.ingest.ingestions.service.Ingestions.disconnect", nothing)
    monkeypatch.setattr(ConnectionStore, "begin_disconnecting", lambda *_: None)
    monkeypatch.setattr(ConnectionStore, "remove", lambda *_: None)
    monkeypatch.setattr(Connections, "_revoke", lambda *_: asyncio.sleep(0, Revoked.FAILED))
    guarded = types_of(rig)[0]
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_item: object) -> None:
        reached.set()
        await go_on.wait()

    guarded.pace = wait
    connection = await connect(rig, world)
    await create(rig, connection_id=connection.id)
    # Listed already: a job that finds its connection's key destroyed on the way ends by itself.
    async with asyncio.timeout(30):
        await reached.wait()
    calls = await world.one.counted("api")
    await disconnect(rig, connection)
    rig.keyvault.destroyed.clear()
    go_on.set()
    await eventually(lambda: world.one.count("api") > calls)


async def test_of_two_who_disconnect_at_once_both_learn_the_same(rig: Rig, world: World) -> None:
    connection = await connect(rig, world)
    before = await world.one.counted("request", path="/token/revocation")
    results = await asyncio.gather(*(disconnect(rig, connection) for _ in range(6)), return_exceptions=True)
    outcomes = [one for one in results if isinstance(one, pb.DisconnectResponse)]
    late = [one for one in results if isinstance(one, grpc.aio.AioRpcError)]
    assert outcomes
    assert {one.revocation for one in outcomes} == {pb.REVOCATION_REVOKED}
    assert {one.code() for one in late} <= {grpc.StatusCode.NOT_FOUND}
    assert len(outcomes) + len(late) == 6
    # The refresh token and the access token, once each.
    assert await world.one.counted("request", path="/token/revocation") == before + 2
    assert left(rig) == 0


async def test_a_connection_that_a_schedule_uses_ends_with_it(rig: Rig, world: World) -> None:
    connection = await connect(rig, world)
    schedule = ingestion.Schedule(cron="0 3 * * *")
    begun = await create(rig, connection_id=connection.id, schedule=schedule)
    await ended(rig, begun.id)
    assert (await get(rig, begun.id)).HasField("next_run_time")
    calls = await world.one.counted("api")
    done = await disconnect(rig, connection)
    assert done.cancelled_ingestions == 1
    found = await get(rig, begun.id)
    assert (found.state, found.reason) == (ingestion.INGESTION_STATE_CANCELLED, "DISCONNECTED")
    assert not found.HasField("next_run_time")
    # Even where a row says otherwise, there is nothing left to go with.
    sql(rig, "update ingestions set next_run_ms = 1")
    await asyncio.sleep(1.5)
    assert await world.one.counted("api") == calls
    assert (await refused(call(rig, "RetryIngestion", ingestion.RetryIngestionRequest(id=begun.id))))[0]


@pytest.mark.parametrize("trouble", ["missing", "silent"])
async def test_a_provider_that_does_not_confirm_is_said_and_holds_nothing_up(
    rig: Rig, world: World, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E10: what is ours to end has ended, whatever the provider says or does not say."""
    monkeypatch.setattr(oauth, "_TIMEOUT_S", 2.0)
    guarded = types_of(rig)[0]
    connection = await connect(rig, world)
    guarded.oauth = world.one.profile(revoke_url=f"{world.one.issuer}/{trouble}/revocation")
    async with asyncio.timeout(40):
        done = await disconnect(rig, connection)
    assert done.revocation == pb.REVOCATION_FAILED
    assert await world.one.counted("request", path=f"/{trouble}/revocation") >= 1
    assert connection.id in rig.keyvault.destroyed
    assert left(rig) == 0


async def test_a_disconnection_is_finished_though_its_caller_leaves(rig: Rig, world: World) -> None:
    """E10: half a disconnection would keep a row, or a grant at the provider."""
    guarded = types_of(rig)[0]
    connection = await connect(rig, world)
    guarded.oauth = world.one.profile(revoke_url=f"{world.one.issuer}/slow/revocation")
    before = await world.one.counted("request", path="/token/revocation")
    task = asyncio.create_task(disconnect(rig, connection))
    await eventually(lambda: world.one.count("request", path="/slow/revocation") > 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: left(rig) == 0)
    assert await world.one.counted("request", path="/token/revocation") == before + 2


async def test_a_disconnection_that_was_cut_short_is_completed_by_the_next(
    rig: Rig, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E10: after a kill in the middle nothing uses the connection, and a repeated call ends it."""
    connection = await connect(rig, world)
    revoke = Connections._revoke

    async def fail(*_arguments: Any) -> Revoked:
        raise Unavailable("the process is gone")

    monkeypatch.setattr(Connections, "_revoke", fail)
    assert (await refused(disconnect(rig, connection)))[0] == "UNAVAILABLE"
    shown = (await call(rig, "ListConnections", pb.ListConnectionsRequest())).connections
    assert [one.state for one in shown] == [pb.CONNECTION_STATE_DISCONNECTING]
    request = ingestion.CreateIngestionRequest(collection="notes", connection_id=connection.id)
    assert (await refused(call(rig, "CreateIngestion", request)))[0] == "CONNECTION_REFUSED"
    monkeypatch.setattr(Connections, "_revoke", revoke)
    # Its key is destroyed, so the provider cannot be told any more, and that is said.
    assert (await disconnect(rig, connection)).revocation == pb.REVOCATION_FAILED
    assert left(rig) == 0
