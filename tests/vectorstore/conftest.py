"""A vectorstore over real mutual TLS, with keyvault's twin behind it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2

from sealcomb.internal.v1.passage_service_pb2_grpc import PassageServiceStub
from sealcomb.v1.collection_service_pb2_grpc import CollectionServiceStub
from sealcomb.v1.vector_service_pb2_grpc import VectorServiceStub
from services.common.clock import SystemClock
from services.common.context import HEADER, CallContext, ContextSigner, ContextVerifier
from services.common.rpc.authorization import rules_for
from services.common.rpc.channel import open_channel
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.common.rpc.status import DETAILS_KEY
from services.vectorstore.config import EmbedderInfo
from services.vectorstore.main import register
from services.vectorstore.node import Limits, Node
from tests.certificates import TestCa
from tests.postgres import Postgres
from tests.vectorstore.fakes import ACCOUNT, FakeKeyvault, open_node
from tests.vectorstore.replicas import Replicas, running_replicas

EMBEDDER = EmbedderInfo("tiny-embedder", 8, "ab" * 32)


@dataclass
class Refusal:
    """A status as a caller reads it."""

    code: grpc.StatusCode
    reason: str
    message: str
    fields: list[str]
    quotas: list[str]


@dataclass
class Rig:
    """A served vectorstore."""

    folder: Path
    keyvault: FakeKeyvault
    node: Node
    server: InnerServer
    signer: ContextSigner
    edge: grpc.aio.Channel
    ingest: grpc.aio.Channel

    async def call(
        self, method: str, request: Any, account: str = ACCOUNT, collections: tuple[str, ...] = ()
    ) -> Any:
        """Calls a method as the edge, or as ingest, would for an account."""
        return await self.stream(method, request, account, collections)

    def stream(
        self, method: str, request: Any, account: str = ACCOUNT, collections: tuple[str, ...] = ()
    ) -> Any:
        """The same, as the call itself, which a stream is read from."""
        service, name = method.split("/")
        stub: Any
        if service == "PassageService":
            stub, origin = PassageServiceStub(self.ingest), "/sealcomb.v1.DocumentService/UploadDocument"
            if name in ("SearchPassages", "ResolveCollection"):
                origin = "/sealcomb.v1.SearchService/Search"
        else:
            origin = f"/sealcomb.v1.{service}/{name}"
            made = CollectionServiceStub if service == "CollectionService" else VectorServiceStub
            stub = made(self.edge)
        now = SystemClock().now_s()
        text = self.signer.sign(
            CallContext(
                "gateway",
                ("vectorstore",),
                account,
                "token",
                ("read", "write"),
                collections,
                origin,
                now,
                now + 30,
                "r",
            )
        )
        return getattr(stub, name)(request, metadata=((HEADER, text),), timeout=30)

    async def refused(self, method: str, request: Any, **who: Any) -> Refusal:
        """The refusal of a call."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request, **who)
        error = caught.value
        status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        quota = error_details_pb2.QuotaFailure()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
            detail.Unpack(quota)
        return Refusal(
            error.code(),
            info.reason,
            error.details() or "",
            [violation.field for violation in bad.field_violations],
            [violation.subject for violation in quota.violations],
        )


@pytest.fixture
def limits() -> Limits:
    """The default ones; a test module may have its own."""
    return Limits()


@pytest.fixture
async def rig(tmp_path: Path, limits: Limits) -> AsyncIterator[Rig]:
    """A served vectorstore with a small embedder."""
    ca, signing = TestCa.make(), Ed25519PrivateKey.generate()
    verifier = ContextVerifier("vectorstore", {"gateway": signing.public_key()}, SystemClock())
    guard = GuardInterceptor("vectorstore", rules_for("vectorstore"), verifier)
    server = InnerServer("127.0.0.1:0", ca.service_files(tmp_path, "vectorstore"), guard)
    keyvault = FakeKeyvault()
    node = open_node(tmp_path, keyvault, limits)
    register(server, node, EMBEDDER)
    await server.start()
    channels = [
        open_channel(f"127.0.0.1:{server.port}", "vectorstore", ca.service_files(tmp_path, peer))
        for peer in ("gateway", "ingest")
    ]
    yield Rig(tmp_path, keyvault, node, server, ContextSigner(signing), *channels)
    for channel in channels:
        await channel.close()
    await server.stop(0)
    await node.close()


@pytest.fixture
async def replicas(tmp_path: Path, postgres: Postgres) -> AsyncIterator[Replicas]:
    """A place for several vectorstores over one PostgreSQL database."""
    async with running_replicas(tmp_path, postgres.make_database(f"v{secrets.token_hex(6)}")) as replicas:
        yield replicas
