"""Streams whose token ends while they are open, over a real server (B6, B16); calls under way by account."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2

from sealcomb.v1 import document_service_pb2 as pb
from sealcomb.v1 import document_service_pb2_grpc as stubs
from services.common.clock import SystemClock
from services.common.context import HEADER, CallContext, ContextSigner, ContextVerifier
from services.common.errors import Unavailable
from services.common.rpc.authorization import rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.open_streams import BOUND_S, PERIOD_S, TOKENS_MAX, OpenStreams
from services.common.rpc.server import InnerServer
from services.common.rpc.status import DETAILS_KEY
from services.common.tls import host_of
from tests.certificates import TestCa, spiffe

_SERVICE = "/sealcomb.v1.DocumentService/"


class _Clock(SystemClock):
    def __init__(self) -> None:
        self.later_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.later_s


@dataclass
class _Gateway:
    """What the gateway knows of tokens."""

    ended: set[str] = field(default_factory=set)
    down: bool = False
    asked: list[list[str]] = field(default_factory=list)

    async def ended_tokens(self, tokens: Collection[str]) -> Collection[str]:
        self.asked.append(list(tokens))
        if self.down:
            raise Unavailable("the gateway is down")
        return self.ended & set(tokens)


class _Documents(stubs.DocumentServiceServicer):
    """Streams that go on until somebody ends them."""

    def __init__(self) -> None:
        self.open = 0

    async def DownloadDocument(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        self.open += 1
        try:
            yield pb.DownloadDocumentResponse()
            await asyncio.Event().wait()
        finally:
            self.open -= 1

    async def UploadDocument(self, requests: Any, _context: Any) -> Any:
        self.open += 1
        try:
            async for _ in requests:
                pass
        finally:
            self.open -= 1
        return pb.UploadDocumentResponse()

    async def GetDocument(self, _request: Any, _context: Any) -> Any:
        self.open += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.open -= 1


@dataclass
class _Rig:
    stub: Any
    signer: ContextSigner
    documents: _Documents
    gateway: _Gateway
    streams: OpenStreams
    clock: _Clock

    def metadata(self, method: str, token: str = "token", **changes: Any) -> tuple[tuple[str, str], ...]:
        now = SystemClock().now_s()
        context = CallContext(
            "gateway", ("ingest",), changes.pop("account", "acct"), token, ("read",), (), _SERVICE + method,
            now, now + 30, "r", **changes,
        )  # fmt: skip
        return ((HEADER, self.signer.sign(context)),)

    async def download(self, token: str = "token", **changes: Any) -> Any:
        call = self.stub.DownloadDocument(
            pb.DownloadDocumentRequest(), metadata=self.metadata("DownloadDocument", token, **changes)
        )
        await asyncio.wait_for(call.read(), 10)
        return call

    async def until(self, open_calls: int) -> None:
        for _ in range(500):
            if self.documents.open == open_calls:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.documents.open} calls are open, not {open_calls}")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[_Rig]:
    ca, signing = TestCa.make(), Ed25519PrivateKey.generate()
    verifier = ContextVerifier("ingest", {"gateway": signing.public_key()}, SystemClock())
    guard = GuardInterceptor("ingest", rules_for("ingest"), verifier)
    clock, gateway, documents = _Clock(), _Gateway(), _Documents()  # type: ignore[abstract]
    streams = OpenStreams(clock, gateway.ended_tokens)
    guard.watch_streams(streams)
    server = InnerServer("127.0.0.1:0", ca.service_files(tmp_path, "ingest"), guard)
    stubs.add_DocumentServiceServicer_to_server(documents, server.grpc_server)
    await server.start()
    material = ca.issue([spiffe("gateway")])
    credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
    options = [
        ("grpc.ssl_target_name_override", host_of("ingest")),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, options=options) as channel:
        yield _Rig(
            stubs.DocumentServiceStub(channel), ContextSigner(signing), documents, gateway, streams, clock
        )
    await server.stop(0)


async def _end_of(call: Any) -> tuple[grpc.StatusCode, str]:
    try:
        while await asyncio.wait_for(call.read(), 10) is not grpc.aio.EOF:
            pass
        return await call.code(), ""
    except grpc.aio.AioRpcError as error:
        return error.code(), _reason(error)


def _reason(error: grpc.aio.AioRpcError) -> str:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def test_an_open_download_ends_when_its_token_is_revoked(rig: _Rig) -> None:
    """B6: told by the gateway at the next look; the other token's stream goes on."""
    revoked, other = await rig.download("revoked"), await rig.download("other")
    rig.gateway.ended.add("revoked")
    await rig.streams.look()
    assert await _end_of(revoked) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_ENDED")
    await rig.until(1)
    assert not other.done()
    other.cancel()
    await rig.until(0)


async def test_without_the_look_the_stream_would_go_on(rig: _Rig) -> None:
    """The twin of the test above."""
    revoked = await rig.download("revoked")
    rig.gateway.ended.add("revoked")
    await asyncio.sleep(0.3)
    assert not revoked.done()
    assert rig.documents.open == 1
    revoked.cancel()
    await rig.until(0)


async def test_an_open_upload_ends_too(rig: _Rig) -> None:
    """B6, B16: a suspended account's token is among the ended ones."""
    upload = rig.stub.UploadDocument(metadata=rig.metadata("UploadDocument"))
    await upload.write(pb.UploadDocumentRequest())
    await rig.until(1)
    rig.gateway.ended.add("token")
    await rig.streams.look()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(upload, 10)
    assert (refused.value.code(), _reason(refused.value)) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "TOKEN_ENDED",
    )
    await rig.until(0)


async def test_streams_end_within_a_minute_while_nobody_can_be_asked(rig: _Rig) -> None:
    """B6: fails closed, though not at once."""
    download = await rig.download()
    rig.gateway.down = True
    rig.clock.later_s = BOUND_S - 5
    await rig.streams.look()
    assert rig.documents.open == 1
    rig.clock.later_s = BOUND_S + 1
    await rig.streams.look()
    assert await _end_of(download) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_ENDED")
    assert BOUND_S + PERIOD_S < 60


async def test_a_stream_that_is_found_good_goes_on_for_as_long_as_it_is(rig: _Rig) -> None:
    download = await rig.download()
    for minute in range(5):
        rig.clock.later_s = minute * (BOUND_S - 1)
        await rig.streams.look()
    assert rig.documents.open == 1
    assert rig.gateway.asked == [["token"]] * 5
    download.cancel()
    await rig.until(0)


async def test_without_a_gateway_no_stream_outlasts_the_bound(rig: _Rig) -> None:
    rig.streams._ended_tokens = None
    download = await rig.download()
    rig.clock.later_s = BOUND_S + 1
    await rig.streams.look()
    assert (await _end_of(download))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_more_tokens_than_one_question_holds_are_asked_in_turn() -> None:
    gateway, clock = _Gateway(), _Clock()
    streams = OpenStreams(clock, gateway.ended_tokens)
    context = CallContext("gateway", (), "a", "", (), (), "", 0, 1, "")

    async def hold(token: str) -> None:
        with streams.watched(CallContext(**{**_fields(context), "token_id": token})):
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(hold(f"t{number}")) for number in range(TOKENS_MAX + 5)]
    await asyncio.sleep(0)
    for _ in range(2):
        await streams.look()
        clock.later_s += 1
    assert len(gateway.asked[0]) == TOKENS_MAX
    assert set(gateway.asked[0]) | set(gateway.asked[1]) == {f"t{n}" for n in range(TOKENS_MAX + 5)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _fields(context: CallContext) -> dict[str, Any]:
    return {name: getattr(context, name) for name in CallContext.__slots__}


async def test_an_account_has_only_so_many_calls_under_way_and_others_are_not_touched(rig: _Rig) -> None:
    """B11: of streams and single calls together, in this server."""
    held = [await rig.download(calls_in_flight=3) for _ in range(2)]
    unary = rig.stub.GetDocument(
        pb.GetDocumentRequest(), metadata=rig.metadata("GetDocument", calls_in_flight=3)
    )
    await rig.until(3)
    refused = rig.stub.GetDocument(
        pb.GetDocumentRequest(), metadata=rig.metadata("GetDocument", calls_in_flight=3)
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asyncio.wait_for(refused, 10)
    assert (error.value.code(), _reason(error.value)) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_IN_FLIGHT",
    )
    other = await rig.download(account="other", calls_in_flight=3)
    held[0].cancel()
    unary.cancel()
    await rig.until(2)
    again = await rig.download(calls_in_flight=3)
    for call in (held[1], other, again):
        call.cancel()
    await rig.until(0)


async def test_without_a_bound_any_number_would_be_under_way(rig: _Rig) -> None:
    """The twin of the test above."""
    calls = [await rig.download() for _ in range(10)]
    assert rig.documents.open == 10
    for call in calls:
        call.cancel()
    await rig.until(0)
