"""The keyvault process with a database of another time: refused, accepted, backed up, restored (D26)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.keyvault.test_main import _assert_refused, _Install, install

__all__ = ["install"]


def test_an_older_database_is_refused_until_it_is_accepted(install: _Install) -> None:
    """D26: by one line that names the way out; the next start needs no flag."""
    with install.serving() as started:
        started.terminate()
        assert started.wait(20) == 0
    data, old = install.folder / "data", install.folder / "old"
    shutil.copytree(data, old)
    with install.serving() as started:
        started.terminate()
        assert started.wait(20) == 0
    shutil.rmtree(data)
    shutil.copytree(old, data)
    _assert_refused(install.run(), "--accept-older-database")
    with install.serving("--accept-older-database") as started:
        started.kill()
        started.wait(20)
    with install.serving():
        pass


def test_a_changed_ledger_is_refused(install: _Install) -> None:
    with install.serving() as started:
        started.terminate()
        assert started.wait(20) == 0
    ledger = install.keys.root_key_file.with_name("destroyed.ledger")
    assert ledger.stat().st_mode & 0o777 == 0o600
    ledger.write_bytes(b"{}\n")
    _assert_refused(install.run(), "line 1 of the ledger does not hold")
    ledger.with_name("destroyed.ledger.mark").write_bytes(b"{}")
    ledger.write_bytes(b"")
    _assert_refused(install.run(), "mark is damaged")


def test_a_ledger_beside_the_database_is_refused(install: _Install) -> None:
    inside = install.folder / "data" / "ledger"
    _assert_refused(install.run(SEALCOMB_LEDGER_FILE=str(inside)), "the ledger lies in the database's folder")
    assert not inside.exists()
    missing = install.folder / "missing" / "ledger"
    _assert_refused(install.run(SEALCOMB_LEDGER_FILE=str(missing)), "set SEALCOMB_LEDGER_FILE")


def test_a_running_keyvault_is_backed_up_and_never_restored(install: _Install, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with install.serving() as started:
        assert install.run("--backup", str(copy)).returncode == 0
        _assert_refused(install.run("--backup", str(copy)), "File exists")
        _assert_refused(install.run("--restore", str(copy)), "another keyvault holds the ledger")
        started.terminate()
        assert started.wait(20) == 0
    done = install.run("--restore", str(copy))
    assert done.returncode == 0, done.stderr
    with install.serving():
        pass


@pytest.mark.parametrize(("flag", "why"), [("--backup", "no database"), ("--restore", "cannot be put back")])
def test_what_cannot_be_done_is_said_in_one_line(install: _Install, flag: str, why: str) -> None:
    _assert_refused(install.run(flag, str(install.folder / "none" / "x")), why)
