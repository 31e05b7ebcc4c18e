"""Between the services: a wrong peer or a wrong context is refused on every method of every service.

The methods are found by walking the descriptors and each is tried at each service, with everything
else about the call right, so that the one thing that is wrong is what the refusal is for. The twin
sends the right thing and is let through.
"""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc_health.v1 import health_pb2

from sealcomb.internal.v1 import keyvault_service_pb2
from services.common import ids
from services.common.context import ContextSigner
from services.common.methods import PUBLIC_METHODS
from services.common.rpc.authorization import INNER_RULES
from services.standalone import pki
from tests.attacks.inner_peers import (
    GUARD_REASONS,
    HEALTH_METHODS,
    WRONG_IDENTITIES,
    Inside,
    Method,
    Peer,
    broken_contexts,
    expired,
    methods,
    needs_context,
    origin_of,
    peers_of,
)
from tests.system.installation import SERVICES, running


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    with running(tmp_path_factory.mktemp("trust")) as installation:
        addresses = {}
        for service in SERVICES:
            environ = Path(f"/proc/{installation.pid_of(service)}/environ").read_bytes().decode()
            values = dict(entry.split("=", 1) for entry in environ.split("\0") if "=" in entry)
            addresses[service] = values["SEALCOMB_LISTEN"]
        keys = pki.Installation(installation.keys)
        key = load_pem_private_key((installation.keys / "ca" / "ca.key.pem").read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        authority = pki.Authority(x509.load_pem_x509_certificate(keys.ca_file.read_bytes()), key)
        signers = {
            name: ContextSigner.from_file(keys.context_key_file(name)) for name in ("gateway", "keyvault")
        }
        yield Inside(installation, addresses, authority, signers)


def test_the_walk_finds_every_method_and_each_has_an_owner() -> None:
    found = methods()
    assert {method.path for method in found} == set(PUBLIC_METHODS) | set(INNER_RULES)
    assert {method.owner for method in found} == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_a_right_peer_with_a_right_context_is_let_through(inside: Inside, service: str) -> None:
    """The twin of all below: what is refused there is refused for what is wrong with it."""
    for method in methods():
        if method.owner != service:
            continue
        peer = sorted(peers_of(method))[0]
        context = inside.signers["gateway"].sign(inside.context(origin_of(method)))
        with Peer(inside, service, inside.pair(peer)) as right:
            _code, reason = right.call(method, context)
        assert reason not in GUARD_REASONS, method.path


@pytest.mark.parametrize("service", SERVICES)
def test_no_certificate_and_a_strangers_certificate_reach_no_method(inside: Inside, service: str) -> None:
    """C7: neither nobody nor another authority's "gateway" gets past the handshake."""
    stranger = pki.make_authority("Sealcomb services CA", dt.datetime.now(dt.UTC))
    forged = stranger.issue(pki.service_names("gateway"), dt.datetime.now(dt.UTC))
    for pair in (None, forged):
        with Peer(inside, service, pair) as peer:
            for method in [*methods(), *(Method(path, "unary_unary") for path in HEALTH_METHODS)]:
                context = inside.signers["gateway"].sign(inside.context(origin_of(method)))
                assert peer.call(method, context)[0] == "UNAVAILABLE", method.path


@pytest.mark.parametrize("identity", WRONG_IDENTITIES)
@pytest.mark.parametrize("service", SERVICES)
def test_a_certificate_with_a_wrong_identity_is_refused_on_every_method(
    inside: Inside, service: str, identity: str
) -> None:
    """C1: only the exact names pass."""
    with Peer(inside, service, WRONG_IDENTITIES[identity](inside)) as peer:
        for method in methods():
            context = inside.signers["gateway"].sign(inside.context(origin_of(method)))
            code, reason = peer.call(method, context)
            refused = reason == "PEER_REFUSED" or code in ("UNAVAILABLE", "UNIMPLEMENTED")
            assert refused, (method.path, code, reason)
            assert method.owner != service or code != "UNIMPLEMENTED", method.path


@pytest.mark.parametrize("service", SERVICES)
def test_an_expired_certificate_is_refused(inside: Inside, service: str) -> None:
    with Peer(inside, service, expired(inside)) as peer:
        assert peer.call(methods()[0])[0] == "UNAVAILABLE"


@pytest.mark.parametrize("service", SERVICES)
def test_a_real_service_may_call_only_the_methods_that_name_it(inside: Inside, service: str) -> None:
    """C1, C4: each service's own certificate on each method that is not for it."""
    for caller in SERVICES:
        with Peer(inside, service, inside.pair(caller)) as peer:
            for method in methods():
                if method.owner == service and caller in peers_of(method):
                    continue
                context = inside.signers["gateway"].sign(inside.context(origin_of(method)))
                code, reason = peer.call(method, context)
                # A method that another service has does not exist here.
                assert reason == "PEER_REFUSED" or (method.owner != service and code == "UNIMPLEMENTED")


@pytest.mark.parametrize("service", SERVICES)
def test_a_missing_forged_expired_or_foreign_context_is_refused_on_every_method(
    inside: Inside, service: str
) -> None:
    """C5, C6: a context is for its audience, its method and its time, and for nobody to make up."""
    for method in methods():
        if method.owner != service or not needs_context(method):
            continue
        with Peer(inside, service, inside.pair(sorted(peers_of(method))[0])) as peer:
            for name, context in broken_contexts(inside, method).items():
                answer = peer.call(method, context)
                assert answer == ("UNAUTHENTICATED", "CONTEXT_REFUSED"), (method.path, name)


def test_a_stolen_ingest_certificate_opens_no_account(inside: Inside) -> None:
    """C4: without a fresh context of the account the certificate alone releases no key."""
    method = Method("/sealcomb.internal.v1.KeyReleaseService/GetDataKey", "unary_unary")
    request = keyvault_service_pb2.GetDataKeyRequest(
        resource=ids.new_id(), purpose="documents"
    ).SerializeToString()
    with Peer(inside, "keyvault", inside.pair("ingest")) as thief:
        for _ in range(200):
            # The thief can write a context, but has nothing to sign it with.
            forged = ContextSigner(Ed25519PrivateKey.generate()).sign(
                inside.context("/sealcomb.v1.SearchService/Search", account=ids.new_id())
            )
            assert thief.call(method, forged, body=request) == ("UNAUTHENTICATED", "CONTEXT_REFUSED")
    log = (inside.installation.data / "logs" / "keyvault.log").read_text()
    assert log.count('"call refused"') >= 200


def test_only_the_edge_and_four_inner_ports_listen_and_all_on_loopback(inside: Inside) -> None:
    """C8: no listener beside the known ones, and none that speaks without TLS."""
    listening = set()
    for pid in inside.installation.pids():
        for connection in psutil.Process(pid).net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                # grpc listens on IPv6 sockets, where IPv4 addresses look like this.
                listening.add((connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port))
    inner = {("127.0.0.1", int(address.rpartition(":")[2])) for address in inside.addresses.values()}
    edge = {("127.0.0.1", port) for port in (inside.installation.edge_port, inside.installation.http_port)}
    assert listening == inner | edge
    for host, port in listening:
        assert not speaks_plaintext(host, port)


def speaks_plaintext(host: str, port: int) -> bool:
    """Whether a port answers an HTTP/2 client that does not use TLS."""
    with socket.create_connection((host, port), timeout=2) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        try:
            answer = plain.recv(9)
        except (ConnectionResetError, TimeoutError):
            return False
    # A SETTINGS frame would be the answer of a server without TLS; a TLS alert begins with 21.
    return len(answer) >= 4 and answer[3] == 4


def test_a_plaintext_server_would_be_noticed() -> None:
    """The twin of the port inventory."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert speaks_plaintext("127.0.0.1", port)
    finally:
        server.stop(0).wait()


def test_health_is_for_services_alone(inside: Inside) -> None:
    check = Method("/grpc.health.v1.Health/Check", "unary_unary")
    body = health_pb2.HealthCheckRequest().SerializeToString()
    for service in SERVICES:
        with Peer(inside, service, inside.pair("gateway")) as peer:
            assert peer.call(check, body=body)[0] == "OK"
        with Peer(inside, service, inside.minted(pki.service_names("nobody"))) as peer:
            assert peer.call(check, body=body)[1] == "PEER_REFUSED"
