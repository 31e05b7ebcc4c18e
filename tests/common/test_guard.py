"""The guard of every inner server, over real mutual TLS: who gets in, and what a refused one learns."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
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
from services.common import context as contexts
from services.common.clock import SystemClock
from services.common.context import HEADER, CallContext, ContextSigner, ContextVerifier, current_account
from services.common.errors import NotFound
from services.common.rpc.authorization import Rule, rules_for
from services.common.rpc.interceptor import GuardInterceptor
from services.common.rpc.server import InnerServer
from services.common.rpc.status import DETAILS_KEY
from services.common.tls import TlsMaterial, host_of
from tests.certificates import TestCa, address, dns, spiffe, write_files

_RELEASE = "/sealcomb.internal.v1.KeyReleaseService/GetDataKey"


class _Releases(stubs.KeyReleaseServiceServicer):
    async def GetDataKey(self, request: Any, _context: Any) -> Any:
        if request.resource == "crash":
            raise RuntimeError("canary of a crash")
        if request.resource == "missing":
            raise NotFound("no such thing", reason="THING_NOT_FOUND")
        return pb.GetDataKeyResponse(key_id=current_account())

    async def WatchKeyEvents(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        yield pb.WatchKeyEventsResponse(event=pb.KEY_EVENT_HEARTBEAT)
        raise RuntimeError("canary of a crash")


@dataclass
class _Rig:
    ca: TestCa
    port: int
    signer: ContextSigner

    def channel(self, material: TlsMaterial | None, ca: bytes | None = None) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            ca or self.ca.issue([]).ca, *((material.key, material.certificate) if material else ())
        )
        options = [
            ("grpc.ssl_target_name_override", host_of("keyvault")),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options)

    def context(self, **changes: Any) -> str:
        now = SystemClock().now_s()
        plain = CallContext(
            "gateway",
            ("keyvault",),
            "acct",
            "tok",
            ("read",),
            (),
            "/sealcomb.v1.VectorService/Query",
            now,
            now + 30,
            "r",
        )
        return self.signer.sign(replace(plain, **changes))

    async def release(self, material: TlsMaterial | None, text: str | None, resource: str = "c") -> Any:
        async with self.channel(material) as channel:
            metadata = ((HEADER, text),) if text is not None else ()
            method = stubs.KeyReleaseServiceStub(channel).GetDataKey
            return await method(pb.GetDataKeyRequest(resource=resource), metadata=metadata, timeout=5)


@pytest.fixture
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[_Rig]:
    """A keyvault-shaped server; a test may replace its rules by an indirect parameter."""
    ca, signing = TestCa.make(), Ed25519PrivateKey.generate()
    verifier = ContextVerifier("keyvault", {"gateway": signing.public_key()}, SystemClock())
    rules = getattr(request, "param", None) or rules_for("keyvault")
    guard = GuardInterceptor("keyvault", rules, verifier)
    server = InnerServer("127.0.0.1:0", ca.service_files(tmp_path, "keyvault"), guard)
    # The stubs call every method abstract; the ones left out are what a test asks for.
    stubs.add_KeyReleaseServiceServicer_to_server(_Releases(), server.grpc_server)  # type: ignore[abstract]
    await server.start()
    yield _Rig(ca, server.port, ContextSigner(signing))
    await server.stop(0)


async def _refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def _info(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason, dict(info.metadata)


async def test_a_listed_peer_with_a_context_acts_for_the_contexts_account(rig: _Rig) -> None:
    response = await rig.release(rig.ca.issue([spiffe("vectorstore")]), rig.context())
    assert response.key_id == "acct"


_WRONG_NAMES: dict[str, list[x509.GeneralName]] = {
    "wrong service": [spiffe("auditor")],
    "another trust domain": [x509.UniformResourceIdentifier("spiffe://other.internal/vectorstore")],
    "DNS only": [dns(host_of("vectorstore"))],
    "wildcard": [dns("*.sealcomb.internal")],
    "IP": [address("127.0.0.1")],
    "two ids": [spiffe("vectorstore"), spiffe("ingest")],
    "trailing dot": [x509.UniformResourceIdentifier("spiffe://sealcomb.internal./vectorstore")],
    "case": [x509.UniformResourceIdentifier("spiffe://sealcomb.internal/Vectorstore")],
    "path below": [x509.UniformResourceIdentifier("spiffe://sealcomb.internal/vectorstore/x")],
    "query": [x509.UniformResourceIdentifier("spiffe://sealcomb.internal/vectorstore?x")],
}


@pytest.mark.parametrize("names", _WRONG_NAMES.values(), ids=_WRONG_NAMES.keys())
async def test_a_certificate_that_does_not_name_exactly_a_listed_peer_is_refused(
    rig: _Rig, names: list[x509.GeneralName]
) -> None:
    """C1."""
    error = await _refusal(rig.release(rig.ca.issue(names, common_name="vectorstore"), rig.context()))
    assert error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)


_OPEN = Rule(frozenset({"", "auditor", "vectorstore"}), True, frozenset({"sealcomb.v1.VectorService"}))


@pytest.mark.parametrize("rig", [{_RELEASE: _OPEN}], indirect=True)
async def test_the_twin_without_the_peer_rule_the_wrong_certificates_get_in(rig: _Rig) -> None:
    response = await rig.release(rig.ca.issue([dns(host_of("vectorstore"))]), rig.context())
    assert response.key_id == "acct"


async def test_no_certificate_another_ca_or_an_expired_one_never_reach_a_handler(rig: _Rig) -> None:
    """C1, C7."""
    expired = rig.ca.issue(
        [spiffe("vectorstore")], starts_in=datetime.timedelta(days=-2), lasts=datetime.timedelta(days=1)
    )
    for material in (None, TestCa.make().issue([spiffe("vectorstore")]), expired):
        error = await _refusal(rig.release(material, rig.context()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_refuses_a_server_of_another_ca(rig: _Rig) -> None:
    """C11."""
    material = rig.ca.issue([spiffe("vectorstore")])
    async with rig.channel(material, ca=TestCa.make().issue([]).ca) as channel:
        method = stubs.KeyReleaseServiceStub(channel).GetDataKey
        error = await _refusal(method(pb.GetDataKeyRequest(), timeout=5))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_contexts_that_are_missing_forged_expired_or_not_for_here_are_refused(rig: _Rig) -> None:
    """C5, C6."""
    now = SystemClock().now_s()
    forged = ContextSigner(Ed25519PrivateKey.generate()).sign(
        CallContext(
            "gateway",
            ("keyvault",),
            "acct",
            "t",
            (),
            (),
            "/sealcomb.v1.VectorService/Query",
            now,
            now + 30,
            "r",
        )
    )
    good = rig.context()
    bad = {
        "missing": None,
        "empty": "",
        "forged": forged,
        "payload changed": "A" + good[1:],
        "signature cut": good[:-4],
        "expired": rig.context(issued_s=now - 60, expires_s=now - 1),
        "from the future": rig.context(issued_s=now + 60, expires_s=now + 90),
        "another audience": rig.context(audience=("vectorstore",)),
        "another issuer": rig.context(issuer="keyvault", bearer="vectorstore"),
        "an origin that may not": rig.context(method="/sealcomb.v1.KeyService/GetKey"),
    }
    material = rig.ca.issue([spiffe("vectorstore")])
    for text in bad.values():
        error = await _refusal(rig.release(material, text))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert _info(error)[0] == "CONTEXT_REFUSED"


async def test_the_twin_a_verifier_that_trusts_the_forger_lets_the_forgery_in(rig: _Rig) -> None:
    assert (
        await rig.release(rig.ca.issue([spiffe("vectorstore")]), rig.context(account="forged"))
    ).key_id == "forged"


async def test_domain_errors_keep_their_reason_and_crashes_show_nothing(rig: _Rig) -> None:
    """A17."""
    material = rig.ca.issue([spiffe("vectorstore")])
    missing = await _refusal(rig.release(material, rig.context(), "missing"))
    assert (missing.code(), _info(missing)[0]) == (grpc.StatusCode.NOT_FOUND, "THING_NOT_FOUND")
    crash = await _refusal(rig.release(material, rig.context(), "crash"))
    assert crash.code() is grpc.StatusCode.INTERNAL
    assert "canary" not in (crash.details() or "")


async def test_a_method_nobody_built_is_unimplemented_and_an_unlisted_one_refused(rig: _Rig) -> None:
    async with rig.channel(rig.ca.issue([spiffe("gateway")])) as channel:
        metadata = ((HEADER, rig.context(method="/sealcomb.v1.AccountService/CreateAccount")),)
        method = stubs.KeyReleaseServiceStub(channel).ProvisionAccount
        error = await _refusal(method(pb.ProvisionAccountRequest(), metadata=metadata, timeout=5))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        nothing: Any = channel.unary_unary("/sealcomb.internal.v1.Nothing/Here")
        unknown = await _refusal(nothing(b"", timeout=5))
        assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_stream_is_guarded_and_its_crash_shows_nothing(rig: _Rig) -> None:
    async with rig.channel(rig.ca.issue([spiffe("ingest")])) as channel:
        stream = stubs.KeyReleaseServiceStub(channel).WatchKeyEvents(pb.WatchKeyEventsRequest(), timeout=5)
        assert isinstance(await stream.read(), pb.WatchKeyEventsResponse)
        error = await _refusal(stream.read())
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "canary" not in (error.details() or "")
    async with rig.channel(rig.ca.issue([spiffe("auditor")])) as channel:
        stream = stubs.KeyReleaseServiceStub(channel).WatchKeyEvents(pb.WatchKeyEventsRequest(), timeout=5)
        error = await _refusal(stream.read())
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def _handshake(rig: _Rig, folder: Path, version: ssl.TLSVersion) -> str | None:
    """The TLS version agreed with a client that holds a good certificate and offers one version only."""
    files = write_files(folder / "client", rig.ca.issue([spiffe("vectorstore")]))
    client = ssl.create_default_context(cafile=str(files.folder / "ca.pem"))
    client.load_cert_chain(files.folder / "cert.pem", files.folder / "key.pem")
    client.minimum_version = client.maximum_version = version
    client.set_alpn_protocols(["h2"])
    _reader, writer = await asyncio.open_connection(
        "127.0.0.1", rig.port, ssl=client, server_hostname=host_of("keyvault")
    )
    agreed = writer.get_extra_info("ssl_object").version()
    writer.close()
    return str(agreed)


async def test_inner_tls_is_1_3_only(rig: _Rig, tmp_path: Path) -> None:
    """A13 for the inner hops; its twin is that the same client gets in with 1.3."""
    assert await _handshake(rig, tmp_path, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await _handshake(rig, tmp_path, ssl.TLSVersion.TLSv1_2)


def test_no_caller_is_current_outside_a_call() -> None:
    with pytest.raises(contexts.ContextRefused):
        contexts.current_caller()
