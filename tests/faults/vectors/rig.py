"""A vectorstore process that can be killed and begun again, with keyvault's twin in this one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealcomb.internal.v1 import keyvault_service_pb2 as keys
from sealcomb.internal.v1.keyvault_service_pb2_grpc import (
    KeyReleaseServiceServicer,
    add_KeyReleaseServiceServicer_to_server,
)
from sealcomb.v1 import collection_service_pb2 as collections
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

ROOT = Path(__file__).resolve().parents[3]
_WITHIN_S = 60.0
_CALL_S = 30.0


class _Releases(KeyReleaseServiceServicer):
    """Keyvault's twin on a port of its own."""

    def __init__(self, vault: FakeKeyvault) -> None:
        self.vault = vault
        self._watchers: list[asyncio.Queue[str]] = []

    async def GetDataKey(self, request: Any, _context: Any) -> Any:
        key = await self.vault.get_data_key(request.resource, request.purpose, request.key_id)
        return keys.GetDataKeyResponse(key_id=key.id, secret=key.secret)

    async def DestroyResource(self, request: Any, _context: Any) -> Any:
        receipt = await self.vault.destroy_collection(request.resource)
        for watcher in self._watchers:
            watcher.put_nowait(request.resource)
        return keys.DestroyResourceResponse(receipt=receipt)

    async def ListDestroyed(self, request: Any, _context: Any) -> Any:
        listed = [
            keys.Destroyed(place=place, account=account, resource=resource)
            for place, (account, resource) in enumerate(sorted(self.vault.destroyed), 1)
        ]
        return keys.ListDestroyedResponse(destroyed=listed[request.removed_up_to :])

    async def WatchKeyEvents(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        destroyed: asyncio.Queue[str] = asyncio.Queue()
        self._watchers.append(destroyed)
        try:
            while True:
                yield keys.WatchKeyEventsResponse(event=keys.KEY_EVENT_HEARTBEAT)
                with suppress(TimeoutError):
                    resource = await asyncio.wait_for(destroyed.get(), 1)
                    yield keys.WatchKeyEventsResponse(
                        event=keys.KEY_EVENT_RESOURCE_DESTROYED, account=ACCOUNT, resource=resource
                    )
        finally:
            self._watchers.remove(destroyed)


class Rig:
    """Lives of one vectorstore over one folder of data, which can be put aside and taken back."""

    def __init__(
        self,
        folder: Path,
        vault: FakeKeyvault,
        keyvault_port: int,
        signer: ContextSigner,
        tls: TlsFiles,
    ) -> None:
        self._vault = vault
        self._destroyed: dict[str, set[tuple[str, str]]] = {}
        self.folder = folder
        self.data = folder / "data"
        self.errors = folder / "stderr.txt"
        self.settings: dict[str, Any] = {}
        self.pid = 0
        # Answers before its commit, as it must not.
        self.hasty = False
        self.metrics_port = 0
        self._keyvault_port = keyvault_port
        self._signer = signer
        self._tls = tls
        self._zygote: asyncio.subprocess.Process | None = None
        self._channel: grpc.aio.Channel | None = None
        self._port = 0
        self._ended = True

    async def open(self) -> None:
        """Begins the process that lives are forked from."""
        with self.errors.open("ab") as errors:
            self._zygote = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.faults.vectors.life"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join((".", "protos", "client"))},
            )

    async def close(self) -> None:
        """Ends everything."""
        await self.kill()
        if self._zygote is not None and self._zygote.stdin is not None:
            self._zygote.stdin.close()
            await asyncio.wait_for(self._zygote.wait(), _WITHIN_S)

    async def conceive(self) -> int:
        """Forks a life that does nothing until `go`; returns its process id."""
        self._port, self.metrics_port = free_ports(2)
        settings: dict[str, Any] = {
            "hasty": self.hasty,
            "listen": f"127.0.0.1:{self._port}",
            "tls_dir": str(self.folder / "vectorstore"),
            "context_trust_dir": str(self.folder / "trust"),
            "database_url": f"sqlite:///{self.data}/vectorstore.db",
            "objects_url": f"file:{self.data}/objects",
            "keyvault_address": f"127.0.0.1:{self._keyvault_port}",
            "metrics_port": self.metrics_port,
            **self.settings,
        }
        await self._tell(json.dumps(settings))
        self.pid = int((await self._hear("born")).split()[1])
        self._ended = False
        return self.pid

    async def go(self) -> bool:
        """Lets the life serve; False if it ended before it did."""
        await self._tell("go")
        self._channel = open_channel(f"127.0.0.1:{self._port}", "vectorstore", self._tls)
        async with asyncio.timeout(_WITHIN_S):
            while self.alive:
                with suppress(OSError):
                    _reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        return self.alive

    async def begin(self) -> None:
        """A life that serves."""
        await self.conceive()
        if not await self.go():
            raise AssertionError(f"it did not start: {self.errors.read_text()[-3000:]}")

    @property
    def alive(self) -> bool:
        """Whether the life goes on; one that was killed and waits to be collected does not."""
        if self._ended:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in ("Z", "X")

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Ends the life, if it has not ended yet; returns its wait status."""
        if self._ended:
            return 0
        self.strike(number)
        return await self.ended()

    def strike(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends the life a signal and waits for nothing: calls to it may be on their way."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def ended(self) -> int:
        """Waits for the end of the life; returns its wait status."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        status = int((await self._hear("ended")).split()[1])
        self._ended = True
        return status

    async def threads(self) -> dict[str, int]:
        """The ids of the life's threads by name."""
        await self._tell("threads")
        found: dict[str, int] = json.loads(await self._hear("{"))
        return found

    def put_aside(self, name: str) -> None:
        """Keeps a copy of the data under a name; nothing may live."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.data, self.folder / name)
        self._destroyed[name] = set(self._vault.destroyed)

    def take_back(self, name: str) -> None:
        """Makes the data what was put aside; keys that were destroyed since are there again."""
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.copytree(self.folder / name, self.data)
        self._vault.destroyed = set(self._destroyed[name])

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.metrics_port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await asyncio.wait_for(reader.read(), _WITHIN_S)).decode()
        writer.close()
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    async def health(self, part: str) -> bool:
        """Whether the health service says that a part serves."""
        assert self._channel is not None
        request = health_pb2.HealthCheckRequest(service=part)
        answer = await health_pb2_grpc.HealthStub(self._channel).Check(request, timeout=_CALL_S)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def call(self, method: str, request: Any, timeout_s: float = _CALL_S) -> Any:
        """Calls as the edge would, for the one account."""
        assert self._channel is not None
        service, name = method.split("/")
        stub: Any = (CollectionServiceStub if service == "CollectionService" else VectorServiceStub)(
            self._channel
        )
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
            now + 60,
            "r",
        )
        metadata = ((HEADER, self._signer.sign(context)),)
        return await getattr(stub, name)(request, metadata=metadata, timeout=timeout_s)

    async def shortened(self, name: str, records: int) -> bool:
        """Whether a snapshot has taken the place of some of the collection's records."""
        request = collections.GetCollectionStatsRequest(collection=name)
        stats = await self.call("CollectionService/GetCollectionStats", request)
        snapshots = [path for path in (self.data / "objects").rglob("*") if path.is_file()]
        return bool(snapshots) and int(stats.log_records) < records

    async def _tell(self, line: str) -> None:
        assert self._zygote is not None
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(line.encode() + b"\n")
        await self._zygote.stdin.drain()

    async def _hear(self, start: str) -> str:
        assert self._zygote is not None
        assert self._zygote.stdout is not None
        line = (await asyncio.wait_for(self._zygote.stdout.readline(), _WITHIN_S)).decode()
        assert line.startswith(start), f"heard {line!r}: {self.errors.read_text()[-3000:]}"
        return line


@asynccontextmanager
async def running_rig(folder: Path) -> AsyncIterator[Rig]:
    """A rig whose data is below a folder; nothing lives yet."""
    ca, signing = TestCa.make(), Ed25519PrivateKey.generate()
    for name in ("trust", "data"):
        (folder / name).mkdir(parents=True)
    public = signing.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for issuer in ("gateway", "keyvault"):
        (folder / "trust" / f"{issuer}.pub.pem").write_bytes(public)
    ca.service_files(folder, "vectorstore")
    verifier = ContextVerifier("keyvault", {"gateway": signing.public_key()}, SystemClock())
    guard = GuardInterceptor("keyvault", rules_for("keyvault"), verifier)
    vault = FakeKeyvault()
    keyvault = InnerServer("127.0.0.1:0", ca.service_files(folder, "keyvault"), guard)
    add_KeyReleaseServiceServicer_to_server(_Releases(vault), keyvault.grpc_server)  # type: ignore[abstract]
    await keyvault.start()
    rig = Rig(folder, vault, keyvault.port, ContextSigner(signing), ca.service_files(folder, "gateway"))
    await rig.open()
    try:
        yield rig
    finally:
        await rig.close()
        await keyvault.stop(0)
