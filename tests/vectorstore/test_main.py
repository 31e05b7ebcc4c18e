"""The process itself: it serves, stops cleanly, and loses nothing that it acknowledged to kill -9."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealcomb.internal.v1 import keyvault_service_pb2 as keys
from sealcomb.internal.v1.keyvault_service_pb2_grpc import (
    KeyReleaseServiceServicer,
    add_KeyReleaseServiceServicer_to_server,
)
from sealcomb.v1 import collection_service_pb2 as collections
from sealcomb.v1 import vector_service_pb2 as vectors
from sealcomb.v1.collection_service_pb2_grpc import CollectionServiceStub
from sealcomb.v1.vector_service_pb2_grpc import VectorServiceStub
from services.common.clock import SystemClock
from services.common.context import HEADER, CallContext, ContextSigner, ContextVerifier
from services.common.rpc.authorization import rules_for
from services.common.rpc.channel import open_channel
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.common.tls import TlsFiles
from services.standalone.ports import free_ports
from tests.certificates import TestCa
from tests.vectorstore.fakes import ACCOUNT, FakeKeyvault

DIMENSION = 16
CANARY = "canary-of-a-point-4f9d"


class _Releases(KeyReleaseServiceServicer):
    """Keyvault's twin on a port of its own."""

    def __init__(self) -> None:
        self.vault = FakeKeyvault()

    async def GetDataKey(self, request: Any, _context: Any) -> Any:
        key = await self.vault.get_data_key(request.resource, request.purpose, request.key_id)
        return keys.GetDataKeyResponse(key_id=key.id, secret=key.secret)

    async def WatchKeyEvents(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        while True:
            yield keys.WatchKeyEventsResponse(event=keys.KEY_EVENT_HEARTBEAT)
            await asyncio.sleep(1)


@dataclass
class Installation:
    """A vectorstore process that can be killed and started again."""

    folder: Path
    port: int
    keyvault_port: int
    signer: ContextSigner
    tls: TlsFiles
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the process and waits until it answers."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[2] / part) for part in (".", "protos")),
            "SEALCOMB_LISTEN": f"127.0.0.1:{self.port}",
            "SEALCOMB_TLS_DIR": str(self.folder / "vectorstore"),
            "SEALCOMB_CONTEXT_TRUST_DIR": str(self.folder / "trust"),
            "SEALCOMB_DATABASE_URL": f"sqlite:///{self.folder}/data/vectorstore.db",
            "SEALCOMB_OBJECTS_URL": f"file:{self.folder}/data/objects",
            "SEALCOMB_KEYVAULT_ADDRESS": f"127.0.0.1:{self.keyvault_port}",
            # Snapshots all the time, so that kills meet them.
            "SEALCOMB_SNAPSHOT_LOG_BYTES": "20000",
        }
        with (self.folder / "data" / "vectorstore.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.vectorstore.main", env=environment, stderr=log
            )
        async with (
            asyncio.timeout(30),
            open_channel(f"127.0.0.1:{self.port}", "vectorstore", self.tls) as channel,
        ):
            await channel.channel_ready()

    async def stop(self, number: signal.Signals) -> int:
        """Sends a signal and waits for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)

    async def call(self, channel: grpc.aio.Channel, method: str, request: Any) -> Any:
        """Calls as the edge would."""
        service, name = method.split("/")
        stub: Any = (CollectionServiceStub if service == "CollectionService" else VectorServiceStub)(channel)
        now = SystemClock().now_s()
        context = CallContext(
            "gateway",
            ("vectorstore", "keyvault"),
            ACCOUNT,
            "token",
            ("read", "write"),
            (),
            f"/sealcomb.v1.{method}",
            now,
            now + 30,
            "r",
        )
        metadata = ((HEADER, self.signer.sign(context)),)
        return await getattr(stub, name)(request, metadata=metadata, timeout=20)


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    """A started process with keyvault's twin behind it."""
    ca, signing = TestCa.make(), Ed25519PrivateKey.generate()
    for folder in ("trust", "data"):
        (tmp_path / folder).mkdir()
    public = signing.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for issuer in ("gateway", "keyvault"):
        (tmp_path / "trust" / f"{issuer}.pub.pem").write_bytes(public)
    ca.service_files(tmp_path, "vectorstore")
    verifier = ContextVerifier("keyvault", {"gateway": signing.public_key()}, SystemClock())
    guard = GuardInterceptor("keyvault", rules_for("keyvault"), verifier)
    keyvault = InnerServer("127.0.0.1:0", ca.service_files(tmp_path, "keyvault"), guard)
    add_KeyReleaseServiceServicer_to_server(_Releases(), keyvault.grpc_server)  # type: ignore[abstract]
    await keyvault.start()
    tls = ca.service_files(tmp_path, "gateway")
    (port,) = free_ports(1)
    made = Installation(tmp_path, port, keyvault.port, ContextSigner(signing), tls)
    await made.start()
    yield made
    assert made.process is not None
    if made.process.returncode is None:
        await made.stop(signal.SIGKILL)
    await keyvault.stop(0)


def _point(number: int) -> vectors.Point:
    numbers = [float(number), *([1.0] * (DIMENSION - 1))]
    point = vectors.Point(id=f"p{number}", vector=numbers, text=f"{CANARY} {number}")
    point.metadata.update({"number": number})
    return point


async def _write(installation: Installation, channel: grpc.aio.Channel, first: int, acked: set[int]) -> None:
    """Writes pairs of points until the process dies; notes what was acknowledged."""
    number = first
    while True:
        pair = [_point(number), _point(number + 1)]
        try:
            await installation.call(
                channel, "VectorService/Upsert", vectors.UpsertRequest(collection="things", points=pair)
            )
        except grpc.aio.AioRpcError:
            return
        acked |= {number, number + 1}
        number += 2


async def test_kill_9_at_any_moment_loses_nothing_acknowledged_and_leaves_nothing_half(
    installation: Installation,
) -> None:
    acked: set[int] = set()
    address = f"127.0.0.1:{installation.port}"
    async with open_channel(address, "vectorstore", installation.tls) as channel:
        request = collections.CreateCollectionRequest(
            name="things", dimension=DIMENSION, metric=collections.METRIC_L2
        )
        await installation.call(channel, "CollectionService/CreateCollection", request)
    for round_ in range(6):
        async with open_channel(address, "vectorstore", installation.tls) as channel:
            writers = [
                asyncio.create_task(_write(installation, channel, (round_ * 4 + writer) * 100_000, acked))
                for writer in range(4)
            ]
            await asyncio.sleep(0.05 + 0.07 * round_)
            assert await installation.stop(signal.SIGKILL) == -signal.SIGKILL
            await asyncio.gather(*writers)
        await installation.start()
        await _check(installation, acked)
    assert len(acked) > 50
    assert await installation.stop(signal.SIGTERM) == 0
    _check_disk(installation.folder / "data")


async def _check(installation: Installation, acked: set[int]) -> None:
    there: set[int] = set()
    async with open_channel(f"127.0.0.1:{installation.port}", "vectorstore", installation.tls) as channel:
        request = vectors.ListPointsRequest(collection="things", page_size=1000)
        while True:
            page = await installation.call(channel, "VectorService/ListPoints", request)
            there |= {int(point.id[1:]) for point in page.points}
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert acked <= there
        # Each call wrote a pair, all or none.
        assert {number ^ 1 for number in there} == there
        for number in list(acked)[:5]:
            query = vectors.QueryRequest(collection="things", vector=_point(number).vector, top_k=1)
            (hit,) = (await installation.call(channel, "VectorService/Query", query)).hits
            assert hit.id == f"p{number}"


def _check_disk(data: Path) -> None:
    """F6, F10: neither text nor vector bytes are in any file, in the usual encodings."""
    vector = struct.pack(f"<{DIMENSION}f", 2.0, *([1.0] * (DIMENSION - 1)))
    needles = [form for secret in (CANARY.encode(), vector) for form in _forms(secret)]
    files = [path for path in data.rglob("*") if path.is_file()]
    assert any("snap-" in path.name for path in files)
    for path in files:
        content = path.read_bytes()
        assert not [needle for needle in needles if needle in content], path.name
    # The scanner finds what is there.
    (data / "planted").write_bytes(b"x" + base64.b64encode(b"ab" + CANARY.encode()))
    assert any(needle in (data / "planted").read_bytes() for needle in needles)


def _forms(secret: bytes) -> list[bytes]:
    aligned = [base64.b64encode(b"a" * shift + secret)[4 if shift else 0 : -4] for shift in range(3)]
    return [secret, secret.hex().encode(), *aligned]


async def test_missing_settings_are_named_and_nothing_listens() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.vectorstore.main",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([".", "protos"])},
        stderr=asyncio.subprocess.PIPE,
    )
    _out, error = await process.communicate()
    assert process.returncode == 1
    assert b"SEALCOMB_KEYVAULT_ADDRESS" in error
