"""CANARY: nothing that a caller sent is readable in any file that the system wrote.

One scenario plants a unique secret of every class and goes through success, refusal, kill -9, off switch,
deletion and restart. Then every file is searched: data, keys, logs, the home and temporary folders of all
processes, and files that are open but deleted. The scanner is proved first, on planted leaks.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import secrets
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import pytest

from sealcomb_client import ApiError, Client, Connection
from sealcomb_client.content import point
from sealcomb_client.values import vector_of
from tests.attacks.canary import Canaries, Leak, deleted_files, files_below, process_texts
from tests.system.installation import Account, Installation, running

DIMENSION = 96


def secret(name: str) -> str:
    """A unique text that survives lower-casing and stemming whole, and is no word of anything."""
    return f"zq{name}qz" + "".join(secrets.choice("bcdfghjklmnpqrtvwxz") for _ in range(32))


def random_vector() -> list[float]:
    raw = secrets.token_bytes(2 * DIMENSION)
    return [value / 40_000 for value in struct.unpack(f"<{DIMENSION}h", raw)]


def unit(vector: list[float]) -> list[float]:
    length = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector]


CLASSES = (
    "document text",
    "public text",
    "document name",
    "metadata field",
    "metadata value",
    "principal",
    "collection name",
    "point id",
    "point text",
    "point metadata",
    "token label",
    "account name",
    "query",
    "idempotency key",
    "refused text",
    "deleted text",
    "wrong token",
)


@dataclass
class Scenario:
    """What was planted, where it ran, and everything else that could have leaked it."""

    canaries: Canaries
    installation: Installation
    replies: list[str]
    audit: str


def plant(installation: Installation) -> Scenario:
    """Sends a secret of every class through everything that the system does."""
    canaries = Canaries()
    text = {name: canaries.text(name, secret(name.replace(" ", ""))) for name in CLASSES}
    vector = canaries.vector("vector", random_vector())
    canaries.vector("unit vector", unit(vector))
    canaries.vector("query vector", query := random_vector())

    account = installation.new_account(text["account name"])
    canaries.text("account token", account.connection.token.split("_")[-1])
    client = account.client
    made = client.tokens.create(text["token label"], ["read", "write"])
    canaries.text("created token", made.token.split("_")[-1])
    rotated = client.tokens.rotate(made.info.id)
    canaries.text("rotated token", rotated.token.split("_")[-1])

    texts, vectors = text["collection name"], "vectors"
    client.collections.create(texts, embedder="default", idempotency_key=text["idempotency key"])
    client.collections.create(vectors, dimension=DIMENSION)
    metadata = {text["metadata field"]: text["metadata value"]}
    for format_, body in documents(text["document text"]).items():
        client.documents.upload(
            texts,
            body,
            name=f"{text['document name']}.{format_}",
            metadata=metadata,
            principals=[text["principal"]],
        )
    client.points.upsert(
        vectors,
        [point(text["point id"], vector, metadata={"m": text["point metadata"]}, text=text["point text"])],
    )
    hits = client.search(texts, text["query"], as_principals=[text["principal"]])
    client.search(texts, text["document text"], mode="lexical", as_principals=[text["principal"]])
    assert text["document text"] in hits[0].text
    client.points.query(vectors, query, filter={"eq": {"field": "m", "value": text["point metadata"]}})
    client.documents.upload(texts, text["public text"].encode(), name="public.txt")
    stored = client.points.query(texts, [1.0] + [0.0] * 383, top_k=1, with_vectors=True)[0]
    canaries.vector("embedding", vector_of(stored.vector_f32))

    replies = refuse(account, text, texts, vectors)
    doomed = client.documents.upload(texts, text["deleted text"].encode(), name="doomed.txt")
    client.documents.delete(texts, doomed.id)
    # Enough writes for snapshots and merges, if there are any.
    for start in range(0, 3000, 500):
        client.points.upsert(
            vectors, [point(f"{n}", unit(random_vector())) for n in range(start, start + 500)]
        )
    client.points.delete(vectors, [text["point id"]])
    client.points.upsert(vectors, [point(text["point id"], vector, text=text["point text"])])
    client.keys.disable()
    replies += [reply_of(lambda: client.search(texts, text["query"]))]
    client.keys.enable()
    client.keys.rotate()
    for service in ("vectorstore", "ingest", "keyvault", "gateway"):
        os.kill(installation.pid_of(service), signal.SIGKILL)
        installation.wait_serving()
        client.search(texts, text["query"])
    return Scenario(canaries, installation, replies, "\n".join(client.audit.export()))


def documents(text: str) -> dict[str, bytes]:
    """The secret in several formats."""
    mail = f"From: a@b.example\nTo: c@d.example\nSubject: {text}\nMIME-Version: 1.0\n\n{text}\n"
    return {
        "txt": f"First line.\n\n{text}\n".encode(),
        "md": f"# Title {text}\n\nSome words about {text} and more.\n".encode(),
        "html": f"<html><head><title>{text}</title></head><body><p>{text}</p></body></html>".encode(),
        "eml": mail.encode(),
    }


def refuse(account: Account, text: dict[str, str], texts: str, vectors: str) -> list[str]:
    """Calls that fail with a secret in their hands; what the caller is told."""
    client = account.client
    refused = text["refused text"]
    wrong = replace(account.connection, token=f"sealcomb_acc_{text['wrong token']}")
    calls = (
        lambda: client.documents.upload(texts, b"%PDF-1.7 " + refused.encode(), name="a.pdf"),
        lambda: client.documents.upload(texts, b"PK\x03\x04" + refused.encode(), name="a.docx"),
        lambda: client.documents.upload("no collection", refused.encode(), name="a.txt"),
        lambda: client.documents.upload(texts, refused.encode(), name=refused * 100),
        lambda: client.points.upsert(vectors, [point("a", [1.0], text=refused)]),
        lambda: client.points.upsert(vectors, [point("a" * 1000, random_vector(), text=refused)]),
        lambda: client.search(texts, refused * 1000),
        lambda: client.search(refused, "anything"),
        lambda: client.points.query(
            vectors, random_vector(), filter={"eq": {"field": "m", "value": {"a": refused}}}
        ),
        lambda: client.tokens.create(refused * 100, ["read"]),
        lambda: _client_search(wrong, texts),
    )
    return [reply_of(call) for call in calls]


def _client_search(connection: Connection, texts: str) -> None:
    with Client(connection) as client:
        client.search(texts, "anything")


def reply_of(call: Callable[[], object]) -> str:
    """The error that a call gets, all of it; empty if it works."""
    try:
        call()
    except ApiError as error:
        return repr((error.code, error.message, error.reason, error.fields, error.request_id))
    return ""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    with running(tmp_path_factory.mktemp("canary"), environ={"SEALCOMB_LOG_LEVEL": "debug"}) as installation:
        yield plant(installation)


def scan(scenario: Scenario) -> list[Leak]:
    """Every leak in files, deleted files, command lines and environments."""
    leaks: list[Leak] = []
    for path in files_below(scenario.installation.folder):
        leaks += scenario.canaries.find(
            path.read_bytes(), str(path.relative_to(scenario.installation.folder))
        )
    pids = scenario.installation.pids()
    for where, data in [*deleted_files(pids), *process_texts(pids)]:
        leaks += scenario.canaries.find(data, where)
    return leaks


FORMS = {
    "raw": lambda s: s.encode(),
    "base64": lambda s: base64.b64encode(s.encode()),
    "base64 after one byte": lambda s: base64.b64encode(b"1" + s.encode()),
    "base64 after two bytes": lambda s: base64.b64encode(b"22" + s.encode() + b"4"),
    "base64url": lambda s: base64.urlsafe_b64encode(b"\xff\xfe" + s.encode()),
    "hex": lambda s: s.encode().hex().encode(),
    "upper hex": lambda s: s.encode().hex().upper().encode(),
    "percent": lambda s: "".join(f"%{byte:02X}" for byte in s.encode()).encode(),
    "url": lambda s: quote(s).encode(),
    "json escapes": lambda s: "".join(f"\\u{ord(c):04x}" for c in s).encode(),
    "json": lambda s: json.dumps({"text": s}).encode(),
    "utf-16": lambda s: s.encode("utf-16-le"),
    "utf-16 big": lambda s: s.encode("utf-16-be"),
    "gzip": lambda s: gzip.compress(b"head " * 50 + s.encode()),
    "first half": lambda s: s[:20].encode(),
    "second half": lambda s: s[-20:].encode(),
    "lower case": lambda s: s.lower().encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_scanner_finds_a_leak_of_every_form(form: str) -> None:
    """The twin: a pass means nothing unless every form of leak is found."""
    canaries = Canaries()
    text = canaries.text("text", secret("planted").upper() if form == "lower case" else secret("planted"))
    leaks = canaries.find(secrets.token_bytes(1000) + FORMS[form](text) + secrets.token_bytes(1000), "here")
    assert [leak.canary for leak in leaks]


@pytest.mark.parametrize("form", ["float32", "float64", "base64", "hex", "json"])
def test_the_scanner_finds_a_vector_of_every_form(form: str) -> None:
    canaries = Canaries()
    vector = canaries.vector("vector", random_vector())
    packed = struct.pack(f"<{DIMENSION}f", *vector)
    single = struct.unpack(f"<{DIMENSION}f", packed)
    planted = {
        "float32": packed,
        "float64": struct.pack(f"<{DIMENSION}d", *vector),
        "base64": base64.b64encode(packed),
        "hex": packed.hex().encode(),
        "json": json.dumps(single).encode(),
    }[form]
    assert canaries.find(secrets.token_bytes(99) + planted, "here")


def test_the_scanner_finds_nothing_in_noise() -> None:
    canaries = Canaries()
    canaries.text("text", secret("planted"))
    canaries.vector("vector", random_vector())
    assert canaries.find(secrets.token_bytes(1_000_000), "noise") == []


def test_the_scanner_sees_files_that_are_open_but_deleted(tmp_path: Path) -> None:
    canaries = Canaries()
    text = canaries.text("text", secret("planted"))
    with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
        file.write(text.encode())
        file.flush()
        Path(file.name).unlink()
        found = [leak for where, data in deleted_files([os.getpid()]) for leak in canaries.find(data, where)]
        assert found
        Path(file.name).touch()


def test_nothing_that_was_sent_is_in_any_file(scenario: Scenario) -> None:
    """B3, E25, F6, F10, G5, G14, G15: no file, log, temporary file, command line or environment."""
    assert len(scenario.canaries.names()) >= 20
    assert scan(scenario) == []


def test_a_leak_planted_in_the_same_folders_is_found(scenario: Scenario) -> None:
    """The twin: the same scan of the same installation sees one line too many in a log."""
    name = "document text"
    path = scenario.installation.data / "logs" / "ingest.log"
    with path.open("ab") as log:
        log.write(scenario.canaries.forms(name)["base64+1 head"] + b"\n")
    try:
        assert {leak.canary for leak in scan(scenario)} == {name}
    finally:
        content = path.read_bytes()
        path.write_bytes(content.replace(scenario.canaries.forms(name)["base64+1 head"], b"-"))


def test_no_answer_to_a_refused_call_repeats_what_was_sent(scenario: Scenario) -> None:
    """A17: error texts carry no content and nothing of the inside."""
    assert all(scenario.replies)
    shown = "\n".join(scenario.replies)
    assert scenario.canaries.find(shown.encode(), "replies") == []
    assert not [word for word in ("Traceback", "sqlite", str(scenario.installation.folder)) if word in shown]


def test_the_audit_log_holds_no_content(scenario: Scenario) -> None:
    assert scenario.audit
    assert scenario.canaries.find(scenario.audit.encode(), "audit") == []


def test_nothing_is_left_after_the_end(scenario: Scenario) -> None:
    """Runs last: stopping writes snapshots, if anything; they are sealed too."""
    assert scenario.installation.stop() == 0
    leaks: list[Leak] = []
    for path in files_below(scenario.installation.folder):
        leaks += scenario.canaries.find(path.read_bytes(), path.name)
    assert leaks == []
