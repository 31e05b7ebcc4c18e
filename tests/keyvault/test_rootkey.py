"""The root key file: found whole, private and of this installation, or the process does not start (D26)."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.keyvault.kms import rootkey
from services.keyvault.kms.rootkey import RootKeyRefused, create_root_key, load_root_key

_KEY = bytes(range(32))
_PASSPHRASE = b"correct horse battery"


@pytest.fixture(autouse=True)
def _cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    # The cost is the point of it, but not of these tests.
    monkeypatch.setattr(rootkey, "_LOG2_N", 14)


def _write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_plain_root_key_is_32_private_bytes(tmp_path: Path) -> None:
    assert load_root_key(_write(tmp_path / "root.key", _KEY)) == _KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_root_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(RootKeyRefused, match="chmod 600"):
        load_root_key(_write(tmp_path / "root.key", _KEY, mode))


@pytest.mark.parametrize("content", [b"", _KEY[:31], _KEY + b"\n", b"SCRK", b"x" * 10_000])
def test_a_truncated_or_padded_root_key_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RootKeyRefused):
        load_root_key(_write(tmp_path / "root.key", content))


@pytest.mark.parametrize("content", [bytes(32), b"\xff" * 32, b"changeme" * 4, b"a" * 16 + b"b" * 16])
def test_a_default_root_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """D26."""
    with pytest.raises(RootKeyRefused, match="not random"):
        load_root_key(_write(tmp_path / "root.key", content))


def test_a_missing_root_key_is_refused_and_not_made(tmp_path: Path) -> None:
    """D26: a new key in the place of a lost one would bury all data."""
    with pytest.raises(RootKeyRefused, match="does not exist"):
        load_root_key(tmp_path / "root.key")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RootKeyRefused, match="cannot be read"):
        load_root_key(_write(tmp_path / "file", _KEY) / "root.key")


def test_a_root_key_is_made_once_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    create_root_key(path)
    first = load_root_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RootKeyRefused, match="already"):
        create_root_key(path)
    assert load_root_key(path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["root.key"]


def test_a_sealed_root_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    path, passphrase = tmp_path / "root.key", _write(tmp_path / "passphrase", _PASSPHRASE + b"\n")
    create_root_key(path, passphrase, lambda size: bytes(range(size)))
    assert load_root_key(path, passphrase) == _KEY
    assert _KEY not in path.read_bytes()
    with pytest.raises(RootKeyRefused, match="is sealed"):
        load_root_key(path)
    with pytest.raises(RootKeyRefused, match="does not open"):
        load_root_key(path, _write(tmp_path / "wrong", b"wrong horse battery"))
    with pytest.raises(RootKeyRefused, match="chmod 600"):
        load_root_key(path, _write(tmp_path / "open", _PASSPHRASE, 0o644))
    with pytest.raises(RootKeyRefused, match="shorter"):
        load_root_key(path, _write(tmp_path / "short", b"short"))
    with pytest.raises(RootKeyRefused, match="not sealed"):
        load_root_key(_write(tmp_path / "plain", _KEY), passphrase)


def test_no_changed_byte_of_a_sealed_root_key_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D7: the cost parameters included; a changed cost never asks for more memory than allowed."""
    path, passphrase = tmp_path / "root.key", _write(tmp_path / "passphrase", _PASSPHRASE)
    create_root_key(path, passphrase)
    sealed = path.read_bytes()
    monkeypatch.setattr(rootkey, "_LOG2_N_RANGE", range(13, 16))
    for at in [*range(30), 60, 100, len(sealed) - 1]:
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(RootKeyRefused):
            load_root_key(_write(path, bytes(changed)), passphrase)
    for cut in (4, 7, 8, 32, 40, len(sealed) - 1):
        with pytest.raises(RootKeyRefused):
            load_root_key(_write(path, sealed[:cut]), passphrase)


@pytest.mark.parametrize(
    "head", [(1, 30, 8, 1), (1, 17, 255, 1), (1, 17, 8, 200), (1, 1, 8, 1), (2, 17, 8, 1)]
)
def test_costs_out_of_bounds_are_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: tuple[int, ...]
) -> None:
    path, passphrase = tmp_path / "root.key", _write(tmp_path / "passphrase", _PASSPHRASE)
    create_root_key(path, passphrase)
    monkeypatch.setattr(rootkey, "Scrypt", None)
    with pytest.raises(RootKeyRefused, match="damaged"):
        load_root_key(_write(path, b"SCRK" + bytes(head) + path.read_bytes()[8:]), passphrase)


def test_a_new_file_has_the_published_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7914 with N = 2^17, r = 8, p = 1: 128 MiB for each guess."""
    monkeypatch.undo()
    path, passphrase = tmp_path / "root.key", _write(tmp_path / "passphrase", _PASSPHRASE)
    create_root_key(path, passphrase)
    assert path.read_bytes()[:8] == b"SCRK" + bytes([1, 17, 8, 1])
    assert len(load_root_key(path, passphrase)) == 32
