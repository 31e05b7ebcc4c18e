"""A service that was not there when keys were destroyed removes what they sealed once it is back (F8)."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.installation import Installation, running

_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation whose ingest is killed."""
    with running(tmp_path_factory.mktemp("installation")) as installation:
        yield installation


def _originals(installation: Installation, account: str) -> list[Path]:
    return [
        path for path in (installation.data / "ingest" / "objects" / account).rglob("*") if path.is_file()
    ]


def _delete_while_ingest_is_away(installation: Installation, *, tell: bool) -> str:
    """An account whose one collection was deleted while ingest stood still, which is then killed."""
    account = installation.new_account()
    account.client.collections.create("texts", embedder="default")
    account.client.documents.upload("texts", b"The drones are driven out in August.", name="drones.txt")
    assert _originals(installation, account.id)
    ingest = installation.pid_of("ingest")
    os.kill(ingest, signal.SIGSTOP)
    try:
        account.client.collections.delete("texts")
        if not tell:
            database = installation.data / "keyvault" / "keyvault.db"
            with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
                connection.execute("DELETE FROM destroyed")
    finally:
        os.kill(ingest, signal.SIGKILL)
    end = time.monotonic() + _WITHIN_S
    while installation.pid_of("ingest") in (0, ingest):
        assert time.monotonic() < end
        time.sleep(0.05)
    installation.wait_serving(_WITHIN_S)
    return account.id


def test_originals_of_a_collection_that_was_deleted_meanwhile_go(installation: Installation) -> None:
    account = _delete_while_ingest_is_away(installation, tell=True)
    end = time.monotonic() + _WITHIN_S
    while _originals(installation, account):
        assert time.monotonic() < end, "the originals are still there"
        time.sleep(0.1)


def test_without_the_list_they_stay(installation: Installation) -> None:
    """The twin: the event itself was lost with the process. What stays is sealed under no key."""
    account = _delete_while_ingest_is_away(installation, tell=False)
    time.sleep(2.0)
    assert _originals(installation, account)
