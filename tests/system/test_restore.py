"""The restore drill of docs/backup.md through a real installation (D26, G15)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sealcomb_client import ApiError, Client
from sealcomb_client.content import point
from tests.system.installation import Account, Installation, running


def _keyvault(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("sealcomb-standalone")), "--keyvault", *arguments]
    environment = {"PATH": os.environ["PATH"], "SEALCOMB_DATA_DIR": str(folder / "data")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def _with_token(installation: Installation, account: Account) -> Client:
    return installation.client(replace(installation.connection, token=account.connection.token))


def test_a_drill_brings_back_what_was_there_and_nothing_that_was_deleted(tmp_path: Path) -> None:
    """D26: all parts of a backup put back; a database that is put back by hand is refused at the start."""
    copy = tmp_path / "keyvault.copy"
    with running(tmp_path) as before:
        stays, gone = before.new_account("stays"), before.new_account("gone")
        for account in (stays, gone):
            account.client.collections.create("vectors", dimension=2)
            account.client.points.upsert("vectors", [point("a", [1, 0])])
        done = _keyvault(tmp_path, "--backup", str(copy))
        assert done.returncode == 0, done.stderr
        refused = _keyvault(tmp_path, "--restore", str(copy))
        assert refused.returncode == 1
        assert "stop it first" in refused.stderr
    shutil.copytree(tmp_path / "data", tmp_path / "backup")
    with running(tmp_path) as later:
        later.client().accounts.delete(gone.id, confirm=gone.id)

    shutil.move(tmp_path / "data", tmp_path / "lost")
    shutil.copytree(tmp_path / "backup", tmp_path / "data")
    assert "is older than the ledger's mark" in _keyvault(tmp_path).stderr
    done = _keyvault(tmp_path, "--restore", str(copy))
    assert done.returncode == 0, done.stderr
    assert "deleted again" in done.stderr
    with running(tmp_path) as after:
        hits = _with_token(after, stays).points.query("vectors", [1, 0])
        assert [hit.id for hit in hits] == ["a"]
        with pytest.raises(ApiError) as caught:
            _with_token(after, gone).points.query("vectors", [1, 0])
        assert caught.value.reason in {"ACCOUNT_NOT_FOUND", "COLLECTION_NOT_FOUND", "TOKEN_INVALID"}
