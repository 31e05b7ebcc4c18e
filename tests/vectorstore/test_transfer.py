"""Exports and imports: what comes back is what was there, whole and of the same account, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from sealcomb.v1 import collection_service_pb2 as pb
from sealcomb.v1 import vector_service_pb2 as vectors
from services.common.errors import Unavailable
from services.common.rpc.status import DETAILS_KEY
from services.common.sealing import Identity
from services.vectorstore import exports
from services.vectorstore.importing import Importer
from services.vectorstore.node import Limits
from services.vectorstore.places import Places
from services.vectorstore.quotas import Caps
from services.vectorstore.servicers import transfer
from tests.vectorstore.conftest import Rig
from tests.vectorstore.fakes import ACCOUNT, OTHER, metadata_of, open_node, vector_of

SEALED, CLEAR = pb.EXPORT_FORM_SEALED, pb.EXPORT_FORM_CLEAR
Frames = list[pb.ExportFrame]
_CUT_SHORT = "SendMessageOperation"


@pytest.fixture
def limits() -> Limits:
    """An account may have 2,500 points."""
    return replace(Limits(), caps=Caps(account_points=2500))


async def fill(rig: Rig, count: int = 1100, name: str = "things") -> None:
    """A collection with some points, one of them deleted, and settings of its own."""
    await rig.call(
        "CollectionService/CreateCollection",
        pb.CreateCollectionRequest(
            name=name,
            dimension=8,
            metric=pb.METRIC_L2,
            default_ef=77,
            metadata_index=pb.MetadataIndex(fields=["n"]),
        ),
    )
    for start in range(0, count, 1000):
        points = []
        for number in range(start, min(start + 1000, count)):
            point = vectors.Point(
                id=f"p{number}", vector=vector_of(f"p{number}", 8).tolist(), text=f"text {number}"
            )
            point.metadata.ParseFromString(metadata_of({"n": number}))
            points.append(point)
        await rig.call("VectorService/Upsert", vectors.UpsertRequest(collection=name, points=points))
    await rig.call("VectorService/DeletePoints", vectors.DeletePointsRequest(collection=name, ids=["p3"]))


def stub_call(rig: Rig, method: str, request: Any, **who: Any) -> Any:
    """The call object of a stream."""
    return rig.stream(f"CollectionService/{method}", request, **who)


async def export(rig: Rig, form: Any = SEALED, name: str = "things", **who: Any) -> Frames:
    """All frames of an export."""
    call = stub_call(rig, "ExportCollection", pb.ExportCollectionRequest(collection=name, form=form), **who)
    return [response.frame async for response in call]


async def bring(rig: Rig, frames: Sequence[pb.ExportFrame], name: str = "copy", **who: Any) -> pb.Collection:
    """Imports frames."""

    async def requests() -> AsyncIterator[pb.ImportCollectionRequest]:
        for place, frame in enumerate(frames):
            yield pb.ImportCollectionRequest(collection="" if place else name, frame=frame)

    response = await stub_call(rig, "ImportCollection", requests(), **who)
    return response.collection  # type: ignore[no-any-return]


async def refusal(call: Awaitable[object]) -> tuple[Any, str]:
    """Code and reason of a call that is refused."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
        info = error_details_pb2.ErrorInfo()
        for detail in status.details:
            detail.Unpack(info)
        return error.code(), info.reason
    raise AssertionError(f"not refused: {answer}")


async def refused(
    rig: Rig, frames: Sequence[pb.ExportFrame], name: str = "copy", **who: Any
) -> tuple[Any, str]:
    """Code and reason of an import that is refused."""
    while True:
        try:
            return await refusal(bring(rig, frames, name, **who))
        except KeyError as error:
            # A client that is still sending when the stream ends may miss its status: grpcio's, not ours.
            cause = error.__context__
            assert _CUT_SHORT in str(cause), cause


async def points_of(rig: Rig, name: str) -> dict[str, bytes]:
    """All points by id, but for their versions."""
    found, token = {}, ""
    while True:
        request = vectors.ListPointsRequest(
            collection=name, page_size=1000, page_token=token, with_vectors=True
        )
        answer = await rig.call("VectorService/ListPoints", request)
        for point in answer.points:
            point.version = 0
            found[point.id] = point.SerializeToString(deterministic=True)
        token = answer.next_page_token
        if not token:
            return found


async def names(rig: Rig) -> list[str]:
    """The account's collections."""
    answer = await rig.call("CollectionService/ListCollections", pb.ListCollectionsRequest())
    return [collection.name for collection in answer.collections]


def nothing_left(rig: Rig) -> bool:
    """Whether only objects of collections that are there are there."""
    there = {id_ for _account, id_ in rig.node.store.owned(ACCOUNT)}
    return {key.split("/")[1] for key in rig.node._objects.list("")} <= there and not rig.node.store.orphans()


@pytest.mark.parametrize("form", [SEALED, CLEAR])
async def test_an_import_is_what_was_exported(rig: Rig, form: Any) -> None:
    await fill(rig)
    frames = await export(rig, form)
    assert len(frames) > 3
    in_clear = any(b"text 500" in frame.SerializeToString() for frame in frames)
    assert in_clear == (form == CLEAR)
    made = await bring(rig, frames)
    assert (made.points, made.dimension, made.metric, made.default_ef) == (1099, 8, pb.METRIC_L2, 77)
    assert list(made.metadata_index.fields) == ["n"]
    before = await points_of(rig, "things")
    assert len(before) == 1099
    assert await points_of(rig, "copy") == before
    # It is there after a restart too, and can be written.
    await rig.node.lock_all()
    assert await points_of(rig, "copy") == before
    await rig.call("VectorService/DeletePoints", vectors.DeletePointsRequest(collection="copy", ids=["p7"]))
    await rig.call("CollectionService/DeleteCollection", pb.DeleteCollectionRequest(collection="things"))
    # A sealed export does not need the collection that it was of.
    assert (await bring(rig, frames, "again")).points == 1099
    assert await names(rig) == ["copy", "again"]


def changes(frames: Frames) -> dict[str, Callable[[], Frames]]:
    """Sealed exports that are not whole."""

    def flip(at: int) -> Frames:
        changed = [pb.ExportFrame.FromString(frame.SerializeToString()) for frame in frames]
        raw = bytearray(changed[at].sealed)
        raw[len(raw) // 2] ^= 1
        changed[at].sealed = bytes(raw)
        return changed

    return {
        "nothing": list,
        "no seal": lambda: frames[1:],
        "no end": lambda: frames[:-1],
        "half": lambda: frames[: len(frames) // 2],
        "reordered": lambda: [frames[0], frames[2], frames[1], *frames[3:]],
        "doubled": lambda: [*frames[:2], *frames[1:]],
        "more": lambda: [*frames, pb.ExportFrame(sealed=b"x")],
        "flipped first": lambda: flip(1),
        "flipped last": lambda: flip(-1),
        "renamed": lambda: [pb.ExportFrame(seal=pb.ExportSeal(export="other")), *frames[1:]],
        "clear inside": lambda: [*frames[:2], pb.ExportFrame(end=pb.ExportEnd()), *frames[2:]],
    }


async def test_f20_a_sealed_export_opens_whole_and_unchanged_and_for_its_account_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F4, F20 for exports: cut, reordered, doubled, spliced, of another account: nothing is there then."""
    await fill(rig)
    frames = await export(rig)
    second = await export(rig)
    for name, change in changes(frames).items():
        code, reason = await refused(rig, change())
        assert code is grpc.StatusCode.INVALID_ARGUMENT, name
        assert name == "nothing" or reason == "EXPORT_BROKEN", name
    for spliced in ([frames[0], *second[1:]], [*frames[:3], *second[3:]]):
        assert (await refused(rig, spliced))[1] == "EXPORT_BROKEN"
    assert (await refused(rig, frames, account=OTHER))[1] == "EXPORT_BROKEN"
    assert await names(rig) == ["things"]
    assert nothing_left(rig)
    # The twin: not bound to account and export, the same bytes would open as another's.
    monkeypatch.setattr(exports, "_identity", lambda _account, _export: Identity("", "", "export"))
    loose = await export(rig)
    assert (await bring(rig, [pb.ExportFrame(seal=pb.ExportSeal(export="other")), *loose[1:]])).points == 1099


async def test_a_clear_export_that_is_not_whole_or_not_valid_is_refused(rig: Rig) -> None:
    await fill(rig, 20)
    frames = await export(rig, CLEAR)
    wrong = pb.ExportFrame.FromString(frames[1].SerializeToString())
    wrong.points.points[0].vector_f32 = b"\0" * 4
    for bad in (frames[:-1], frames[1:], [frames[0], frames[-1]], [*frames, frames[1]], [frames[0], *frames]):
        assert (await refused(rig, bad))[1] == "EXPORT_BROKEN"
    assert (await refused(rig, [frames[0], wrong, frames[-1]]))[0] is grpc.StatusCode.INVALID_ARGUMENT
    header = pb.ExportFrame(header=pb.ExportHeader(dimension=5000))
    assert (await refused(rig, [header, frames[-1]]))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert await names(rig) == ["things"]
    assert (await bring(rig, frames, account=OTHER)).points == 19


async def test_two_imports_of_one_name_make_one_collection(rig: Rig) -> None:
    await fill(rig, 50)
    frames = await export(rig)
    assert await refused(rig, frames, "things") == (grpc.StatusCode.ALREADY_EXISTS, "COLLECTION_EXISTS")
    rig.node.importer.places = Places("imports", 2, 2)
    both = await asyncio.gather(bring(rig, frames), bring(rig, frames), return_exceptions=True)
    assert sum(isinstance(one, pb.Collection) for one in both) == 1
    assert await names(rig) == ["things", "copy"]
    assert nothing_left(rig)
    assert await points_of(rig, "copy") == await points_of(rig, "things")


async def test_limits_hold_for_an_import(rig: Rig) -> None:
    await fill(rig)
    frames = await export(rig)
    await bring(rig, frames)
    assert (await refused(rig, frames, "third"))[1] == "ACCOUNT_FULL"
    assert await names(rig) == ["things", "copy"]
    assert nothing_left(rig)


async def begun(rig: Rig, frames: Sequence[pb.ExportFrame], name: str, **who: Any) -> Callable[[], Any]:
    """An import that has sent all but its end; ends it."""
    sent, rest = asyncio.Event(), asyncio.Event()

    async def requests() -> AsyncIterator[pb.ImportCollectionRequest]:
        for frame in frames[:-1]:
            yield pb.ImportCollectionRequest(collection=name, frame=frame)
        sent.set()
        await rest.wait()
        yield pb.ImportCollectionRequest(frame=frames[-1])

    call = stub_call(rig, "ImportCollection", requests(), **who)
    await asyncio.wait_for(sent.wait(), 30)

    async def end() -> pb.Collection:
        rest.set()
        return (await call).collection  # type: ignore[no-any-return]

    return end


async def test_what_an_import_brings_counts_before_it_is_a_collection(rig: Rig) -> None:
    """Two at once would otherwise each have the room that is for one."""
    rig.node.importer.places = Places("imports", 2, 2)
    await fill(rig)
    frames = await export(rig, CLEAR)
    both = [await begun(rig, frames, name) for name in ("second", "third")]
    ended = await asyncio.gather(*(end() for end in both), return_exceptions=True)
    assert sum(isinstance(one, pb.Collection) for one in ended) == 1
    await rig.call("CollectionService/DeleteCollection", pb.DeleteCollectionRequest(collection="things"))
    # What did not become one counts no longer.
    assert (await bring(rig, frames, "fourth")).points == 1099
    assert nothing_left(rig)


async def test_an_import_that_is_slow_leaves_places_to_other_accounts(rig: Rig) -> None:
    """B11, F14: each holds memory for as long as its caller takes."""
    full = (grpc.StatusCode.RESOURCE_EXHAUSTED, "IMPORTS_FULL")
    await fill(rig, 50)
    frames = await export(rig, CLEAR)
    end = await begun(rig, frames, "slow")
    assert await refused(rig, frames) == full
    other = await begun(rig, frames, "other", account=OTHER)
    assert await refused(rig, frames, account="3" * 26) == full
    assert (await end()).points == (await other()).points == 49
    assert (await bring(rig, frames)).points == 49


async def test_exports_that_are_not_read_are_few_and_fewer_for_one_account(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B11, F14: each keeps all that its collection was in memory until its caller has read it."""
    await fill(rig, 50)
    frames = await export(rig, CLEAR)
    await bring(rig, frames, "theirs", account=OTHER)
    request = pb.ExportCollectionRequest(collection="things")

    async def unread(*_arguments: Any, **_form: Any) -> AsyncIterator[pb.ExportFrame]:
        yield frames[0]
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "exported", unread)
        calls = [stub_call(rig, "ExportCollection", request) for _ in range(2)]
        for call in calls:
            await call.read()
    assert await refusal(export(rig)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "EXPORTS_FULL")
    assert len(await export(rig, CLEAR, "theirs", account=OTHER)) == len(frames)
    for call in calls:
        call.cancel()
    again = None
    async with asyncio.timeout(30):
        while again is None:
            with suppress(grpc.aio.AioRpcError):
                again = await export(rig, CLEAR)
            await asyncio.sleep(0.01)
    assert len(again) == len(frames)


async def test_an_import_that_breaks_at_its_end_leaves_nothing_also_when_nobody_could_clean_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(rig, 50)
    frames = await export(rig)

    async def fails(*_arguments: object) -> None:
        raise Unavailable("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(rig.node.catalog, "add", fails)
        assert (await refused(rig, frames))[0] is grpc.StatusCode.UNAVAILABLE
        assert nothing_left(rig)
        # As after a crash: what was written stays where it is.
        patch.setattr("services.vectorstore.importing.discard_old", lambda *_arguments: None)
        assert (await refused(rig, frames))[0] is grpc.StatusCode.UNAVAILABLE
    assert rig.node.store.orphans()
    assert await names(rig) == ["things"]
    again = open_node(rig.folder, rig.keyvault)
    await again.remove_abandoned()
    assert nothing_left(rig)
    await again.close()


async def test_an_import_whose_caller_leaves_is_whole_or_nothing(rig: Rig) -> None:
    await fill(rig, 50)
    frames = await export(rig)
    for turns in range(0, 60, 6):
        call = asyncio.create_task(bring(rig, frames, f"copy {turns}"))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    importer: Importer = rig.node.importer
    async with asyncio.timeout(30):
        while importer.places.taken:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for name in await names(rig):
        assert await points_of(rig, name) == await points_of(rig, "things")
    assert nothing_left(rig)


async def test_an_export_ends_when_its_collection_or_key_goes(rig: Rig) -> None:
    """What was promised for the off switch holds in the middle of a stream too."""
    await fill(rig)
    call = stub_call(rig, "ExportCollection", pb.ExportCollectionRequest(collection="things"))
    await call.read()
    await rig.node.lock_all()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _rest_of(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def _rest_of(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_text_and_unknown_collections_are_refused(rig: Rig) -> None:
    await rig.call(
        "CollectionService/CreateCollection", pb.CreateCollectionRequest(name="texts", embedder="default")
    )
    for name, code in (
        ("texts", grpc.StatusCode.FAILED_PRECONDITION),
        ("missing", grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await export(rig, name=name)
        assert caught.value.code() is code
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await export(rig, name="texts", account=OTHER)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
