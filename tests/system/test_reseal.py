"""Data keys replaced in a running installation: all is sealed anew, old keys go, nothing is lost (D20)."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pytest

from sealcomb_client import ApiError
from sealcomb_client.content import point
from tests.system.installation import Account, Installation, running

_WITHIN_S = 120.0
_Result = TypeVar("_Result")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation whose services hold data keys for a second only."""
    environ = {"SEALCOMB_DATA_KEY_TTL_S": "1"}
    with running(tmp_path_factory.mktemp("installation"), environ=environ) as installation:
        yield installation


def _data_keys(installation: Installation, account: str) -> dict[str, str]:
    database = installation.data / "keyvault" / "keyvault.db"
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        rows = connection.execute(
            "SELECT id, state FROM data_keys WHERE account=? AND purpose IN ('collection', 'documents')",
            (account,),
        )
        return dict(rows.fetchall())


def _ask(installation: Installation, statement: str, *values: str) -> None:
    """Runs a statement as somebody who can write keyvault's database would."""
    database = installation.data / "keyvault" / "keyvault.db"
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute(statement, values)


def _an_hour_passes(installation: Installation, account: str) -> None:
    """Makes the account's replaced keys look as old as they must be to go."""
    older = "UPDATE data_keys SET aged_us = aged_us - 3600000000 WHERE account=? AND aged_us > 0"
    _ask(installation, older, account)


def _reseal(account: Account) -> int:
    """One pass over everything; how many originals were sealed anew."""
    account.client.collections.reseal("vectors")
    account.client.collections.reseal("texts")
    return sum(page.resealed for page in account.client.documents.reseal("texts"))


def _download(account: Account, document: str) -> bytes:
    into = io.BytesIO()
    account.client.documents.download("texts", document, into)
    return into.getvalue()


def _kill_services(installation: Installation) -> None:
    for service in ("vectorstore", "ingest"):
        killed = installation.pid_of(service)
        os.kill(killed, signal.SIGKILL)
        end = time.monotonic() + _WITHIN_S
        while installation.pid_of(service) in (0, killed):
            assert time.monotonic() < end
            time.sleep(0.05)
    installation.wait_serving(_WITHIN_S)


def _eventually(call: Callable[[], _Result]) -> _Result:
    """What the call returns once the service that it needs is back."""
    end = time.monotonic() + _WITHIN_S
    while True:
        try:
            return call()
        except ApiError as error:
            if error.code != "UNAVAILABLE" or time.monotonic() > end:
                raise
        time.sleep(0.2)


def test_everything_moves_to_new_data_keys_and_the_old_ones_are_destroyed(quick: Installation) -> None:
    account = quick.new_account()
    client = account.client
    client.collections.create("vectors", dimension=2)
    client.points.upsert("vectors", [point("a", [1, 0])])
    client.collections.create("texts", embedder="default")
    originals = {f"{n}.txt": f"Bees of hive {n} seal their cells.".encode() for n in range(3)}
    documents = {
        name: client.documents.upload("texts", body, name=name).id for name, body in originals.items()
    }
    old = _data_keys(quick, account.id)
    assert set(old.values()) == {"current"}
    key = client.keys.rotate(new_data_keys=True)
    assert (key.version, key.aged_data_keys) == (2, len(old))
    # Here the owner's own calls do it.
    _ask(quick, "DELETE FROM reseals")
    assert _reseal(account) == 3
    assert client.keys.get().aged_data_keys == len(old)
    _an_hour_passes(quick, account.id)
    # A service that is killed now has lost nothing, and the next pass goes on.
    _kill_services(quick)
    end = time.monotonic() + _WITHIN_S
    while client.keys.get().aged_data_keys:
        assert time.monotonic() < end
        time.sleep(1.0)
        assert _eventually(lambda: _reseal(account)) == 0
    new = _data_keys(quick, account.id)
    assert not new.keys() & old.keys()
    _kill_services(quick)
    assert [found.id for found in _eventually(lambda: client.points.get("vectors", ["a"]))] == ["a"]
    for name, id_ in documents.items():
        assert _eventually(partial(_download, account, id_)) == originals[name]
    assert {hit.document_name for hit in client.search("texts", "bees seal cells")} == set(originals)


def test_old_keys_go_without_a_call_of_their_owner(quick: Installation) -> None:
    """The services seal anew under the leave that the rotation took, also after they were killed."""
    account = quick.new_account()
    client = account.client
    client.collections.create("vectors", dimension=2)
    client.points.upsert("vectors", [point("a", [1, 0])])
    client.collections.create("texts", embedder="default")
    document = client.documents.upload("texts", b"Drones leave in August.", name="drones.txt").id
    old = _data_keys(quick, account.id)
    assert client.keys.rotate(new_data_keys=True).aged_data_keys == len(old)
    _kill_services(quick)
    _an_hour_passes(quick, account.id)
    end = time.monotonic() + _WITHIN_S
    while _data_keys(quick, account.id).keys() & old.keys():
        assert time.monotonic() < end
        # The next look of the background work is due now.
        _ask(quick, "UPDATE reseals SET next_us = 0")
        time.sleep(1.0)
    assert client.keys.get().aged_data_keys == 0
    assert [found.id for found in _eventually(lambda: client.points.get("vectors", ["a"]))] == ["a"]
    assert _eventually(partial(_download, account, document)) == b"Drones leave in August."


def test_it_wants_the_keys_scope(quick: Installation) -> None:
    account = quick.new_account()
    account.client.collections.create("texts", embedder="default")
    made = account.client.tokens.create("writer", ["read", "write"])
    writer = quick.client(replace(account.connection, token=made.token))
    for call in (
        lambda: writer.collections.reseal("texts"),
        lambda: list(writer.documents.reseal("texts")),
        lambda: writer.keys.rotate(new_data_keys=True),
    ):
        with pytest.raises(ApiError) as refusal:
            call()
        assert refusal.value.code == "PERMISSION_DENIED"
