"""The keys of an installation: made once, finished after a crash, renewed in time, never replaced."""

from __future__ import annotations

import datetime as dt
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from services.common.methods import SERVICES
from services.common.tls import TlsFiles
from services.standalone import pki
from services.standalone.pki import InstallationDamaged, ensure_installation


class FakeClock:
    """A clock that stands still until told."""

    def __init__(self, now: dt.datetime) -> None:
        self.now = now

    def now_s(self) -> float:
        return self.now.timestamp()

    def monotonic_s(self) -> float:
        return 0.0


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    ensure_installation(tmp_path / "keys")
    before = snapshot(tmp_path / "keys")
    ensure_installation(tmp_path / "keys")
    assert snapshot(tmp_path / "keys") == before


def test_secret_files_are_closed_to_others(tmp_path: Path) -> None:
    """C9: keys are readable by their owner alone."""
    ensure_installation(tmp_path / "keys")
    public = {"ca.pem", "edge-ca.pem", "cert.pem", "gateway.pub.pem", "keyvault.pub.pem"}
    for path in snapshot(tmp_path / "keys"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o644 if path.name in public else 0o600), path.name
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_named_by_one_spiffe_id_and_one_host(tmp_path: Path, service: str) -> None:
    installation = ensure_installation(tmp_path / "keys")
    TlsFiles(installation.tls_dir(service)).read()
    leaf = certificate(installation.tls_dir(service) / "cert.pem")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://sealcomb.internal/{service}"
    ]
    assert names.get_values_for_type(x509.DNSName) == [f"{service}.sealcomb.internal"]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    leaf.verify_directly_issued_by(certificate(installation.ca_file))


def test_the_edge_has_an_authority_of_its_own_that_cannot_vouch_for_services(tmp_path: Path) -> None:
    installation = ensure_installation(tmp_path / "keys")
    edge = certificate(installation.edge_tls_dir / "cert.pem")
    edge.verify_directly_issued_by(certificate(installation.edge_ca_file))
    usages = edge.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert installation.edge_ca_file.read_bytes() != installation.ca_file.read_bytes()


def test_the_edge_certificate_is_accepted_for_localhost_and_loopback_addresses(tmp_path: Path) -> None:
    installation = ensure_installation(tmp_path / "keys")
    for host in ("localhost", "127.0.0.1", "::1"):
        assert handshake(installation, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(installation, "elsewhere.example")


def handshake(installation: pki.Installation, host: str) -> bool:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = installation.edge_tls_dir
    server_side.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    client_side = ssl.create_default_context(cafile=installation.edge_ca_file)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        done = 0
        for side in (client, server):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
        if done == 2:
            return True
    return False


def test_a_certificate_is_renewed_once_less_than_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    installation = ensure_installation(tmp_path / "keys", clock=FakeClock(start))
    path = installation.tls_dir("ingest") / "cert.pem"
    first = path.read_bytes()
    ensure_installation(tmp_path / "keys", clock=FakeClock(start + dt.timedelta(days=59)))
    assert path.read_bytes() == first
    ensure_installation(tmp_path / "keys", clock=FakeClock(start + dt.timedelta(days=61)))
    assert path.read_bytes() != first
    assert installation.ca_file.read_bytes() == (installation.tls_dir("ingest") / "ca.pem").read_bytes()


def test_certificates_are_valid_for_a_clock_that_is_a_little_behind(tmp_path: Path) -> None:
    """C12: certificates are backdated by five minutes."""
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    installation = ensure_installation(tmp_path / "keys", clock=FakeClock(start))
    leaf = certificate(installation.tls_dir("gateway") / "cert.pem")
    assert leaf.not_valid_before_utc == start - dt.timedelta(minutes=5)


def test_a_crash_at_any_write_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_installation(tmp_path / "whole")
    writes = len(snapshot(tmp_path / "whole"))
    original = pki.write_file
    for crash_at in range(writes):
        left = crash_at

        def dying(path: Path, content: bytes, mode: int = 0o600) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            original(path, content, mode)

        folder = tmp_path / f"keys-{crash_at}"
        monkeypatch.setattr(pki, "write_file", dying)
        with pytest.raises(KeyboardInterrupt):
            ensure_installation(folder)
        monkeypatch.setattr(pki, "write_file", original)
        kept = snapshot(folder)
        installation = ensure_installation(folder)
        after = snapshot(folder)
        roots = {folder / "root.key", folder / "token.pepper"} | set((folder / "ca").iterdir())
        assert all(after[path] == content for path, content in kept.items() if path in roots)
        for service in SERVICES:
            assert pki._leaf_is_good(
                installation.tls_dir(service),
                pki._ensure_authority(installation.ca_file, "", dt.datetime.now(dt.UTC)),
                pki.service_names(service),
                dt.datetime.now(dt.UTC),
            )


def test_a_missing_authority_key_is_an_error_and_not_a_new_authority(tmp_path: Path) -> None:
    ensure_installation(tmp_path / "keys")
    (tmp_path / "keys" / "ca" / "ca.key.pem").unlink()
    with pytest.raises(InstallationDamaged, match=r"ca\.key\.pem is missing"):
        ensure_installation(tmp_path / "keys")


def test_an_authority_that_does_not_fit_its_key_is_an_error(tmp_path: Path) -> None:
    installation = ensure_installation(tmp_path / "keys")
    installation.ca_file.write_bytes(installation.edge_ca_file.read_bytes())
    with pytest.raises(InstallationDamaged, match="does not fit"):
        ensure_installation(tmp_path / "keys")


def test_a_leaf_of_another_authority_is_replaced(tmp_path: Path) -> None:
    """C7: what another authority issued under the same name is not kept."""
    installation = ensure_installation(tmp_path / "keys")
    now = dt.datetime.now(dt.UTC)
    other = pki.make_authority("Sealcomb services CA", now)
    cert, key = other.issue(pki.service_names("ingest"), now)
    folder = installation.tls_dir("ingest")
    pki.write_file(folder / "key.pem", key)
    pki.write_file(folder / "cert.pem", cert)
    ensure_installation(tmp_path / "keys")
    certificate(folder / "cert.pem").verify_directly_issued_by(certificate(installation.ca_file))


def test_an_authority_cannot_issue_further_authorities(tmp_path: Path) -> None:
    installation = ensure_installation(tmp_path / "keys")
    for path in (installation.ca_file, installation.edge_ca_file):
        basic = certificate(path).extensions.get_extension_for_class(x509.BasicConstraints).value
        assert (basic.ca, basic.path_length) == (True, 0)


def test_writing_a_file_leaves_no_part_behind_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "file"
    pki.write_file(target, b"old")
    with pytest.raises(TypeError):
        pki.write_file(target, "not bytes")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"
