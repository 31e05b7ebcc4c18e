"""Attackers inside the private network, for tests: any certificate, any context, any method."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealcomb.internal.v1 import edge_service_pb2, keyvault_service_pb2, passage_service_pb2
from sealcomb.v1 import (
    account_service_pb2,
    audit_service_pb2,
    collection_service_pb2,
    document_service_pb2,
    ingestion_service_pb2,
    key_service_pb2,
    search_service_pb2,
    source_service_pb2,
    token_service_pb2,
    vector_service_pb2,
)
from sealcomb_client.errors import from_rpc_error
from services.common import ids
from services.common.clock import SystemClock
from services.common.context import HEADER, CallContext, ContextSigner
from services.common.methods import PUBLIC_METHODS
from services.common.rpc.authorization import INNER_RULES
from services.standalone import pki
from tests.system.installation import SERVICES, Installation

PUBLIC = (
    account_service_pb2,
    audit_service_pb2,
    collection_service_pb2,
    document_service_pb2,
    ingestion_service_pb2,
    key_service_pb2,
    search_service_pb2,
    source_service_pb2,
    token_service_pb2,
    vector_service_pb2,
)
INNER = (edge_service_pb2, keyvault_service_pb2, passage_service_pb2)
HEALTH_METHODS = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
OWNERS = {"EdgeService": "gateway", "KeyReleaseService": "keyvault", "PassageService": "vectorstore"}
CLOCK = SystemClock()
GUARD_REASONS = {"PEER_REFUSED", "CONTEXT_REFUSED"}
Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Method:
    """A method that exists somewhere: its path and the way it is called."""

    path: str
    kind: str

    @property
    def owner(self) -> str:
        """The one service that has it."""
        public = PUBLIC_METHODS.get(self.path)
        return public.owner if public is not None else OWNERS[self.path.split(".")[-1].split("/")[0]]


def methods() -> list[Method]:
    """Every method of every service of ours."""
    found = []
    for module in (*PUBLIC, *INNER):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                sides = (method.client_streaming, method.server_streaming)
                kind = "_".join("stream" if streaming else "unary" for streaming in sides)
                found.append(Method(f"/{service.full_name}/{method.name}", kind))
    return found


@dataclass
class Inside:
    """What an attacker in the private network could know: addresses, and here also all keys, to mint with."""

    installation: Installation
    addresses: dict[str, str]
    authority: pki.Authority
    signers: dict[str, ContextSigner]

    def pair(self, service: str) -> Pair:
        """A service's own certificate and key."""
        folder = pki.Installation(self.installation.keys).tls_dir(service)
        return (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes()

    def minted(self, names: list[x509.GeneralName], common_name: str = "") -> Pair:
        """A certificate of the installation's own authority for any names."""
        return self.authority.issue(names, dt.datetime.now(dt.UTC), common_name=common_name)

    def context(self, method: str, **changes: Any) -> CallContext:
        """A context with which the method could be called, with some fields changed."""
        now = CLOCK.now_s()
        context = CallContext(
            issuer="gateway",
            audience=SERVICES,
            account=ids.new_id(),
            token_id=ids.new_id(),
            scopes=("read", "write", "keys", "audit", "admin"),
            collections=(),
            method=method,
            issued_s=now,
            expires_s=now + 20,
            request_id=ids.new_id(),
        )
        return replace(context, **changes)


class Peer:
    """A client with some certificate, at one service."""

    def __init__(self, inside: Inside, service: str, pair: Pair | None) -> None:
        ca = inside.authority.pem
        credentials = (
            grpc.ssl_channel_credentials(ca, pair[1], pair[0]) if pair else grpc.ssl_channel_credentials(ca)
        )
        options = (
            ("grpc.ssl_target_name_override", f"{service}.sealcomb.internal"),
            ("grpc.enable_retries", 0),
        )
        self._channel = grpc.secure_channel(inside.addresses[service], credentials, options)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: Method, context: str | None = None, *, body: bytes = b"") -> tuple[str, str]:
        """The code and reason of the answer; OK and nothing if there was one."""
        metadata = ((HEADER, context),) if context else ()
        request = iter([body]) if method.kind.startswith("stream") else body
        try:
            response = getattr(self._channel, method.kind)(method.path)(
                request, metadata=metadata, timeout=2.0
            )
            if method.kind.endswith("stream"):
                next(iter(response), None)
                response.cancel()
        except grpc.RpcError as error:
            answer = from_rpc_error(error)
            return answer.code, answer.reason
        return "OK", ""


def peers_of(method: Method) -> frozenset[str]:
    """Who may call it in an installation of one process a service."""
    rule = INNER_RULES.get(method.path)
    return frozenset({"gateway"}) if rule is None else rule.peers


def origin_of(method: Method) -> str:
    """The method under whose context an inner method may be called; a public one's own."""
    rule = INNER_RULES.get(method.path)
    # Health has no context at all; WatchKeyEvents wants none.
    if rule is None or not rule.origins:
        return method.path
    origin = sorted(rule.origins)[0]
    return next(path for path in PUBLIC_METHODS if path.startswith(f"/{origin}/"))


def needs_context(method: Method) -> bool:
    rule = INNER_RULES.get(method.path)
    return rule is None or rule.needs_context


def expired(inside: Inside) -> Pair:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
    return inside.authority.issue(pki.service_names("gateway"), past, life=dt.timedelta(days=1))


WRONG_IDENTITIES: dict[str, Callable[[Inside], Pair]] = {
    "a name that is no service": lambda i: i.minted(pki.service_names("nobody")),
    "a common name only": lambda i: i.minted([], "spiffe://sealcomb.internal/gateway"),
    "a host name only": lambda i: i.minted([x509.DNSName("gateway.sealcomb.internal")]),
    "a wildcard": lambda i: i.minted([uri("*"), x509.DNSName("*.sealcomb.internal")]),
    "two services": lambda i: i.minted([uri("gateway"), uri("ingest")]),
    "upper case": lambda i: i.minted([uri("Gateway")]),
    "a trailing slash": lambda i: i.minted([uri("gateway/")]),
    "a trailing dot": lambda i: i.minted([uri("gateway.")]),
    "a longer path": lambda i: i.minted([uri("gateway/keyvault")]),
    "another trust domain": lambda i: i.minted(
        [x509.UniformResourceIdentifier("spiffe://sealcomb.example/gateway")]
    ),
    "another scheme": lambda i: i.minted(
        [x509.UniformResourceIdentifier("https://sealcomb.internal/gateway")]
    ),
    "the edge": lambda i: i.minted([uri("edge")]),
}


def uri(service: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(f"spiffe://sealcomb.internal/{service}")


def broken_contexts(inside: Inside, method: Method) -> dict[str, str | None]:
    """Contexts that must not be accepted for the method, each wrong in one way."""
    right = inside.context(origin_of(method))
    now = CLOCK.now_s()
    sign = inside.signers["gateway"].sign
    payload, signature = sign(right).split(".")
    others = tuple(service for service in SERVICES if service != method.owner)
    return {
        "none": None,
        "empty": " ",
        "not base64": "!!!.???",
        "without its signature": payload + ".",
        "with a changed payload": payload[:-2] + ("AA" if payload[-2:] != "AA" else "BB") + "." + signature,
        "signed by a stranger": ContextSigner(Ed25519PrivateKey.generate()).sign(right),
        "signed by keyvault as if by the gateway": inside.signers["keyvault"].sign(right),
        "expired": sign(replace(right, issued_s=now - 60, expires_s=now - 1)),
        "from the future": sign(replace(right, issued_s=now + 600, expires_s=now + 630)),
        "for other services": sign(replace(right, audience=others)),
        "for nobody": sign(replace(right, audience=())),
        "issued by somebody else": sign(replace(right, issuer="somebody")),
        "of another method": sign(replace(right, method=another_method(method))),
        "a permit by the gateway": sign(replace(right, bearer="ingest", job_id=ids.new_id())),
    }


def another_method(method: Method) -> str:
    """A public method under whose context this one may not be called."""
    rule = INNER_RULES.get(method.path)
    allowed = rule.origins if rule is not None else frozenset()
    return next(path for path in PUBLIC_METHODS if path != method.path and path.split("/")[1] not in allowed)
