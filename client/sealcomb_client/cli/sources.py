"""`sealcomb sources`: connect to where documents are, and end it again."""

from __future__ import annotations

import sys
import time
import webbrowser
from pathlib import Path
from typing import Any

import click

from sealcomb.v1 import source_service_pb2 as pb
from sealcomb_client.cli.options import JsonObject
from sealcomb_client.cli.output import CommandFailed, printable
from sealcomb_client.cli.redirect import RedirectListener
from sealcomb_client.cli.session import Session, command
from sealcomb_client.errors import ApiError

_TYPE_COLUMNS = ("kind", "title", "oauth", "oauth_with_own_client", "device_flow", "token_form")
_COLUMNS = ("id", "kind", "settings", "state", "scopes_granted", "create_time")
_GRANT_S = 600.0
SETTINGS = click.option("--settings", type=JsonObject(), help="Of the source, as JSON; see `sources types`.")


def register(main: click.Group) -> None:
    """Adds the group."""
    main.add_command(sources)


def read_secret(path: Path | None, prompt: str) -> str:
    """A secret from a file, from standard input (-), or typed unseen: never from the command line."""
    if path is None:
        return str(click.prompt(prompt, hide_input=True, err=True))
    if path == Path("-"):
        text: str = sys.stdin.read()
        return text.strip()
    return path.read_text(encoding="utf-8").strip()


@click.group()
def sources() -> None:
    """Connect to where documents are: GitHub, Google Drive, and the like."""


@command(sources)
def types(session: Session) -> None:
    """List the kinds of sources and how each is connected. With --json also what can be set."""
    session.output.rows(session.client.sources.types(), _TYPE_COLUMNS)


@command(sources)
@click.argument("kind")
@SETTINGS
@click.option("--device", is_flag=True, help="For machines without a browser, where the provider can.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the redirect; 0 takes a free one.")
@click.option("--client-id", default="", help="Of an OAuth client of your own.")
@click.option(
    "--client-secret-file", type=click.Path(path_type=Path), help="Its secret; - for standard input."
)
@click.option(
    "--secret-file", type=click.Path(path_type=Path), help="For sources without OAuth; - for standard input."
)
def connect(
    session: Session,
    kind: str,
    settings: dict[str, Any] | None,
    device: bool,
    no_browser: bool,
    port: int,
    client_id: str,
    client_secret_file: Path | None,
    secret_file: Path | None,
) -> None:
    """Connect to a source: your browser opens, you agree, and the connection is there."""
    client_secret = read_secret(client_secret_file, "client secret") if client_secret_file else ""
    if _takes_secret(session, kind, secret_file, client_id):
        secret = read_secret(secret_file, "secret")
        begun = session.client.sources.begin(kind, settings, secret=secret)
        session.output.value(begun.connection)
        return
    if device:
        begun = session.client.sources.begin(
            kind, settings, device=True, client_id=client_id, client_secret=client_secret
        )
        session.output.value(_poll(session, begun))
        return
    with RedirectListener(kind, port) as listener:
        begun = session.client.sources.begin(
            kind,
            settings,
            redirect_uri=listener.uri,
            client_id=client_id,
            client_secret=client_secret,
        )
        if begun.HasField("connection"):
            session.output.value(begun.connection)
            return
        click.echo(f"open this address and agree:\n\n  {begun.authorization_url}\n", err=True)
        if not no_browser:
            webbrowser.open(begun.authorization_url)
        brought = listener.wait(begun.state, _GRANT_S)
    if brought is None:
        raise CommandFailed("nobody agreed within ten minutes; begin again", 7)
    connection = session.client.sources.complete(
        begun.state, code=brought.get("code", ""), iss=brought.get("iss", ""), error=brought.get("error", "")
    )
    _say_scopes(session, connection)
    session.output.value(connection)


@command(sources, "list")
def list_(session: Session) -> None:
    """List the connections."""
    session.output.rows(session.client.sources.list(), _COLUMNS)


@command(sources)
@click.argument("connection_id", metavar="ID")
@click.option("--delete-documents", is_flag=True, help="Also delete what was brought in through it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def disconnect(session: Session, connection_id: str, delete_documents: bool, yes: bool) -> None:
    """End a connection: its credential is destroyed, its ingestions stop, the provider is told."""
    if not yes:
        also = " and delete what came through it" if delete_documents else ""
        click.confirm(f"Disconnect {connection_id}{also}?", abort=True, err=True)
    done = session.client.sources.disconnect(connection_id, delete_documents=delete_documents)
    session.output.value(done)
    if done.revocation == pb.REVOCATION_FAILED:
        click.echo("the provider did not confirm: revoke the access in its own settings as well", err=True)


def _takes_secret(session: Session, kind: str, secret_file: Path | None, client_id: str) -> bool:
    """Whether the source is opened by a secret rather than by a grant."""
    if secret_file is not None:
        return True
    found = next((one for one in session.client.sources.types() if one.kind == kind), None)
    return found is not None and bool(found.token_form) and not found.oauth_with_own_client and not client_id


def _poll(session: Session, begun: pb.BeginConnectionResponse) -> pb.Connection:
    click.echo(f"open {begun.verification_uri} and enter {begun.user_code}", err=True)
    wait_s = begun.poll_interval.ToTimedelta().total_seconds() or 5.0
    end_s = time.monotonic() + _GRANT_S
    while time.monotonic() < end_s:
        time.sleep(wait_s)
        try:
            return session.client.sources.complete(begun.state, timeout_s=wait_s + 15)
        except ApiError as error:
            if error.reason != "AUTHORIZATION_PENDING":
                raise
    raise CommandFailed("nobody agreed within ten minutes; begin again", 7)


def _say_scopes(session: Session, connection: pb.Connection) -> None:
    asked, granted = set(connection.scopes_asked), set(connection.scopes_granted)
    more = granted - asked
    if granted and more:
        click.echo(f"granted beyond what was asked for: {printable(' '.join(sorted(more)))}", err=True)
