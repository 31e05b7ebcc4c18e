"""Files that hold secrets: whose they may be, and who may read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.secretfiles import SecretFileOpen, check_closed, read_secret_file

_US = 10_001


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_our_own_closed_file_is_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    path.chmod(mode)
    assert read_secret_file(path, 100) == b"secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_our_own_file_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """C9: a secret that others may read or change is not used."""
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    path.chmod(mode)
    with pytest.raises(SecretFileOpen, match="key is open to others; chmod 600 it"):
        read_secret_file(path, 100)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440, 0o400])
def test_roots_file_may_be_read_by_our_group(mode: int) -> None:
    check_closed("key", mode, 0, _US)


@pytest.mark.parametrize("mode", [0o660, 0o644, 0o641, 0o650, 0o604])
def test_roots_file_that_more_than_our_group_reads_is_refused(mode: int) -> None:
    """C9, G5: what an orchestrator mounts is no exception."""
    with pytest.raises(SecretFileOpen, match="chmod 640"):
        check_closed("key", mode, 0, _US)


def test_a_strangers_file_is_refused_whatever_its_mode() -> None:
    with pytest.raises(SecretFileOpen, match="another user"):
        check_closed("key", 0o600, _US + 1, _US)


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(1000))
    path.chmod(0o600)
    assert len(read_secret_file(path, 10)) == 10
