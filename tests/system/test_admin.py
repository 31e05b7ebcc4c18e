"""`sealcomb-admin` over a real installation: what it says, a backup under load, and the way back."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sealcomb_client import ApiError, Client
from sealcomb_client.content import point
from services.keyvault.backup import BackupRefused
from services.standalone import pki
from services.standalone.admin.backup import prove, read_backup
from services.standalone.config import SERVICE_ORDER, Layout, StandaloneSettings
from tests.postgres import Postgres, running_postgres
from tests.system.installation import Account, Installation, running

NOTE = b"The queen of hive seven is marked with a blue dot."


def admin(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command on the installation of a folder."""
    command = [str(Path(sys.executable).with_name("sealcomb-admin")), *arguments]
    environment = {"PATH": os.environ["PATH"], "SEALCOMB_DATA_DIR": str(folder / "data")}
    # As an operator with the usual mask, which lets others read.
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=90, check=False, umask=0o022
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    """The JSON lines that were printed."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def with_token(installation: Installation, account: Account) -> Client:
    """A client of an account that was made before."""
    return installation.client(replace(installation.connection, token=account.connection.token))


def test_status_accounts_and_checks_of_a_running_installation(
    installation: Installation, tmp_path: Path
) -> None:
    account = installation.new_account()
    account.client.collections.create("vectors", dimension=2)
    account.client.points.upsert("vectors", [point("a", [1, 0]), point("b", [0, 1])])
    folder = installation.folder
    done = admin(folder, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert {(row["service"], row["state"], row["fault"]) for row in lines(done)} == {
        (service, "serving", "") for service in ("keyvault", "vectorstore", "ingest", "gateway")
    }
    (row,) = (row for row in lines(admin(folder, "--json", "accounts")) if row["account"] == account.id)
    assert (row["state"], row["key"]) == ("active", "enabled v1")
    assert (row["collections"], row["points"]) == (1, 2)
    done = admin(folder, "verify", "--json", "--account", account.id)
    assert done.returncode == 0, done.stderr
    assert {row["what"]: row["looked_at"] for row in lines(done)}["audit chains"] == 1
    missing = admin(tmp_path, "status")
    assert missing.returncode == 5
    assert "there is no installation" in missing.stderr


def write_until(stop: threading.Event, client: Client, written: list[str]) -> None:
    """Uploads notes, and counts those that were acknowledged."""
    while not stop.is_set():
        name = f"note-{len(written)}"
        client.documents.upload("notes", f"Cell {name} is sealed.".encode(), name=name)
        written.append(name)


# Two starts of everything: on a busy machine that takes a while.
@pytest.mark.timeout(400)
def test_a_backup_under_load_brings_back_every_original_and_nothing_that_was_deleted(tmp_path: Path) -> None:
    """G15: taken while documents come in, put back on an empty machine, with the ledger that is there now."""
    written: list[str] = []
    with running(tmp_path) as before:
        stays, gone = before.new_account("stays"), before.new_account("gone")
        for account in (stays, gone):
            account.client.collections.create("notes", embedder="default")
            account.client.documents.upload("notes", NOTE, name="queen")
        stop = threading.Event()
        writing = threading.Thread(target=write_until, args=(stop, stays.client, written))
        writing.start()
        try:
            known = len(written)
            done = admin(tmp_path, "backup", str(tmp_path / "backup"))
        finally:
            stop.set()
            writing.join()
        assert done.returncode == 0, done.stderr
        assert len(written) > known, "nothing was written meanwhile"
        assert "stop it first" in admin(tmp_path, "restore", str(tmp_path / "backup")).stderr
        before.client().accounts.delete(gone.id, confirm=gone.id)
    status = admin(tmp_path, "status")
    assert status.returncode == 7
    assert "not well: keyvault, vectorstore, ingest, gateway" in status.stderr
    for path in files(tmp_path / "backup"):
        assert NOTE[:20] not in path.read_bytes(), path
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    with running_postgres(tmp_path / "server") as server:
        is_moved(tmp_path, server)
    occupied = admin(tmp_path, "restore", str(tmp_path / "backup"))
    assert (occupied.returncode, "has a database already" in occupied.stderr) == (5, True)

    shutil.move(tmp_path / "data", tmp_path / "lost")
    damaged_parts_are_refused(tmp_path)
    # Of a bucket that is still there: an original that was sealed anew since.
    original = next((tmp_path / "backup" / "objects" / "ingest" / stays.id).rglob("*/*"))
    kept = tmp_path / "data/ingest/objects" / original.relative_to(tmp_path / "backup/objects/ingest")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(b"under a later key")
    done = admin(tmp_path, "restore", "--json", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    assert lines(done)[0]["destroyed_again"] == 1
    assert admin(tmp_path, "verify").returncode == 0
    with running(tmp_path) as after:
        client = with_token(after, stays)
        documents = {document.name: document.id for document in client.documents.list("notes")}
        assert {"queen", *written[:known]} <= set(documents)
        for name, document in documents.items():
            into = io.BytesIO()
            client.documents.download("notes", document, into)
            assert into.getvalue() == (NOTE if name == "queen" else f"Cell {name} is sealed.".encode())
        assert client.search("notes", "which queen is blue?")[0].document_name == "queen"
        with pytest.raises(ApiError):
            with_token(after, gone).search("notes", "which queen is blue?")


def is_moved(folder: Path, server: Postgres) -> None:
    """What is in the folder is moved to PostgreSQL and to other folders, with all that it has."""
    (folder / "settings").mkdir()
    layout = Layout(
        StandaloneSettings(data_dir=folder / "data"),
        pki.Installation(folder / "data.keys"),
        dict.fromkeys(SERVICE_ORDER, 1),
    )
    for service in SERVICE_ORDER:
        said = layout.environment(service, {}) | {"SEALCOMB_DATABASE_URL": server.make_database(service)}
        if "SEALCOMB_OBJECTS_URL" in said:
            said["SEALCOMB_OBJECTS_URL"] = f"file:{folder}/moved/{service}"
        text = "".join(f"{name}={value}\n" for name, value in said.items())
        (folder / "settings" / f"{service}.env").write_text(text)
    there = ("--json", "--settings", str(folder / "settings"))
    done = admin(folder, "migrate", "--json", str(folder / "move"), "--to", str(folder / "settings"))
    assert done.returncode == 0, done.stderr
    assert lines(done)[0]["objects"] == len(files(folder / "moved")) > 0
    verified = admin(folder, *there, "verify")
    assert verified.returncode == 0, verified.stderr
    assert all(row["looked_at"] for row in lines(verified) if row["what"] in ("audit chains", "collections"))
    assert lines(admin(folder, *there, "accounts")) == lines(admin(folder, "--json", "accounts")) != []
    again = admin(folder, "migrate", str(folder / "again"), "--to", str(folder / "settings"))
    assert (again.returncode, "has a database already" in again.stderr) == (5, True)


def files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def damaged_parts_are_refused(folder: Path) -> None:
    """The twin: one byte of each kind of part. What was found under way keeps half of it from starting."""
    found = files(folder / "backup")
    parts = {path.name: path for path in found if "objects" not in path.parts}
    # One of many, and the last to be damaged.
    parts["object"] = next(path for path in found if "objects" in path.parts)
    for path in parts.values():
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if whole else b"x")
        if "objects" not in path.parts:
            with pytest.raises(BackupRefused):
                prove(read_backup(folder / "backup"))
            path.write_bytes(whole)
    done = admin(folder, "restore", str(folder / "backup"))
    assert done.returncode == 5
    assert "is not what was written" in done.stderr
    assert not (folder / "data" / "keyvault" / "keyvault.db").exists()
    assert "half put back" in start_refused(folder)
    path.write_bytes(whole)


def start_refused(folder: Path) -> str:
    """What a start that does not succeed says."""
    command = [str(Path(sys.executable).with_name("sealcomb-standalone")), "--no-demo"]
    environment = {"PATH": os.environ["PATH"], "SEALCOMB_DATA_DIR": str(folder / "data")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done.stderr
