"""Certificates for tests: an own CA that also makes what the real one never would."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from services.common.tls import TlsFiles, TlsMaterial, host_of

_DAY = datetime.timedelta(days=1)


def spiffe(service: str) -> x509.GeneralName:
    """A service's SPIFFE id as a subject alternative name."""
    return x509.UniformResourceIdentifier(f"spiffe://sealcomb.internal/{service}")


def dns(name: str) -> x509.GeneralName:
    """A DNS subject alternative name."""
    return x509.DNSName(name)


def address(text: str) -> x509.GeneralName:
    """An IP subject alternative name."""
    return x509.IPAddress(ipaddress.ip_address(text))


@dataclass(frozen=True)
class TestCa:
    """A certificate authority that signs whatever a test asks for."""

    __test__ = False

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> TestCa:
        """A new authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        builder = _builder(name, name, key, datetime.timedelta(0), 10 * _DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    def issue(
        self,
        names: Sequence[x509.GeneralName],
        *,
        common_name: str = "",
        starts_in: datetime.timedelta = datetime.timedelta(minutes=-5),
        lasts: datetime.timedelta = _DAY,
    ) -> TlsMaterial:
        """A leaf certificate with exactly these subject alternative names."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = _builder(x509.Name(attributes), self.certificate.subject, key, starts_in, lasts)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=not attributes)
        certificate = builder.sign(self.key, hashes.SHA256())
        return TlsMaterial(
            self.certificate.public_bytes(Encoding.PEM),
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    def service_files(self, folder: Path, service: str) -> TlsFiles:
        """A folder of TLS files as a service has them."""
        return write_files(folder / service, self.issue([spiffe(service), dns(host_of(service))]))


def write_files(folder: Path, material: TlsMaterial) -> TlsFiles:
    """Writes the material as a service's TLS folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.pem").write_bytes(material.ca)
    (folder / "cert.pem").write_bytes(material.certificate)
    key = folder / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(material.key)
    return TlsFiles(folder)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    starts_in: datetime.timedelta,
    lasts: datetime.timedelta,
) -> x509.CertificateBuilder:
    start = datetime.datetime.now(datetime.UTC) + starts_in
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lasts)
    )
