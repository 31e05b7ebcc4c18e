"""`sealcomb sources` and `ingest` against a fake edge: the redirect on loopback, secrets, progress."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
import grpc
import pytest
from click.testing import CliRunner, Result

from sealcomb.v1 import (
    ingestion_service_pb2,
    ingestion_service_pb2_grpc,
    source_service_pb2,
    source_service_pb2_grpc,
)
from sealcomb_client import Connection
from sealcomb_client.cli.main import main
from sealcomb_client.cli.redirect import RedirectListener
from services.standalone.pki import ensure_installation
from tests.client.fake_edge import TOKEN, Failure

STATE = "state-that-was-given"


@dataclass
class FakeSources(
    source_service_pb2_grpc.SourceServiceServicer, ingestion_service_pb2_grpc.IngestionServiceServicer
):
    """Answers what a test needs, and remembers what it was asked."""

    asked: list[Any] = field(default_factory=list)
    pending: int = 0
    watches: list[Failure | None] = field(default_factory=list)
    last_state: Any = ingestion_service_pb2.INGESTION_STATE_SUCCEEDED
    connection: Connection = field(default_factory=lambda: Connection(""))

    def ListSourceTypes(self, request: Any, context: Any) -> Any:
        response = source_service_pb2.ListSourceTypesResponse()
        response.types.add(
            kind="acme", title="Acme", oauth=True, oauth_with_own_client=True, token_form="a token"
        )
        response.types.add(kind="disk", title="Disk", token_form="USER:PASSWORD")
        return response

    def BeginConnection(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if request.secret:
            made = source_service_pb2.Connection(id="c1", kind=request.kind)
            return source_service_pb2.BeginConnectionResponse(connection_id="c1", connection=made)
        response = source_service_pb2.BeginConnectionResponse(
            connection_id="c1", state=STATE, authorization_url=f"https://provider.example/?state={STATE}"
        )
        if request.device:
            response.verification_uri, response.user_code = "https://provider.example/device", "WDJB-MJHT"
            response.poll_interval.FromMilliseconds(10)
        return response

    def CompleteConnection(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if self.pending:
            self.pending -= 1
            Failure(grpc.StatusCode.FAILED_PRECONDITION, "wait", "AUTHORIZATION_PENDING").abort(context)
        made = source_service_pb2.Connection(
            id="c1", kind="acme", scopes_asked=["read"], scopes_granted=["read", "write"]
        )
        return source_service_pb2.CompleteConnectionResponse(connection=made)

    def Disconnect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return source_service_pb2.DisconnectResponse(revocation=source_service_pb2.REVOCATION_FAILED)

    def CreateIngestion(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return ingestion_service_pb2.CreateIngestionResponse(
            ingestion=ingestion_service_pb2.Ingestion(id="i1")
        )

    def ResumeIngestion(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return ingestion_service_pb2.ResumeIngestionResponse(
            ingestion=ingestion_service_pb2.Ingestion(id="i1")
        )

    def WatchIngestion(self, request: Any, context: Any) -> Any:
        running = ingestion_service_pb2.INGESTION_STATE_RUNNING
        for done in range(3):
            counts = ingestion_service_pb2.IngestionCounts(found=3, indexed=done)
            yield ingestion_service_pb2.WatchIngestionResponse(
                ingestion=ingestion_service_pb2.Ingestion(id="i1", state=running, counts=counts)
            )
        failure = self.watches.pop() if self.watches else None
        if failure is not None:
            failure.abort(context)
        counts = ingestion_service_pb2.IngestionCounts(found=3, indexed=2, unchanged=1)
        yield ingestion_service_pb2.WatchIngestionResponse(
            ingestion=ingestion_service_pb2.Ingestion(id="i1", state=self.last_state, counts=counts)
        )


@contextmanager
def serving(folder: Path) -> Iterator[FakeSources]:
    """The fake on a free port."""
    installation = ensure_installation(folder / "keys")
    fake = FakeSources()  # type: ignore[abstract]  # what it does not answer is unimplemented
    server = grpc.server(ThreadPoolExecutor(4))
    source_service_pb2_grpc.add_SourceServiceServicer_to_server(fake, server)
    ingestion_service_pb2_grpc.add_IngestionServiceServicer_to_server(fake, server)
    pair = (
        (installation.edge_tls_dir / "key.pem").read_bytes(),
        (installation.edge_tls_dir / "cert.pem").read_bytes(),
    )
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    fake.connection = Connection(f"127.0.0.1:{port}", installation.edge_ca_file, TOKEN)
    try:
        yield fake
    finally:
        server.stop(0).wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeSources]:
    with serving(tmp_path_factory.mktemp("edge")) as fake:
        yield fake


@pytest.fixture
def fake(served: FakeSources) -> FakeSources:
    served.asked.clear()
    served.watches.clear()
    served.pending = 0
    served.last_state = ingestion_service_pb2.INGESTION_STATE_SUCCEEDED
    return served


def run(fake: FakeSources, *arguments: str, stdin: str = "", **variables: str) -> Result:
    environment = {
        **variables,
        "SEALCOMB_ENDPOINT": fake.connection.endpoint,
        "SEALCOMB_CA_FILE": str(fake.connection.ca_file),
        "SEALCOMB_TOKEN": fake.connection.token,
    }
    return CliRunner().invoke(main, list(arguments), env=environment, input=stdin)


def visit(url: str) -> int:
    """What a browser does with a redirect; the status of the answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        return status


def test_connecting_takes_the_redirect_and_nothing_else(
    fake: FakeSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5: what comes with another state, or to another path, is not the answer that is waited for."""
    statuses: list[int] = []
    visits: list[threading.Thread] = []

    def browser(_url: str) -> bool:
        uri = fake.asked[0].redirect_uri

        def go() -> None:
            statuses.append(visit(f"{uri}?{urlencode({'code': 'evil', 'state': 'another'})}"))
            statuses.append(visit(f"{uri}/other?{urlencode({'code': 'evil', 'state': STATE})}"))
            statuses.append(visit(f"{uri}?{urlencode({'code': 'good', 'state': STATE, 'iss': 'https://p'})}"))

        visits.append(threading.Thread(target=go, daemon=True))
        visits[0].start()
        return True

    monkeypatch.setattr(webbrowser, "open", browser)
    done = run(fake, "sources", "connect", "acme", "--settings", '{"folder": "x"}', "--json")
    assert done.exit_code == 0, done.output
    visits[0].join(10)
    assert statuses == [404, 404, 200]
    begun, completed = fake.asked
    assert begun.redirect_uri.startswith("http://127.0.0.1:")
    assert begun.redirect_uri.endswith("/callback/acme")
    assert dict(begun.settings) == {"folder": "x"}
    assert (completed.state, completed.code, completed.iss) == (STATE, "good", "https://p")
    assert "good" not in done.output
    # E12: what was granted beyond what was asked for is said.
    assert "write" in done.stderr


def test_a_listener_that_nobody_visits_gives_up() -> None:
    with RedirectListener("acme") as listener:
        assert listener.wait("state", 0.05) is None


def test_a_device_is_polled_until_the_user_has_agreed(fake: FakeSources) -> None:
    fake.pending = 2
    done = run(fake, "sources", "connect", "acme", "--device")
    assert done.exit_code == 0, done.output
    assert "WDJB-MJHT" in done.stderr
    assert len(fake.asked) == 4


def test_a_secret_comes_from_a_file_or_unseen_and_never_from_the_command_line(
    fake: FakeSources, tmp_path: Path
) -> None:
    """E1: arguments are seen by everybody on the machine."""
    path = tmp_path / "secret"
    path.write_text("user:password\n")
    for arguments, stdin in (
        (("--secret-file", str(path)), ""),
        (("--secret-file", "-"), "user:password\n"),
        ((), "user:password\n"),
    ):
        fake.asked.clear()
        done = run(fake, "sources", "connect", "disk", *arguments, stdin=stdin)
        assert done.exit_code == 0, done.output
        assert fake.asked[0].secret == "user:password"
        assert "password" not in done.stdout
    helped = run(fake, "sources", "connect", "--help").output + run(fake, "ingest", "create", "--help").output
    assert "--secret " not in helped
    assert "--token " not in helped


def test_a_revocation_that_was_not_confirmed_is_said(fake: FakeSources) -> None:
    done = run(fake, "sources", "disconnect", "c1", "--delete-documents", "--yes")
    assert done.exit_code == 0
    assert fake.asked[0].delete_documents
    assert "provider" in done.stderr
    assert run(fake, "sources", "disconnect", "c1", stdin="n\n").exit_code == 1
    assert len(fake.asked) == 1


def test_an_ingestion_is_followed_to_its_end(fake: FakeSources) -> None:
    fake.watches.append(Failure(grpc.StatusCode.ABORTED, "watch again", "CONFLICT"))
    done = run(fake, "ingest", "create", "notes", "--connection", "c1", "--cron", "0 3 * * *", "--json")
    assert done.exit_code == 0, done.output
    states = [json.loads(line)["state"] for line in done.stdout.splitlines()]
    assert states[-1] == "INGESTION_STATE_SUCCEEDED"
    assert fake.asked[0].schedule.cron == "0 3 * * *"
    assert fake.asked[0].idempotency_key


def test_a_person_sees_how_far_an_ingestion_is_and_a_program_does_not(fake: FakeSources) -> None:
    """On a terminal a bar is drawn again and again, on standard error; lines for programs stay alone."""
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}
    create = ("ingest", "create", "notes", "--connection", "c1")
    done = run(fake, *create, **terminal)
    assert done.exit_code == 0, done.output
    plain = click.unstyle(done.stderr)
    assert "succeeded" in plain
    assert "3/3" in plain
    assert "\u2501" in plain
    assert "\u2501" not in done.stdout
    quiet = run(fake, *create, "--json", **terminal)
    assert quiet.exit_code == 0
    assert quiet.stderr == ""
    assert [json.loads(line)["id"] for line in quiet.stdout.splitlines()] == ["i1"] * 4


def test_a_temporary_token_is_read_unseen_and_asked_for_again(fake: FakeSources) -> None:
    fake.last_state = ingestion_service_pb2.INGESTION_STATE_NEEDS_TOKEN
    done = run(
        fake, "ingest", "create", "notes", "--kind", "acme", "--token-file", "-", stdin="secret-token\n"
    )
    assert done.exit_code == 6
    assert "ingest resume i1" in done.stderr
    assert fake.asked[0].temporary_token == "secret-token"
    fake.last_state = ingestion_service_pb2.INGESTION_STATE_PARTIAL
    done = run(fake, "ingest", "resume", "i1", stdin="another\n")
    assert (done.exit_code, fake.asked[1].temporary_token) == (1, "another")
    assert "another" not in done.output
