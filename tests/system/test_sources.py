"""From a source to a search and away again, through the edge and with every real service in between."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sealcomb.v1 import ingestion_service_pb2 as ingestion
from sealcomb.v1 import source_service_pb2 as sources
from sealcomb_client import ApiError
from tests.attacks.canary import Canaries, files_below
from tests.certificates import TestCa, address, write_files
from tests.system.installation import Account, Installation, running

SECRET = "canary page text 5b0f7be1c2a94d13"


@dataclass
class Site:
    """A web site on loopback, of three pages that link to one another."""

    port: int = 0
    pages: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its front page."""
        return f"https://127.0.0.1:{self.port}/"


def page(title: str, text: str, *links: str) -> str:
    """A page of HTML."""
    anchors = " ".join(f'<a href="{link}">{link}</a>' for link in links)
    return (
        f"<!doctype html><html><head><title>{title}</title></head><body><p>{text}</p>{anchors}</body></html>"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Path]]:
    """The site, and the file of the authority that vouches for it."""
    folder = tmp_path_factory.mktemp("site")
    files = write_files(folder, TestCa.make().issue([address("127.0.0.1")]))
    made = Site()
    made.pages = {
        "/": page("Front", "About bees and their wax.", "/queen", "/comb"),
        "/queen": page("Queen", f"The queen lays eggs. {SECRET}"),
        "/comb": page("Comb", "Six sides make a cell, sealed with a wax cap."),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = made.pages.get(self.path)
            self.send_response(404 if found is None else 200)
            body = (found or "").encode()
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.folder / "cert.pem", files.folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made, files.folder / "ca.pem"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, site: tuple[Site, Path]) -> Iterator[Installation]:
    """An installation whose ingest may reach the site."""
    environ = {
        "SEALCOMB_EGRESS_ALLOW": f"127.0.0.1:{site[0].port}",
        "SEALCOMB_EGRESS_CA_FILE": str(site[1]),
        "SEALCOMB_LOG_LEVEL": "debug",
    }
    with running(tmp_path_factory.mktemp("installed"), environ=environ) as made:
        yield made


@pytest.fixture
def account(installed: Installation) -> Account:
    """A fresh account with a text collection."""
    made = installed.new_account()
    made.client.collections.create("pages", embedder="default")
    return made


def _settings(site: Site) -> dict[str, Any]:
    return {"start_urls": [site.url], "delay_s": 0, "sitemaps": False}


def _run(account: Account, connection_id: str, **fields: Any) -> ingestion.Ingestion:
    begun = account.client.ingestions.create("pages", connection_id=connection_id, **fields)
    return list(account.client.ingestions.watch(begun.id))[-1]


def test_a_site_is_brought_in_searched_and_forgotten(
    installed: Installation, account: Account, site: tuple[Site, Path]
) -> None:
    """E27, E29: with the real keyvault's grants and permits, and the real vectorstore's replacement."""
    connection = account.client.sources.begin("web", _settings(site[0])).connection
    assert connection.state == sources.CONNECTION_STATE_CONNECTED
    done = _run(account, connection.id)
    assert done.state == ingestion.INGESTION_STATE_SUCCEEDED, done
    assert done.counts.indexed == 3
    hits = account.client.search("pages", "who lays eggs?")
    assert SECRET in hits[0].text
    assert str(hits[0].metadata["url"]).endswith("/queen")
    canaries = Canaries()
    canaries.text("text", SECRET)
    canaries.text("settings", f"{site[0].url}          "[:30].strip() * 2)
    assert [
        leak for path in files_below(installed.data) for leak in canaries.find(path.read_bytes(), str(path))
    ] == []
    ended = account.client.sources.disconnect(connection.id, delete_documents=True)
    assert ended.deleting_documents == 3
    for _ in range(100):
        if not list(account.client.documents.list("pages")):
            break
        threading.Event().wait(0.1)
    assert not account.client.search("pages", "who lays eggs?")


def test_a_disabled_key_stops_ingestions_and_their_schedules(
    installed: Installation, account: Account, site: tuple[Site, Path]
) -> None:
    """B16, A1: the grant ends with the key, and a retry begins anew."""
    connection = account.client.sources.begin("web", _settings(site[0])).connection
    settings = {**_settings(site[0]), "delay_s": 2}
    begun = account.client.ingestions.create(
        "pages", connection_id=connection.id, settings=settings, cron="0 3 * * *"
    )
    account.client.keys.disable()
    with pytest.raises(ApiError) as caught:
        account.client.ingestions.get(begun.id)
    assert caught.value.reason == "KEY_DISABLED"
    account.client.keys.enable()
    for _ in range(600):
        found = account.client.ingestions.get(begun.id)
        if found.state == ingestion.INGESTION_STATE_FAILED:
            break
        threading.Event().wait(0.1)
    assert found.state == ingestion.INGESTION_STATE_FAILED
    assert found.reason in ("PERMIT_ENDED", "KEY_DISABLED")
    assert not found.HasField("next_run_time")
    account.client.ingestions.retry(begun.id)
    done = list(account.client.ingestions.watch(begun.id))[-1]
    assert done.state == ingestion.INGESTION_STATE_SUCCEEDED, done
    account.client.ingestions.cancel(begun.id)


def test_the_command_line_does_it_all(
    installed: Installation, account: Account, site: tuple[Site, Path], tmp_path: Path
) -> None:
    def sealcomb(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        connection = account.connection
        done = subprocess.run(
            [str(Path(sys.executable).with_name("sealcomb")), "--json", *arguments],
            env={
                "PATH": os.environ["PATH"],
                "SEALCOMB_ENDPOINT": connection.endpoint,
                "SEALCOMB_CA_FILE": str(connection.ca_file),
                "SEALCOMB_TOKEN": connection.token,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    kinds = {found["kind"]: found for found in sealcomb("sources", "types")}
    assert {"github", "google_drive", "web", "s3"} <= set(kinds)
    assert "start_urls" in kinds["web"]["settings_schema"]["properties"]
    made = sealcomb("sources", "connect", "web", "--settings", json.dumps(_settings(site[0])))[0]
    assert [one["id"] for one in sealcomb("sources", "list")] == [made["id"]]
    lines = sealcomb("ingest", "create", "pages", "--connection", made["id"])
    assert lines[-1]["state"] == "INGESTION_STATE_SUCCEEDED"
    id_ = lines[-1]["id"]
    assert sealcomb("ingest", "get", id_)[0]["counts"]["indexed"] == "3"
    assert [one["id"] for one in sealcomb("ingest", "list")] == [id_]
    assert sealcomb("ingest", "get", "--failed", id_) == []
    assert sealcomb("ingest", "cancel", id_)[0]["state"] == "INGESTION_STATE_SUCCEEDED"
    sealcomb("ingest", "retry", id_, code=6)
    ended = sealcomb("sources", "disconnect", made["id"], "--yes")[0]
    assert ended["revocation"] == "REVOCATION_NOT_SUPPORTED"
    sealcomb("sources", "disconnect", made["id"], "--yes", code=3)
