"""`sealcomb sources connect` as a person does it: real browser, real provider, real edge and ingest."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealcomb.v1 import ingestion_service_pb2 as ingestion
from sealcomb.v1 import source_service_pb2 as sources
from tests.attacks.canary import files_below
from tests.attacks.ingest.rig import memory_of, secret
from tests.certificates import TestCa
from tests.ingest.oauth.providers import Provider, provider
from tests.system.installation import Account, Installation, command_line, running

BROWSER = Path(__file__).parents[1] / "ingest" / "oauth" / "browser"
CHROMIUM = Path("/usr/bin/chromium")
SETTINGS = json.dumps({"repositories": ["acme/handbook"]})
COMMAND = ("--json", "sources", "connect", "github", "--settings", SETTINGS)
PAGES = {"queen.md": "# Queen\n\nThe queen lays the eggs of the hive.", "comb.md": "Six sides make a cell."}


@dataclass
class World:
    """What stands around a person who connects."""

    installation: Installation
    account: Account
    github: Provider
    spki: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A provider that is a GitHub Enterprise server, and an installation that knows it."""
    assert CHROMIUM.exists(), "run scripts/install-test-packages.sh first"
    assert (BROWSER / "node_modules").is_dir(), "run `make node-packages` first"
    folder = tmp_path_factory.mktemp("browser")
    ca = TestCa.make()
    with provider(folder / "github", ca, ("github",), github=PAGES) as github:
        certificate = x509.load_pem_x509_certificate((folder / "github" / "cert.pem").read_bytes())
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        (folder / "ca.pem").write_bytes(ca.issue([]).ca)
        clients = {"github": {"client_id": github.client_id, "client_secret": github.client_secret}}
        (folder / "clients.json").write_text(json.dumps(clients))
        environ = {
            "SEALCOMB_OAUTH_CLIENTS_FILE": str(folder / "clients.json"),
            "SEALCOMB_SOURCE_API_URLS": json.dumps({"github": f"{github.issuer}/api/v3"}),
            "SEALCOMB_EGRESS_ALLOW": github.netloc,
            "SEALCOMB_EGRESS_CA_FILE": str(folder / "ca.pem"),
            "SEALCOMB_LOG_LEVEL": "debug",
            # What a temporary token leaves behind is overwritten with the beat of the leases.
            "SEALCOMB_INGESTION_LEASE_S": "4",
        }
        (folder / "installed").mkdir()
        with running(folder / "installed", environ=environ) as installation:
            account = installation.new_account()
            account.client.collections.create("handbook", embedder="default")
            spki = base64.b64encode(hashlib.sha256(key).digest()).decode()
            yield World(installation, account, github, spki)


def counted(provider: Provider, event: str, **fields: Any) -> int:
    """How often something has happened at a provider until now."""
    return asyncio.run(provider.counted(event, **fields))


def connect(world: World, folder: Path, answer: str) -> tuple[int, str, str, dict[str, Any]]:
    """What the command line did, and what the browser showed at the end."""
    connection = world.account.connection
    # Files, not pipes: the browser inherits them, and may live longer than the command.
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("sealcomb")), *COMMAND],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                # In the background, as a browser with windows is.
                "BROWSER": f"node {BROWSER / 'browse.mjs'} %s &",
                "BROWSE_EXECUTABLE": str(CHROMIUM),
                "BROWSE_PROFILE": str(folder / "profile"),
                "BROWSE_SPKI": world.spki,
                "BROWSE_ANSWER": answer,
                "BROWSE_OUT": str(folder / "seen.json"),
                "SEALCOMB_ENDPOINT": connection.endpoint,
                "SEALCOMB_CA_FILE": str(connection.ca_file),
                "SEALCOMB_TOKEN": connection.token,
            },
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            timeout=60,
            check=False,
        )
    end_s = time.monotonic() + 30
    while not (folder / "seen.json").exists():
        assert time.monotonic() < end_s, (folder / "err").read_text()
        time.sleep(0.05)
    said = (folder / "out").read_text(), (folder / "err").read_text()
    return done.returncode, *said, json.loads((folder / "seen.json").read_text())


def test_a_person_connects_by_clicking_and_ends_it_again(world: World, tmp_path: Path) -> None:
    """E5, E6, E8, E12: the whole dance; and after disconnecting the source's own log shows nothing more."""
    code, out, err, seen = connect(world, tmp_path, "agree")
    assert code == 0, err
    assert "Done" in seen["text"]
    # No page of ours is told where the person came from, and the code is in nothing that is printed.
    assert set(seen["referers"]) <= {"", f"{world.github.issuer}/"}
    made = json.loads(out)
    assert made["state"] == "CONNECTION_STATE_CONNECTED"
    assert made["scopes_granted"] == made["scopes_asked"] == ["repo"]
    client = world.account.client
    begun = client.ingestions.create("handbook", connection_id=made["id"])
    assert list(client.ingestions.watch(begun.id))[-1].counts.indexed == 2
    assert "lays the eggs" in client.search("handbook", "who lays eggs?")[0].text
    calls = counted(world.github, "api", status=200)
    ended = client.sources.disconnect(made["id"], delete_documents=True)
    assert ended.revocation == sources.REVOCATION_REVOKED
    assert counted(world.github, "api", status=200) == calls > 0
    assert counted(world.github, "api", method="DELETE", status=204) == 1


def test_a_person_who_declines_leaves_no_connection(world: World, tmp_path: Path) -> None:
    """E12: no is an answer, said as such; and nothing is kept."""
    before = counted(world.github, "grant.success")
    code, _out, err, seen = connect(world, tmp_path, "decline")
    assert code != 0
    assert "access was not granted" in err
    assert "not granted" in seen["text"]
    assert counted(world.github, "grant.success") == before
    assert not list(world.account.client.sources.list())


def test_no_file_of_the_installation_holds_the_clients_secret(world: World) -> None:
    """E1: the operator's client is in the operator's own file alone."""
    found = [
        path
        for path in files_below(world.installation.folder)
        if world.github.client_secret.encode() in path.read_bytes()
    ]
    assert found == []


def test_no_process_of_ours_keeps_a_temporary_token(world: World) -> None:
    """E1: through the edge and every real service, once other calls have come over the same connection.

    The receive buffer of a connection that is open is gRPC's own; and Envoy's buffers are Envoy's.
    """
    token = secret("temporarytoken")
    client = world.account.client
    settings = {"repositories": ["acme/handbook"]}
    begun = client.ingestions.create("handbook", kind="github", settings=settings, temporary_token=token)
    done = list(client.ingestions.watch(begun.id))[-1]
    assert (done.state, done.reason) == (ingestion.INGESTION_STATE_NEEDS_TOKEN, "CREDENTIAL_REFUSED")
    assert counted(world.github, "api", status=401) > 0, "the token has not come as far as the source"
    names = {f"services.{name}.main" for name in ("gateway", "ingest", "keyvault", "vectorstore")}
    pids = [pid for pid in world.installation.pids() if command_line(pid)[-1] in names]
    assert len(pids) == len(names)
    end_s = time.monotonic() + 60
    while sum(memory_of(pid).count(token.encode()) for pid in pids):
        assert time.monotonic() < end_s, "a copy was left"
        for _ in range(100):
            client.ingestions.get(begun.id)
