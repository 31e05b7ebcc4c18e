"""The keys and certificates of one installation, made at first start and renewed at later ones.

Two authorities are made: one for the services among themselves, one for the edge, so that what a
client trusts can never vouch for a service. Every file is written beside and renamed, so a crash
leaves the old file or the new one, and a second run finishes what the first began. Nothing here
ever replaces a root key, a pepper or an authority that exists: all data hangs on them.

    <keys_dir>/ca/{ca,edge-ca}.{pem,key.pem}        authorities, ECDSA P-256, ten years
    <keys_dir>/tls/<service>/{ca,cert,key}.pem      leaf certificates, ninety days
    <keys_dir>/tls/edge/{cert,key}.pem              the edge's own certificate
    <keys_dir>/context/{gateway,keyvault}.key.pem   Ed25519 keys that sign contexts and permits
    <keys_dir>/context/trust/*.pub.pem              their public halves
    <keys_dir>/root.key, token.pepper               32 random bytes each
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.common.clock import Clock, SystemClock
from services.common.methods import SERVICES
from services.common.tls import SPIFFE_PREFIX, host_of

CONTEXT_ISSUERS = ("gateway", "keyvault")
_CA_LIFE = dt.timedelta(days=3650)
_LEAF_LIFE = dt.timedelta(days=90)
_RENEW_BELOW = _LEAF_LIFE / 3
# A peer's clock may be a little behind ours.
_BACKDATE = dt.timedelta(minutes=5)
_SECRET_BYTES = 32


class InstallationDamaged(Exception):
    """Part of the keys is missing or does not fit the rest; only a backup of the keys folder helps."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where an installation keeps its keys."""

    keys_dir: Path

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that the services trust."""
        return self.keys_dir / "ca" / "ca.pem"

    @property
    def edge_ca_file(self) -> Path:
        """The certificate of the authority that clients trust."""
        return self.keys_dir / "ca" / "edge-ca.pem"

    @property
    def edge_tls_dir(self) -> Path:
        """The folder with the edge's certificate and key."""
        return self.keys_dir / "tls" / "edge"

    @property
    def context_trust_dir(self) -> Path:
        """The folder with the public keys of those who sign contexts."""
        return self.keys_dir / "context" / "trust"

    @property
    def root_key_file(self) -> Path:
        """The file provider's root key."""
        return self.keys_dir / "root.key"

    @property
    def token_pepper_file(self) -> Path:
        """The key of the token hashes."""
        return self.keys_dir / "token.pepper"

    def tls_dir(self, service: str) -> Path:
        """The folder with a service's ca.pem, cert.pem and key.pem."""
        return self.keys_dir / "tls" / service

    def context_key_file(self, issuer: str) -> Path:
        """The private key with which `gateway` or `keyvault` signs."""
        return self.keys_dir / "context" / f"{issuer}.key.pem"


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that can issue leaf certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The authority's certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        names: list[x509.GeneralName],
        now: dt.datetime,
        *,
        common_name: str = "",
        life: dt.timedelta = _LEAF_LIFE,
        usages: tuple[x509.ObjectIdentifier, ...] = (
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ),
    ) -> tuple[bytes, bytes]:
        """A new certificate for these names and its private key, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
        builder = (
            _builder(subject, self.certificate.subject, key.public_key(), now - _BACKDATE, now + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        if names:
            # RFC 5280: critical where the subject is empty.
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def make_authority(name: str, now: dt.datetime) -> Authority:
    """A new authority that may issue leaf certificates and no further authorities."""
    return _self_signed(name, ec.generate_private_key(ec.SECP256R1()), now)


def service_names(service: str) -> list[x509.GeneralName]:
    """The names in a service's certificate: its SPIFFE id and its DNS name."""
    return [x509.UniformResourceIdentifier(SPIFFE_PREFIX + service), x509.DNSName(host_of(service))]


def ensure_installation(
    keys_dir: Path, *, clock: Clock | None = None, edge_hosts: Sequence[str] = ()
) -> Installation:
    """Makes what is missing, renews what ends soon, leaves all else; raises InstallationDamaged.

    May be called again at any time, also after a crash in the middle. The edge's certificate names this
    machine's loopback and `edge_hosts`.
    """
    now = dt.datetime.fromtimestamp((clock or SystemClock()).now_s(), dt.UTC).replace(microsecond=0)
    installation = Installation(keys_dir)
    for part in ("ca", "tls/edge", "context/trust", *(f"tls/{service}" for service in SERVICES)):
        (keys_dir / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    keys_dir.chmod(0o700)
    inner = _ensure_authority(installation.ca_file, "Sealcomb services CA", now)
    for service in SERVICES:
        folder = installation.tls_dir(service)
        _ensure_leaf(folder, inner, service_names(service), now)
        _ensure_copy(folder / "ca.pem", inner.pem)
    outer = _ensure_authority(installation.edge_ca_file, "Sealcomb edge CA", now)
    _ensure_leaf(installation.edge_tls_dir, outer, _edge_names(edge_hosts), now, server_only=True)
    for issuer in CONTEXT_ISSUERS:
        _ensure_signing_pair(installation, issuer)
    for path in (installation.root_key_file, installation.token_pepper_file):
        _ensure_secret(path)
    return installation


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replaces a file durably: all of the new content or all of the old."""
    temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _ensure_authority(path: Path, name: str, now: dt.datetime) -> Authority:
    key_path = path.with_name(path.stem + ".key.pem")
    if not key_path.exists():
        if path.exists():
            raise InstallationDamaged(f"{key_path.name} is missing; restore the keys folder")
        write_file(key_path, _key_pem(ec.generate_private_key(ec.SECP256R1())))
    key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InstallationDamaged(f"{key_path.name} is not an ECDSA key; restore the keys folder")
    if not path.exists():
        write_file(path, _self_signed(name, key, now).pem, 0o644)
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    if certificate.public_key() != key.public_key():
        raise InstallationDamaged(f"{path.name} does not fit its key; restore the keys folder")
    if certificate.not_valid_after_utc <= now:
        raise InstallationDamaged(
            f"{path.name} has expired; make a new installation or replace the authority"
        )
    return Authority(certificate, key)


def _ensure_leaf(
    folder: Path,
    authority: Authority,
    names: list[x509.GeneralName],
    now: dt.datetime,
    *,
    server_only: bool = False,
) -> None:
    if _leaf_is_good(folder, authority, names, now):
        return
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    usages = (server,) if server_only else (server, client)
    certificate, key = authority.issue(names, now, usages=usages)
    # A crash in between leaves a pair that does not fit, which the next start sees and replaces.
    write_file(folder / "key.pem", key)
    write_file(folder / "cert.pem", certificate, 0o644)


def _leaf_is_good(
    folder: Path, authority: Authority, names: list[x509.GeneralName], now: dt.datetime
) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
        certificate.verify_directly_issued_by(authority.certificate)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (FileNotFoundError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        certificate.public_key() == key.public_key()
        and list(found) == names
        and certificate.not_valid_before_utc <= now
        and certificate.not_valid_after_utc - now >= _RENEW_BELOW
    )


def _ensure_copy(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        write_file(path, content, 0o644)


def _ensure_signing_pair(installation: Installation, issuer: str) -> None:
    path = installation.context_key_file(issuer)
    if not path.exists():
        write_file(path, _key_pem(ed25519.Ed25519PrivateKey.generate()))
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _ensure_copy(installation.context_trust_dir / f"{issuer}.pub.pem", public)


def _ensure_secret(path: Path) -> None:
    if not path.exists():
        write_file(path, secrets.token_bytes(_SECRET_BYTES))


def _self_signed(name: str, key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> Authority:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key(), now - _BACKDATE, now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: dt.datetime,
    end: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _edge_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    loopback = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
    names = (x509.DNSName(host) for host in ("localhost", *hosts))
    return [*names, *(x509.IPAddress(address) for address in loopback)]


def _key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
