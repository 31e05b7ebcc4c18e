"""Several served vectorstores over one database and one keyvault's twin, each reaching the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealcomb.v1 import collection_service_pb2, vector_service_pb2
from sealcomb.v1.collection_service_pb2_grpc import CollectionServiceStub
from sealcomb.v1.vector_service_pb2_grpc import VectorServiceStub
from services.common.clock import SystemClock
from services.common.context import HEADER, CallContext, ContextSigner, ContextVerifier
from services.common.objects import open_store
from services.common.rpc.authorization import rules_for
from services.common.rpc.channel import open_channel
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.vectorstore.leases import SharedLeases
from services.vectorstore.main import hand_over, register
from services.vectorstore.node import Limits, Node
from services.vectorstore.servicers.forwarding import Forwarder
from tests.certificates import TestCa
from tests.vectorstore.fakes import ACCOUNT, FakeKeyvault


@dataclass
class Replica:
    """One served replica, and the edge's channel to it."""

    node: Node
    leases: SharedLeases
    server: InnerServer
    forwarder: Forwarder
    edge: grpc.aio.Channel
    signer: ContextSigner
    counted: list[str]

    async def call(self, method: str, request: Any, account: str = ACCOUNT) -> Any:
        """Calls a method as the edge would."""
        service, name = method.split("/")
        made: Any = CollectionServiceStub if service == "CollectionService" else VectorServiceStub
        metadata = ((HEADER, self.context(method, account)),)
        return await getattr(made(self.edge), name)(request, metadata=metadata, timeout=60)

    def context(self, method: str, account: str = ACCOUNT) -> str:
        """The signed context of a call."""
        now = SystemClock().now_s()
        who = (account, "token", ("read", "write"), (), f"/sealcomb.v1.{method}")
        return self.signer.sign(CallContext("gateway", ("vectorstore",), *who, now, now + 30, "r"))

    async def make(self, name: str) -> None:
        """Creates a collection of two dimensions."""
        request = collection_service_pb2.CreateCollectionRequest(name=name, dimension=2)
        await self.call("CollectionService/CreateCollection", request)

    async def upsert(self, name: str, *ids: str) -> int:
        """Writes points."""
        points = [vector_service_pb2.Point(id=id_, vector=[1, len(id_)]) for id_ in ids]
        request = vector_service_pb2.UpsertRequest(collection=name, points=points)
        return int((await self.call("VectorService/Upsert", request)).upserted)

    async def count(self, name: str) -> int:
        """Counts points."""
        request = vector_service_pb2.CountPointsRequest(collection=name)
        return int((await self.call("VectorService/CountPoints", request)).count)

    async def leave(self) -> None:
        """Stops as a process does that is told to."""
        await hand_over(self.node)
        await self.server.stop(5)
        await self.close()

    async def crash(self) -> None:
        """Ends without a word: what it holds stays its until its time is over."""
        self.leases._stopping.set()
        await self.server.stop(0)
        await self.edge.close()
        await self.forwarder.close()

    async def close(self) -> None:
        """Ends it."""
        await self.edge.close()
        await self.server.stop(0)
        await self.forwarder.close()
        await self.node.close()


@dataclass
class Replicas:
    """Where replicas are started."""

    folder: Path
    url: str
    keyvault: FakeKeyvault
    ca: TestCa
    signing: Ed25519PrivateKey
    limits: Limits
    started: list[Replica]
    # Whether they may call one another.
    allowed: bool = True

    async def start(self, **changes: Any) -> Replica:
        """One more replica."""
        clock = SystemClock()
        tls = self.ca.service_files(self.folder, "vectorstore")
        objects = open_store(f"file:{self.folder}/objects")
        limits = replace(self.limits, **changes)
        node = await asyncio.to_thread(Node, self.url, objects, self.keyvault, clock, limits)
        assert isinstance(node.leases, SharedLeases)
        verifier = ContextVerifier("vectorstore", {"gateway": self.signing.public_key()}, clock)
        guard = GuardInterceptor("vectorstore", rules_for("vectorstore", replicas=self.allowed), verifier)
        counted: list[str] = []
        guard.count_by(
            {"/sealcomb.v1.VectorService/Upsert": lambda account, _request, _answer: counted.append(account)}
        )
        forwarder = Forwarder(
            node.leases, node.catalog, lambda address: open_channel(address, "vectorstore", tls), clock
        )
        server = InnerServer("127.0.0.1:0", tls, guard, behind_guard=[forwarder])
        register(server, node, None, forwarder)
        await server.start()
        await node.leases.start(f"127.0.0.1:{server.port}")
        gateway = self.ca.service_files(self.folder, "gateway")
        edge = open_channel(f"127.0.0.1:{server.port}", "vectorstore", gateway)
        signer = ContextSigner(self.signing)
        replica = Replica(node, node.leases, server, forwarder, edge, signer, counted)
        self.started.append(replica)
        return replica


@asynccontextmanager
async def running_replicas(folder: Path, url: str, limits: Limits | None = None) -> AsyncIterator[Replicas]:
    """A place for replicas; those that are left are closed at its end."""
    ca, signing = TestCa.make(), Ed25519PrivateKey.generate()
    replicas = Replicas(folder, url, FakeKeyvault(), ca, signing, limits or Limits(), [])
    try:
        yield replicas
    finally:
        for replica in replicas.started:
            await replica.close()
