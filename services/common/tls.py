"""Mutual TLS between the services: credentials from files, and the names in certificates.

A service is `spiffe://sealcomb.internal/<service>` and `<service>.sealcomb.internal`. Only the
installation's own CA is trusted, and nothing below TLS 1.3 succeeds (see services/__init__.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

TRUST_DOMAIN = "sealcomb.internal"
SPIFFE_PREFIX = f"spiffe://{TRUST_DOMAIN}/"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A folder with `ca.pem`, `cert.pem` (leaf, then intermediates) and `key.pem`, read when asked."""

    folder: Path

    def read(self) -> TlsMaterial:
        """The files' present content. Raises ValueError for a key that others may read."""
        key_path = self.folder / "key.pem"
        if key_path.stat().st_mode & 0o077:
            raise ValueError("key.pem is open to others; chmod 600 it")
        return TlsMaterial(
            (self.folder / "ca.pem").read_bytes(), (self.folder / "cert.pem").read_bytes(), key_path.read_bytes()
        )


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """CA certificates, own certificate chain and private key, all PEM."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def host_of(service: str) -> str:
    """The DNS name in a service's certificate."""
    return f"{service}.{TRUST_DOMAIN}"


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Server credentials that demand a client certificate of our CA and follow renewed files."""
    material = files.read()
    state = [material]

    def config(current: TlsMaterial) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(current.key, current.certificate)], current.ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called on every handshake; half-renewed or unreadable files keep the old certificate.
        try:
            current = files.read()
        except (OSError, ValueError):
            return None
        if current == state[0]:
            return None
        state[0] = current
        return config(current)

    # The stubs do not know that None means no change, as grpc documents.
    return grpc.dynamic_ssl_server_credentials(
        config(material),
        fetch,  # type: ignore[arg-type]
        require_client_authentication=True,
    )


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Client credentials with our certificate, trusting our CA alone."""
    material = files.read()
    return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
