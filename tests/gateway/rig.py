"""A whole edge for tests: the real policy process and the real Envoy, before services that echo.

The services run in a thread of the test process behind the real guard, and keep what reached
them. Keyvault's key release is an in-memory twin; everything else answers with an empty message.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealcomb.internal.v1 import keyvault_service_pb2 as kv
from sealcomb.internal.v1 import keyvault_service_pb2_grpc as kv_stubs
from sealcomb.v1 import account_service_pb2 as accounts_pb
from sealcomb.v1 import account_service_pb2_grpc as accounts_stubs
from sealcomb.v1 import token_service_pb2 as tokens_pb
from sealcomb.v1 import token_service_pb2_grpc as tokens_stubs
from services.common import ids
from services.common.clock import SystemClock
from services.common.context import ContextVerifier, current_account, current_caller
from services.common.errors import KeyDisabled
from services.common.methods import INGEST, KEYVAULT, PUBLIC_METHODS, VECTORSTORE
from services.common.rpc.authorization import rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.common.tls import TlsFiles
from services.standalone.pki import Installation, ensure_installation
from services.standalone.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
HOLD = b"\x0a\x04hold"
# Fails, if told to, only after its first message.
LATE = b"\x0a\x04late"
PAUSE = b"\x0a\x05pause"


@dataclass
class Seen:
    """One call that reached a service."""

    service: str
    path: str
    metadata: list[tuple[str, str | bytes]]
    account: str
    body: bytes


class Echo(grpc.GenericRpcHandler):
    """Answers every public method of one service and keeps what it got; calls with HOLD or PAUSE wait."""

    def __init__(self, service: str, backends: Backends) -> None:
        self._service = service
        self._backends = backends

    def service(self, details: Any) -> Any:
        path = details.method
        if path not in PUBLIC_METHODS:
            return None

        async def behaviour(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            body = b""
            async for request in requests:
                body += request
            caller = current_caller().context
            metadata = list(context.invocation_metadata())
            self._backends.seen.append(Seen(self._service, path, metadata, caller.account, body))
            if HOLD in body:
                self._backends.held += 1
                try:
                    await asyncio.sleep(60)
                finally:
                    self._backends.held -= 1
            if PAUSE in body:
                self._backends.held += 1
                await asyncio.to_thread(self._backends.gate.wait, 60)
                self._backends.held -= 1
            if LATE in body:
                yield b""
            await self._backends.fail_if_told(context)
            yield b""

        return grpc.stream_stream_rpc_method_handler(behaviour)


class Keyvault(kv_stubs.KeyReleaseServiceServicer):
    """Key release in memory."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str, str], kv.GetDataKeyResponse] = {}
        self.provisioned: set[str] = set()
        self.destroyed: set[str] = set()
        self.suspended: set[str] = set()
        self.disabled: set[str] = set()
        self.events: list[tuple[str, str, str, str]] = []
        self.down = False
        self.watchers: list[asyncio.Queue[kv.WatchKeyEventsResponse]] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    async def GetDataKey(self, request: kv.GetDataKeyRequest, context: Any) -> kv.GetDataKeyResponse:
        account = current_account()
        await self._fail_if_down(context)
        if account in self.disabled:
            raise KeyDisabled
        slot = (account, request.resource, request.purpose)
        if slot not in self.keys:
            self.keys[slot] = kv.GetDataKeyResponse(key_id=ids.new_id(), secret=secrets.token_bytes(32))
        return self.keys[slot]

    async def ProvisionAccount(self, request: Any, context: Any) -> kv.ProvisionAccountResponse:
        await self._fail_if_down(context)
        self.provisioned.add(current_account())
        return kv.ProvisionAccountResponse()

    async def SetAccountSuspended(self, request: Any, context: Any) -> kv.SetAccountSuspendedResponse:
        await self._fail_if_down(context)
        (self.suspended.add if request.suspended else self.suspended.discard)(current_account())
        return kv.SetAccountSuspendedResponse()

    async def DestroyAccount(self, request: Any, context: Any) -> kv.DestroyAccountResponse:
        await self._fail_if_down(context)
        self.destroyed.add(current_account())
        return kv.DestroyAccountResponse()

    async def DestroyResource(self, request: Any, context: Any) -> kv.DestroyResourceResponse:
        raise NotImplementedError

    async def ReportDataKeys(self, request: Any, context: Any) -> kv.ReportDataKeysResponse:
        raise NotImplementedError

    async def ListReseals(self, request: Any, context: Any) -> kv.ListResealsResponse:
        raise NotImplementedError

    async def ListDestroyed(self, request: Any, context: Any) -> kv.ListDestroyedResponse:
        raise NotImplementedError

    async def IssuePermit(self, request: Any, context: Any) -> kv.IssuePermitResponse:
        raise NotImplementedError

    async def RenewPermit(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def EndPermit(self, request: Any, context: Any) -> kv.EndPermitResponse:
        raise NotImplementedError

    async def RecordEvent(self, request: kv.RecordEventRequest, context: Any) -> kv.RecordEventResponse:
        await self._fail_if_down(context)
        caller = current_caller().context
        self.events.append((caller.account, request.action, request.resource, caller.token_id))
        return kv.RecordEventResponse()

    async def WatchKeyEvents(self, request: Any, context: Any) -> AsyncIterator[kv.WatchKeyEventsResponse]:
        queue: asyncio.Queue[kv.WatchKeyEventsResponse] = asyncio.Queue()
        self.watchers.append(queue)
        try:
            yield kv.WatchKeyEventsResponse(event=kv.KEY_EVENT_HEARTBEAT)
            while True:
                try:
                    yield await asyncio.wait_for(queue.get(), 1.0)
                except TimeoutError:
                    yield kv.WatchKeyEventsResponse(event=kv.KEY_EVENT_HEARTBEAT)
        finally:
            self.watchers.remove(queue)

    def disable(self, account: str) -> None:
        """Turns an account's key off and says so to the watchers."""
        self.disabled.add(account)
        event = kv.WatchKeyEventsResponse(event=kv.KEY_EVENT_DISABLED, account=account)
        assert self.loop is not None
        for queue in self.watchers:
            self.loop.call_soon_threadsafe(queue.put_nowait, event)

    async def _fail_if_down(self, context: Any) -> None:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection refused to 10.0.0.7:5432")


class Backends:
    """Keyvault, vectorstore and ingest in one thread."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self.seen: list[Seen] = []
        self.held = 0
        # What calls with PAUSE wait for.
        self.gate = threading.Event()
        self.failure: Callable[[], Exception] | None = None
        self.keyvault = Keyvault()
        self.addresses: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._servers: dict[str, InnerServer] = {}
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Starts the three and waits until they listen."""
        self._thread.start()
        assert self._started.wait(20)

    def stop(self) -> None:
        """Stops them."""
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def set_ready(self, service: str, ready: bool) -> None:
        """Changes what a service's health says."""
        work = self._servers[service].set_ready(ready)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def fail_if_told(self, context: Any) -> None:
        """Raises what a test put into `failure`."""
        if self.failure is not None:
            raise self.failure()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self.keyvault.loop = self._loop
        clock = SystemClock()
        for service in (KEYVAULT, VECTORSTORE, INGEST):
            verifier = ContextVerifier.from_folder(service, self._installation.context_trust_dir, clock)
            guard = GuardInterceptor(service, rules_for(service), verifier)
            server = InnerServer("127.0.0.1:0", _tls(self._installation, service), guard)
            server.grpc_server.add_generic_rpc_handlers((Echo(service, self),))
            if service == KEYVAULT:
                kv_stubs.add_KeyReleaseServiceServicer_to_server(self.keyvault, server.grpc_server)
            await server.start()
            await server.set_ready(True)
            self._servers[service] = server
            self.addresses[service] = f"127.0.0.1:{server.port}"
        self._started.set()
        await self._stop.wait()
        for server in self._servers.values():
            await server.stop(0.1)


@dataclass
class Edge:
    """A running gateway process with its Envoy."""

    folder: Path
    installation: Installation
    backends: Backends
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    # Of the second door.
    http_port: int = field(default_factory=lambda: free_port())

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def operator_token(self) -> str:
        """The operator's token, from the file that the first start writes."""
        return (self.folder / "operator.token").read_text().strip()

    def environment(self) -> dict[str, str]:
        """What the gateway process reads."""
        own = self.installation
        return {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": ":".join(str(ROOT / part) for part in ("", "protos", "client")),
            "SEALCOMB_LISTEN": "127.0.0.1:0",
            "SEALCOMB_TLS_DIR": str(own.tls_dir("gateway")),
            "SEALCOMB_CONTEXT_TRUST_DIR": str(own.context_trust_dir),
            "SEALCOMB_DATABASE_URL": f"sqlite:///{self.folder}/gateway.db",
            "SEALCOMB_EDGE_LISTEN": f"127.0.0.1:{self.port}",
            "SEALCOMB_EDGE_HTTP_LISTEN": f"127.0.0.1:{self.http_port}",
            "SEALCOMB_EDGE_TLS_DIR": str(own.edge_tls_dir),
            "SEALCOMB_RUN_DIR": str(self.run_dir),
            "SEALCOMB_KEYVAULT_ADDRESS": self.backends.addresses[KEYVAULT],
            "SEALCOMB_VECTORSTORE_ADDRESS": self.backends.addresses[VECTORSTORE],
            "SEALCOMB_INGEST_ADDRESS": self.backends.addresses[INGEST],
            "SEALCOMB_CONTEXT_KEY_FILE": str(own.context_key_file("gateway")),
            "SEALCOMB_TOKEN_PEPPER_FILE": str(own.token_pepper_file),
            "SEALCOMB_OPERATOR_TOKEN_FILE": str(self.folder / "operator.token"),
            "SEALCOMB_CALLS_PER_SECOND": "5000",
            "SEALCOMB_BURST": "10000",
            "SEALCOMB_ADDRESS_CALLS_PER_SECOND": "100000",
            "SEALCOMB_ADDRESS_BURST": "100000",
            "SEALCOMB_FAILURES_PER_SECOND": "5000",
            "SEALCOMB_FAILURE_BURST": "10000",
            "SEALCOMB_ENVOY_CONCURRENCY": "1",
            "SEALCOMB_DRAIN_S": "1",
            **self.settings,
        }

    def start(self, *, waits: bool = True) -> None:
        """Starts the process and waits until the edge says SERVING, which not every edge says to anybody."""
        log = (self.folder / "gateway.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.gateway.main"],
            env=self.environment(),
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )
        log.close()
        if waits:
            self.wait_serving()

    def wait_serving(self, timeout_s: float = 60.0) -> None:
        """Waits until the edge says SERVING."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is None or self.process.poll() is None, self.log()
            if self.health() == "SERVING":
                return
            time.sleep(0.05)
        raise AssertionError(f"the edge did not get ready: {self.log()}")

    def health(self) -> str:
        """What the edge's health says, or how it failed."""
        with self.channel() as channel:
            try:
                response = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=2
                )
            except grpc.RpcError as error:
                return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the process; returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(90)

    def log(self) -> str:
        """What the process and Envoy wrote."""
        return (self.folder / "gateway.log").read_text()

    def envoy_pids(self) -> list[int]:
        """The Envoys that run this edge's configuration."""
        wanted = str(self.run_dir / "envoy.json").encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if wanted in command and b"--disable-hot-restart" in command and b"-I" not in command:
                    found.append(int(entry.name))
        return found

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A client's channel to the edge, of its own connection."""
        credentials = grpc.ssl_channel_credentials(self.installation.edge_ca_file.read_bytes())
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        channel = grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options)
        try:
            yield channel
        finally:
            channel.close()

    def call(self, path: str, token: str | None, body: bytes = b"", **options: Any) -> Answer:
        """One call of one message on a connection of its own."""
        with self.channel() as channel:
            return call(channel, path, token, body, **options)

    def create_account(self, name: str = "an account", **limits: Any) -> accounts_pb.CreateAccountResponse:
        """A new account through the edge."""
        request = accounts_pb.CreateAccountRequest(name=name, limits=accounts_pb.Limits(**limits))
        with self.channel() as channel:
            stub = accounts_stubs.AccountServiceStub(channel)
            response = stub.CreateAccount(request, metadata=bearer(self.operator_token), timeout=10)
        assert isinstance(response, accounts_pb.CreateAccountResponse)
        return response

    def create_token(self, admin: str, **fields: Any) -> tokens_pb.CreateTokenResponse:
        """A new token through the edge."""
        with self.channel() as channel:
            stub = tokens_stubs.TokenServiceStub(channel)
            response = stub.CreateToken(
                tokens_pb.CreateTokenRequest(**fields), metadata=bearer(admin), timeout=10
            )
        assert isinstance(response, tokens_pb.CreateTokenResponse)
        return response


@dataclass(frozen=True)
class Answer:
    """How a call ended, as a gRPC client sees it."""

    code: grpc.StatusCode
    message: str
    status: status_pb2.Status | None
    trailers: dict[str, str | bytes]

    @property
    def reason(self) -> str:
        """The ErrorInfo reason; empty if there is none."""
        info = error_details_pb2.ErrorInfo()
        return info.reason if self._unpack(info) else ""

    @property
    def retry_s(self) -> float | None:
        """The RetryInfo delay in seconds."""
        info = error_details_pb2.RetryInfo()
        return info.retry_delay.ToNanoseconds() / 1e9 if self._unpack(info) else None

    def _unpack(self, message: Any) -> bool:
        return self.status is not None and any(detail.Unpack(message) for detail in self.status.details)


def call(
    channel: grpc.Channel,
    path: str,
    token: str | None,
    body: bytes = b"",
    *,
    metadata: tuple[tuple[str, str | bytes], ...] = (),
    timeout: float | None = 10,
) -> Answer:
    """One call of one message."""
    sent = (*bearer(token), *metadata) if token is not None else metadata
    method: Any = channel.stream_stream(path)
    stream = method(iter([body]), metadata=sent, timeout=timeout)
    try:
        for _message in stream:
            pass
        code = grpc.StatusCode.OK
    except grpc.RpcError as error:
        code = error.code()
    return _answer(code, stream)


def _answer(code: grpc.StatusCode, stream: Any) -> Answer:
    trailers = {**dict(stream.initial_metadata() or ()), **dict(stream.trailing_metadata() or ())}
    raw = trailers.get("grpc-status-details-bin")
    status = status_pb2.Status.FromString(raw) if isinstance(raw, bytes) else None
    return Answer(code, stream.details() or "", status, trailers)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with a token."""
    return (("authorization", f"Bearer {token}"),)


def free_port() -> int:
    """A port that was free a moment ago, and that no outgoing connection takes while its server is away."""
    (port,) = free_ports(1)
    return port


@contextmanager
def running_edge(folder: Path, waits: bool = True, /, **settings: str) -> Iterator[Edge]:
    """A whole edge; settings are environment names without their prefix."""
    installation = ensure_installation(folder / "keys")
    backends = Backends(installation)
    backends.start()
    named = {f"SEALCOMB_{name.upper()}": value for name, value in settings.items()}
    edge = Edge(folder, installation, backends, free_port(), named)
    try:
        edge.start(waits=waits)
        yield edge
    finally:
        if edge.process is not None:
            edge.stop(signal.SIGTERM)
        backends.stop()


def _tls(installation: Installation, service: str) -> TlsFiles:
    return TlsFiles(installation.tls_dir(service))


TOKEN_TEXT = re.compile(r"sealcomb_(acc|op)_[0-9a-z]{26}_[0-9A-Za-z]{36}")
