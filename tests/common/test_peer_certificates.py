"""A certificate that expired or was refused since its connection was made serves no call (C2, C10)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2

from sealcomb.internal.v1 import keyvault_service_pb2 as pb
from sealcomb.internal.v1 import keyvault_service_pb2_grpc as stubs
from services.common.clock import SystemClock
from services.common.context import ContextVerifier
from services.common.rpc.authorization import rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.peer_certificates import REFUSED_FILE, PeerCertificates
from services.common.rpc.server import InnerServer
from services.common.rpc.status import DETAILS_KEY
from services.common.tls import TlsMaterial, host_of
from tests.certificates import TestCa, spiffe

_DAY_S = 86_400.0


class _Clock:
    """The machine's clock, moved on by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._system = SystemClock()

    def now_s(self) -> float:
        """The time, moved on."""
        return self._system.now_s() + self.ahead_s

    def monotonic_s(self) -> float:
        """The time, moved on."""
        return self._system.monotonic_s() + self.ahead_s


class _Keyvault(stubs.KeyReleaseServiceServicer):
    async def RenewPermit(self, _request: Any, _context: Any) -> Any:
        return pb.RenewPermitResponse(permit="p")

    async def WatchKeyEvents(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        while True:
            yield pb.WatchKeyEventsResponse(event=pb.KEY_EVENT_HEARTBEAT)
            await asyncio.sleep(0.02)


@dataclass
class _Rig:
    ca: TestCa
    server: InnerServer
    guard: GuardInterceptor
    clock: _Clock
    refused: Path

    def stub(self, material: TlsMaterial) -> Any:
        options = [("grpc.ssl_target_name_override", host_of("keyvault"))]
        credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
        self.channel = grpc.aio.secure_channel(f"127.0.0.1:{self.server.port}", credentials, options=options)
        return stubs.KeyReleaseServiceStub(self.channel)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[_Rig]:
    """A server whose clock moves, and one connection to it."""
    ca, clock = TestCa.make(), _Clock()
    verifier = ContextVerifier("keyvault", {"gateway": Ed25519PrivateKey.generate().public_key()}, clock)
    guard = GuardInterceptor("keyvault", rules_for("keyvault"), verifier)
    files = ca.service_files(tmp_path, "keyvault")
    server = InnerServer("127.0.0.1:0", files, guard, clock=clock)
    # The stubs call every method abstract; the ones left out are what nobody asks for here.
    stubs.add_KeyReleaseServiceServicer_to_server(_Keyvault(), server.grpc_server)  # type: ignore[abstract]
    await server.start()
    rig = _Rig(ca, server, guard, clock, files.folder / REFUSED_FILE)
    yield rig
    await rig.channel.close()
    await server.stop(0)


async def _renew(stub: Any) -> str:
    try:
        return str((await stub.RenewPermit(pb.RenewPermitRequest(), timeout=10)).permit)
    except grpc.aio.AioRpcError as error:
        status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        return str(info.reason)


async def _drain(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_certificate_that_expires_serves_no_further_call_on_its_connection(rig: _Rig) -> None:
    """C2, with its twin: once nobody looks, the same connection serves on for days."""
    stub = rig.stub(rig.ca.issue([spiffe("ingest")]))
    assert await _renew(stub) == "p"
    rig.clock.ahead_s = _DAY_S - 600
    assert await _renew(stub) == "p"
    rig.clock.ahead_s = _DAY_S + 1
    assert await _renew(stub) == "PEER_REFUSED"
    rig.guard.watch_certificates(PeerCertificates(rig.refused, SystemClock()))
    assert await _renew(stub) == "p"


async def test_a_stream_ends_when_its_certificate_does(rig: _Rig) -> None:
    """C2: a watch that began in time."""
    call = rig.stub(rig.ca.issue([spiffe("ingest")])).WatchKeyEvents(pb.WatchKeyEventsRequest(), timeout=60)
    assert (await call.read()).event == pb.KEY_EVENT_HEARTBEAT
    rig.clock.ahead_s = 2 * _DAY_S
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _drain(call)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_certificate_that_is_refused_serves_no_further_call_on_its_connection(rig: _Rig) -> None:
    """C10: by its serial number, within a second, and only that one, until it is taken out of the file."""
    stolen, good = (rig.ca.issue([spiffe("ingest")]) for _ in range(2))
    stub = rig.stub(stolen)
    assert await _renew(stub) == "p"
    serial = x509.load_pem_x509_certificate(stolen.certificate).serial_number
    rig.refused.write_text(f"# taken with a laptop\n{serial:x}  # ingest\n")
    rig.clock.ahead_s += 1
    assert await _renew(stub) == "PEER_REFUSED"
    await rig.channel.close()
    assert await _renew(rig.stub(stolen)) == "PEER_REFUSED"
    await rig.channel.close()
    again = rig.stub(good)
    assert await _renew(again) == "p"
    rig.refused.unlink()
    rig.clock.ahead_s += 1
    await rig.channel.close()
    assert await _renew(rig.stub(stolen)) == "p"


def test_a_file_that_cannot_be_understood_lets_nobody_off(tmp_path: Path) -> None:
    """C10: the last good list stays, and is read again once the file is right."""
    clock, file = _Clock(), tmp_path / "refused"
    certificates = PeerCertificates(file, clock)
    one, other = (TestCa.make().issue([spiffe("ingest")]).certificate for _ in range(2))
    serials = [x509.load_pem_x509_certificate(pem).serial_number for pem in (one, other)]

    def refusals(content: str) -> list[str]:
        file.write_text(content)
        # Two writes within one tick of the file system's clock would look the same.
        os.utime(file, ns=(0, len(content)))
        clock.ahead_s += 1
        return [certificates.refusal(pem) for pem in (one, other)]

    assert refusals("") == ["", ""]
    assert refusals(f"{serials[0]:x}\n") == ["refused certificate", ""]
    assert refusals("not a serial\n") == ["refused certificate", ""]
    colons = ":".join(f"{serials[1]:040x}"[at : at + 2] for at in range(0, 40, 2)).upper()
    assert refusals(f"\n{colons}\n") == ["", "refused certificate"]
    assert certificates.refusal(b"no certificate") == "unreadable certificate"
