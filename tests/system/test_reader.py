"""What every service sealed, opened from its files by the reader that was written from the document alone.

Not one line of the product's own code opens anything here, but to be held against changed objects: each kind
with every byte flipped and every end cut off, and no object in the place of another (D3, D7, D23, D27).
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sealcomb.v1 import ingestion_service_pb2 as ingestion
from sealcomb_client import ApiError
from sealcomb_client.content import point
from services.common import ids
from services.common.sealing import DataKey, Identity, OpenFailed, key_id_of, open_sealed
from tests.attacks.canary import Canaries, files_below
from tests.common import cobblestone_reader as reader
from tests.system.installation import Account, Installation
from tests.system.test_sources import Site, _run, _settings, installed, site

__all__ = ["installed", "site"]
Place = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class _Object:
    """A sealed object as it was found, and the key that opens it."""

    kind: str
    key_id: bytes
    secret: bytes
    place: Place
    sealed: bytes

    def read(self) -> bytes:
        """What the independent reader makes of it."""
        return reader.read_object(self.secret, self.key_id, self.place, self.sealed)

    def product_opens(self) -> bool:
        """Whether the product opens it; no other error than its one."""
        key, message = DataKey(ids.from_bytes(self.key_id), self.secret), ""
        try:
            open_sealed(key, Identity(*self.place), self.sealed)
        except OpenFailed as error:
            message = error.message
        assert message in ("", OpenFailed().message)
        return not message


class _Files:
    """An installation's databases and objects."""

    def __init__(self, data: Path, keys: Path) -> None:
        self._data = data
        root = (keys / "root.key").read_bytes()
        self.root = hashlib.sha256(b"sealcomb root key id\0" + root).digest()[:16], root
        self.keys: dict[bytes, bytes] = {}

    def rows(self, service: str, query: str) -> list[tuple[Any, ...]]:
        """What a query gives."""
        connection = sqlite3.connect(f"file:{self._data / service / service}.db?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def stored(self, service: str, account: str) -> list[tuple[str, str, bytes]]:
        """An account's objects: collection, name, content."""
        folder = self._data / service / "objects" / account
        return [
            (path.parent.name, path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file()
        ]

    def open_keys(self, account: str) -> Iterator[_Object]:
        """The account's keys, each of which opens the next."""
        account_keys: dict[int, tuple[bytes, bytes]] = {}
        query = f"select version, handle from account_keys where account = '{account}'"
        for version, handle in self.rows("keyvault", query):
            found = _Object("account key", *self.root, (account, "account-key", "kek", "", version), handle)
            yield found
            account_keys[version] = found.read()[:16], found.read()[16:]
        query = f"select id, resource, purpose, version, wrapped from data_keys where account = '{account}'"
        for key_id, resource, purpose, version, wrapped in self.rows("keyvault", query):
            place = (account, resource, f"data-key:{purpose}", key_id, 0)
            found = _Object("data key", *account_keys[version], place, wrapped)
            yield found
            self.keys[reader.spelled(key_id)] = found.read()

    def object(self, kind: str, place: Place, sealed: bytes) -> _Object:
        """A sealed object under the key that it names."""
        key_id = reader.named_key(sealed)
        return _Object(kind, key_id, self.keys[key_id], place, sealed)


def _everything(files: _Files, account: str) -> Iterator[_Object]:
    yield from files.open_keys(account)
    mine = f"where account = '{account}'"
    for id_, descriptor, lsn, head in files.rows(
        "vectorstore", f"select id, descriptor, head_lsn, head from collections {mine}"
    ):
        yield files.object("descriptor", (account, "catalog", "descriptor", id_, 0), descriptor)
        yield files.object("head", (account, id_, "head", "", lsn), head)
        for at, sealed in files.rows(
            "vectorstore", f"select lsn, sealed from log where collection = '{id_}'"
        ):
            yield files.object("log", (account, id_, "log", "", at), sealed)
    for collection, name, sealed in files.stored("vectorstore", account):
        kind, _, rest = name.partition("-")
        if kind == "snap":
            yield files.object("snapshot", (account, collection, "snapshot", "", int(rest)), sealed)
        else:
            yield files.object(kind, (account, collection, kind, rest, 0), sealed)
    for collection, name, sealed in files.stored("ingest", account):
        yield files.object("original", (account, collection, "original", name, 0), sealed)
    for id_, collection, payload, cursor in files.rows(
        "ingest", f"select id, collection_id, payload, cursor from ingestions {mine}"
    ):
        yield files.object("ingestion", (account, collection, "ingestion", id_, 0), payload)
        if cursor is not None:
            yield files.object("cursor", (account, collection, "ingestion cursor", id_, 0), cursor)
        for tag, sealed in files.rows(
            "ingest", f"select tag, sealed from ingestion_items where ingestion_id = '{id_}'"
        ):
            place = (account, collection, "ingestion item", f"{id_}/{tag.hex()}", 0)
            yield files.object("item", place, sealed)
    for id_, version, description, credential in files.rows(
        "ingest", f"select id, version, description, credential from connections {mine}"
    ):
        yield files.object("description", (account, id_, "description", "", 0), description)
        yield files.object("credential", (account, id_, "credential", "", version), credential)
    for id_, name in files.rows("gateway", f"select id, sealed_name from accounts where id = '{account}'"):
        yield files.object("account name", (id_, "profile", "account-name", "", 0), name)
    for id_, sealed in files.rows("gateway", f"select id, sealed from tokens {mine}"):
        yield files.object("token", (account, "profile", "token", id_, 0), sealed)


@pytest.fixture(scope="module")
def account(installed: Installation, site: tuple[Site, Path]) -> Account:
    """An account that has something of everything."""
    made = installed.new_account("canary name of an account of tests")
    client = made.client
    client.tokens.create("canary label of a token of tests", scopes=["read"])
    client.collections.create("pages", embedder="default")
    client.documents.upload("pages", b"The canary text of a document.", name="canary.txt")
    connection = client.sources.begin("web", _settings(site[0])).connection
    assert _run(made, connection.id).state == ingestion.INGESTION_STATE_SUCCEEDED
    client.collections.create("vectors", dimension=1024)
    vector = [1.0] * 1024
    for batch in range(3):
        client.points.upsert("vectors", [point(f"{batch}-{number}", vector) for number in range(1000)])
    folder = installed.data / "vectorstore" / "objects" / made.id
    for _ in range(600):
        if list(folder.rglob("snap-*")):
            break
        threading.Event().wait(0.1)
    client.points.upsert("vectors", [point("later", vector)])
    return made


def test_audit_and_keys_hold_nothing_that_was_sent(installed: Installation, account: Account) -> None:
    """D18: bad input included; the twin is a planted token that the scanner finds."""
    client = account.client
    for name in ("canary bad name \n", "canary" * 200):
        with pytest.raises(ApiError):
            client.collections.create(name, dimension=0)
        with pytest.raises(ApiError):
            client.collections.get(f"{name} canary")
        with pytest.raises(ApiError):
            client.documents.get("pages", name)
    canaries = Canaries()
    for name in (
        "canary name of an account of tests",
        "canary label of a token of tests",
        "The canary text of a document.",
    ):
        canaries.text(name, name)
    canaries.text("token", account.connection.token)
    canaries.text("bad name", "canary" * 6)
    lines = "\n".join(client.audit.export())
    assert "key.create" in lines
    assert canaries.find(lines.encode(), "export") == []
    for path in files_below(installed.data / "keyvault"):
        assert canaries.find(path.read_bytes(), str(path)) == []
    # The installation's own secrets are in keyvault's files neither.
    root = (installed.keys / "root.key").read_bytes()
    assert not any(root in path.read_bytes() for path in files_below(installed.data))
    planted = lines + account.connection.token
    assert {leak.canary for leak in canaries.find(planted.encode(), "planted")} == {"token"}


@pytest.fixture(scope="module")
def found(installed: Installation, account: Account) -> list[_Object]:
    """Everything sealed of the account."""
    return list(_everything(_Files(installed.data, installed.keys), account.id))


_KINDS = {
    "account key", "data key", "descriptor", "head", "log", "snapshot", "segment", "original", "ingestion",
    "item", "description", "credential", "account name", "token",
}  # fmt: skip


def test_the_reader_opens_what_every_service_sealed(found: list[_Object], site: tuple[Site, Path]) -> None:
    plain = defaultdict(list)
    for each in found:
        plain[each.kind].append(each.read())
    assert set(plain) - {"cursor", "graph"} == _KINDS
    assert b"The canary text of a document." in plain["original"]
    assert b"canary name of an account of tests" in plain["account name"][0]
    assert any(b"canary label of a token of tests" in token for token in plain["token"])
    assert any(b'"vectors"' in descriptor for descriptor in plain["descriptor"])
    assert any(b"The canary text" in record for record in plain["log"])
    assert plain["snapshot"][0].startswith(b"SCPART01")
    assert all(segment.startswith(b"SCSEGM01") for segment in plain["segment"])
    assert any(site[0].url.encode() in description for description in plain["description"])
    assert {len(key) for key in plain["data key"]} == {32}


def test_no_object_of_any_kind_opens_changed_or_cut(found: list[_Object]) -> None:
    """D7, D23, D27: every byte and every end of a small one of each kind, the edges of the large ones."""
    for kind in sorted(_KINDS):
        smallest = min((each for each in found if each.kind == kind), key=lambda each: len(each.sealed))
        assert smallest.product_opens()
        size = len(smallest.sealed)
        # Chunks of a large one end at 75 + n * 16400.
        edges = {75 + chunk * 16400 + near for chunk in (1, 2, size // 16400) for near in (-1, 0, 1)}
        places = range(size) if size < 1500 else sorted({*range(0, 110, 3), *edges, size - 17, size - 1})
        for at in places:
            if at >= size:
                continue
            changed = bytearray(smallest.sealed)
            changed[at] ^= 0x80
            assert not replace(smallest, sealed=bytes(changed)).product_opens(), (kind, at)
            assert not replace(smallest, sealed=smallest.sealed[:at]).product_opens(), (kind, at)
        assert not replace(smallest, sealed=smallest.sealed + b"\0").product_opens()


def test_no_object_opens_in_the_place_of_another(found: list[_Object]) -> None:
    """D3: each small object in each other's place, under its own key and under the other's."""
    small = [each for each in found if len(each.sealed) < 4096]
    few = [each for kind in _KINDS for each in [one for one in small if one.kind == kind][:3]]
    assert len(few) > 20
    for source, target in itertools.permutations(few, 2):
        assert not replace(source, place=target.place).product_opens()
        assert not replace(target, sealed=source.sealed).product_opens()


def test_the_twin_opens_anything_anywhere_once_places_are_not_bound(
    found: list[_Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3's twin, on a real object: sealed again without its place, it opens in every other."""
    from services.common import sealing

    monkeypatch.setattr(sealing, "context_bytes", lambda _header, _identity: b"")
    source = next(each for each in found if each.kind == "token")
    key = DataKey(key_id_of(source.sealed), source.secret)
    moved = sealing.seal(key, Identity(*source.place), source.read())
    targets = [each.place for each in found if each.kind == "descriptor"]
    assert all(replace(source, sealed=moved, place=place).product_opens() for place in targets)
