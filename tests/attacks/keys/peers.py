"""Attacks on keyvault's door: certificates and contexts that are not what they should be."""

from __future__ import annotations

import contextlib
import datetime as dt
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealcomb.internal.v1 import keyvault_service_pb2 as pb
from sealcomb.internal.v1 import keyvault_service_pb2_grpc as stubs
from services.common.clock import SystemClock
from services.common.context import HEADER, CallContext, ContextSigner, ContextVerifier
from services.common.rpc import interceptor
from services.common.rpc.authorization import rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.peer_certificates import REFUSED_FILE
from services.common.rpc.server import InnerServer
from services.common.tls import TlsMaterial, host_of
from tests.attacks.keys.row import Attack, Trial
from tests.certificates import TestCa, address, dns, spiffe

_ORIGIN = "/sealcomb.v1.VectorService/Query"


class _Keyvault(stubs.KeyReleaseServiceServicer):
    async def GetDataKey(self, _request: Any, _context: Any) -> Any:
        return pb.GetDataKeyResponse(key_id="k")


class _Clock(SystemClock):
    ahead_s = 0.0

    def now_s(self) -> float:
        """The time, moved on."""
        return super().now_s() + self.ahead_s

    def monotonic_s(self) -> float:
        """The time, moved on."""
        return super().monotonic_s() + self.ahead_s


class _Door:
    """A keyvault's server, and whoever knocks."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.clock, self.signing = TestCa.make(), _Clock(), Ed25519PrivateKey.generate()
        self.signer = ContextSigner(self.signing)
        verifier = ContextVerifier("keyvault", {"gateway": self.signing.public_key()}, SystemClock())
        self.guard = GuardInterceptor("keyvault", rules_for("keyvault"), verifier)
        files = self.ca.service_files(folder, "keyvault")
        self.refused = files.folder / REFUSED_FILE
        self.server = InnerServer("127.0.0.1:0", files, self.guard, clock=self.clock)
        # The stubs call every method abstract; the ones left out are what nobody asks for here.
        stubs.add_KeyReleaseServiceServicer_to_server(_Keyvault(), self.server.grpc_server)  # type: ignore[abstract]

    def context(self, **changes: Any) -> str:
        """A context that opens the door, with some fields changed."""
        now = self.clock.now_s()
        plain = CallContext("gateway", ("keyvault",), "a", "t", ("read",), (), _ORIGIN, now, now + 30, "r")
        return self.signer.sign(replace(plain, **changes))

    @contextlib.asynccontextmanager
    async def connected(self, material: TlsMaterial) -> AsyncIterator[Callable[[str], Awaitable[bool]]]:
        """One connection under a certificate; calls over it give whether they were served."""
        ca = self.ca.issue([]).ca
        credentials = grpc.ssl_channel_credentials(ca, material.key, material.certificate)
        options = [
            ("grpc.ssl_target_name_override", host_of("keyvault")),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        address_ = f"127.0.0.1:{self.server.port}"
        async with grpc.aio.secure_channel(address_, credentials, options=options) as channel:
            method: Any = stubs.KeyReleaseServiceStub(channel).GetDataKey

            async def call(text: str) -> bool:
                try:
                    await method(pb.GetDataKeyRequest(), metadata=((HEADER, text),), timeout=10)
                except grpc.aio.AioRpcError:
                    return False
                return True

            yield call

    async def served(self, material: TlsMaterial, text: str) -> bool:
        """Whether one call over a connection of its own is served."""
        async with self.connected(material) as call:
            return bool(await call(text))


@asynccontextmanager
async def _door(trial: Trial) -> AsyncIterator[_Door]:
    with tempfile.TemporaryDirectory(dir=trial.folder) as folder:
        door = _Door(Path(folder))
        await door.server.start()
        try:
            yield door
        finally:
            await door.server.stop(0)


def _wrong_names() -> Iterator[list[x509.GeneralName]]:
    uri = x509.UniformResourceIdentifier
    while True:
        yield [spiffe("auditor")]
        yield [uri("spiffe://other.internal/vectorstore")]
        yield [dns(host_of("vectorstore"))]
        yield [dns("*.sealcomb.internal")]
        yield [address("127.0.0.1")]
        yield [spiffe("vectorstore"), spiffe("ingest")]
        yield [uri("spiffe://sealcomb.internal./vectorstore")]
        yield [uri("spiffe://sealcomb.internal/Vectorstore")]
        yield [uri("spiffe://sealcomb.internal/vectorstore/x")]


async def _identities(trial: Trial) -> float:
    anyone = patch.object(interceptor, "peer_service", lambda _context: "vectorstore")
    async with _door(trial) as door:
        names = _wrong_names()
        with anyone if trial.twin else contextlib.nullcontext():
            return sum(
                [await door.served(door.ca.issue(next(names)), door.context()) for _ in range(trial.size)]
            )


async def _expired(trial: Trial) -> float:
    async with _door(trial) as door:
        lasts = dt.timedelta(days=3) if trial.twin else dt.timedelta(hours=1)
        async with door.connected(door.ca.issue([spiffe("vectorstore")], lasts=lasts)) as call:
            assert await call(door.context())
            text = door.context()
            door.clock.ahead_s = 86_400
            return sum([await call(text) for _ in range(trial.size)])


async def _revoked(trial: Trial) -> float:
    async with _door(trial) as door:
        stolen, other = (door.ca.issue([spiffe("vectorstore")]) for _ in range(2))
        async with door.connected(stolen) as call:
            assert await call(door.context())
            listed = other if trial.twin else stolen
            serial = x509.load_pem_x509_certificate(listed.certificate).serial_number
            door.refused.write_text(f"{serial:x}\n")
            door.clock.ahead_s = 1
            text = door.context()
            return sum([await call(text) for _ in range(trial.size)])


async def _strangers(trial: Trial) -> float:
    async with _door(trial) as door:
        ca = door.ca if trial.twin else TestCa.make()
        return sum(
            [await door.served(ca.issue([spiffe("vectorstore")]), door.context()) for _ in range(trial.size)]
        )


async def _replayed(trial: Trial) -> float:
    """Contexts of another time, method, issuer, key or account that open the door."""
    parsed = patch.object(ContextVerifier, "verify", lambda self, text: self._parse(text))
    unbound = patch.object(interceptor, "check_context", lambda *_arguments: None)
    with contextlib.ExitStack() as stack:
        if trial.twin:
            stack.enter_context(parsed)
            stack.enter_context(unbound)
        async with _door(trial) as door:
            now, stranger = door.clock.now_s(), ContextSigner(Ed25519PrivateKey.generate())
            wrong = [
                door.context(issued_s=now - 62, expires_s=now - 31),
                door.context(issued_s=now + 60, expires_s=now + 90),
                door.context(issued_s=now, expires_s=now + 4000),
                door.context(method="/sealcomb.v1.AuditService/ListEvents"),
                door.context(bearer="vectorstore"),
                door.context(issuer="keyvault"),
                stranger.sign(
                    CallContext("gateway", ("keyvault",), "a", "t", (), (), _ORIGIN, now, now + 9, "r")
                ),
                door.context()[:-4] + "AAAA",
            ]
            async with door.connected(door.ca.issue([spiffe("vectorstore")])) as call:
                return sum([await call(wrong[number % len(wrong)]) for number in range(trial.size)])


async def _other_audiences(trial: Trial) -> float:
    audience = ("keyvault",) if trial.twin else ("vectorstore", "ingest", "gateway", "keyvault/renewal")
    async with _door(trial) as door, door.connected(door.ca.issue([spiffe("vectorstore")])) as call:
        return sum([await call(door.context(audience=audience)) for _ in range(trial.size)])


async def _behind(trial: Trial) -> float:
    """Good calls refused since the caller's certificate was made by a clock 4 minutes ahead."""
    ahead = dt.timedelta(minutes=4)
    backdated = dt.timedelta(0) if trial.twin else dt.timedelta(minutes=-5)
    async with _door(trial) as door:
        served = [
            await door.served(
                door.ca.issue([spiffe("vectorstore")], starts_in=ahead + backdated), door.context()
            )
            for _ in range(trial.size)
        ]
        return served.count(False)


ATTACKS = [
    Attack("C1", "calls under wrong names, right authority", 90, 9, _identities),
    Attack("C2", "calls on a connection whose certificate expired", 200, 5, _expired),
    Attack("C5", "replayed, forged, early, late contexts that open", 400, 16, _replayed),
    Attack("C6", "contexts for other services that open", 200, 5, _other_audiences),
    Attack("C7", "calls under a stranger's certificate of our name", 50, 3, _strangers),
    Attack("C10", "calls on a connection whose certificate is refused", 200, 5, _revoked),
    Attack("C12", "good calls refused for a clock 4 minutes ahead", 20, 3, _behind),
]
