"""The files and names of mutual TLS between the services; services.common.rpc makes credentials of them.

A service is `spiffe://sealcomb.internal/<service>` and `<service>.sealcomb.internal`. Only the
installation's own CA is trusted, and nothing below TLS 1.3 succeeds (see services/__init__.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.common.secretfiles import read_secret_file

_KEY_BYTES_MAX = 64 * 1024
TRUST_DOMAIN = "sealcomb.internal"
SPIFFE_PREFIX = f"spiffe://{TRUST_DOMAIN}/"


class CertificateUnreadable(ValueError):
    """What should be a certificate is none."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A folder with `ca.pem`, `cert.pem` (leaf, then intermediates) and `key.pem`, read when asked."""

    folder: Path

    def read(self) -> TlsMaterial:
        """The files' present content.

        Raises ValueError for a key that others may read, or one that is not the certificate's, as in the
        middle of a renewal.
        """
        material = TlsMaterial(
            (self.folder / "ca.pem").read_bytes(),
            (self.folder / "cert.pem").read_bytes(),
            read_secret_file(self.folder / "key.pem", _KEY_BYTES_MAX),
        )
        certificate = x509.load_pem_x509_certificate(material.certificate)
        try:
            key = load_pem_private_key(material.key, None)
        except TypeError:
            raise ValueError("key.pem is encrypted; store it without a passphrase") from None
        if certificate.public_key() != key.public_key():
            raise ValueError("key.pem is not the key of cert.pem; put both in place")
        return material


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """CA certificates, own certificate chain and private key, all PEM."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def host_of(service: str) -> str:
    """The DNS name in a service's certificate."""
    return f"{service}.{TRUST_DOMAIN}"


def certificate_facts(pem: bytes) -> tuple[int, float]:
    """A certificate's serial number and when it expires, seconds since the Unix epoch."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CertificateUnreadable from error
    return certificate.serial_number, certificate.not_valid_after_utc.timestamp()


def expiry_s(path: Path) -> float:
    """When the certificate in a file expires, seconds since the Unix epoch; 0 where there is none to read."""
    try:
        return certificate_facts(path.read_bytes())[1]
    except (OSError, CertificateUnreadable):
        return 0.0
