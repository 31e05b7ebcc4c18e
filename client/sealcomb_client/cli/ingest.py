"""`sealcomb ingest`: bring documents from a source into a collection, and follow it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sealcomb.v1 import ingestion_service_pb2 as pb
from sealcomb_client.cli.output import CommandFailed
from sealcomb_client.cli.session import Session, command
from sealcomb_client.cli.sources import SETTINGS, read_secret
from sealcomb_client.errors import ApiError

_WATCH_AGAIN = ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_FAILURES_MAX = 20
_COLUMNS = ("id", "collection", "kind", "state", "reason", "counts", "next_run_time", "create_time")
_FAILED_COLUMNS = ("name", "reason", "attempts", "url")
_TOKEN_FILE = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="A temporary token, never stored; - for standard input.",
)
_WATCH = click.option("--watch/--no-watch", default=True, show_default=True, help="Follow it to its end.")


def register(main: click.Group) -> None:
    """Adds the group."""
    main.add_command(ingest)


@click.group()
def ingest() -> None:
    """Bring documents from a source into a text collection."""


@command(ingest)
@click.argument("collection")
@click.option("--connection", "connection_id", default="", help="Id of a connection.")
@click.option("--kind", default="", help="Of the source, with a temporary token instead of a connection.")
@_TOKEN_FILE
@SETTINGS
@click.option("--cron", default="", help='Again and again, such as "0 3 * * *".')
@click.option("--time-zone", default="", help="Of the schedule, such as Europe/Berlin.")
@_WATCH
def create(
    session: Session,
    collection: str,
    connection_id: str,
    kind: str,
    token_file: Path | None,
    settings: dict[str, Any] | None,
    cron: str,
    time_zone: str,
    watch: bool,
) -> None:
    """Begin an ingestion from a connection, or with a temporary token that is never stored."""
    token = "" if connection_id else read_secret(token_file, "temporary token")
    begun = session.client.ingestions.create(
        collection,
        connection_id=connection_id,
        temporary_token=token,
        kind=kind,
        settings=settings,
        cron=cron,
        time_zone=time_zone,
    )
    _follow(session, begun, watch)


@command(ingest, "list")
def list_(session: Session) -> None:
    """List ingestions."""
    session.output.rows(session.client.ingestions.list(), _COLUMNS)


@command(ingest)
@click.argument("ingestion_id", metavar="ID")
@click.option("--failed", is_flag=True, help="The items that were set aside, with the reason of each.")
def get(session: Session, ingestion_id: str, failed: bool) -> None:
    """Describe an ingestion."""
    if failed:
        session.output.rows(session.client.ingestions.failed_items(ingestion_id), _FAILED_COLUMNS)
    else:
        session.output.value(session.client.ingestions.get(ingestion_id))


@command(ingest)
@click.argument("ingestion_id", metavar="ID")
def watch(session: Session, ingestion_id: str) -> None:
    """Follow an ingestion until it has ended or needs a token."""
    _follow(session, session.client.ingestions.get(ingestion_id), True)


@command(ingest)
@click.argument("ingestion_id", metavar="ID")
def cancel(session: Session, ingestion_id: str) -> None:
    """Stop an ingestion, and its schedule, for good; what is indexed stays."""
    session.output.value(session.client.ingestions.cancel(ingestion_id))


@command(ingest)
@click.argument("ingestion_id", metavar="ID")
@_WATCH
def retry(session: Session, ingestion_id: str, watch: bool) -> None:
    """Try what failed once more."""
    _follow(session, session.client.ingestions.retry(ingestion_id), watch)


@command(ingest)
@click.argument("ingestion_id", metavar="ID")
@_TOKEN_FILE
@_WATCH
def resume(session: Session, ingestion_id: str, token_file: Path | None, watch: bool) -> None:
    """Go on where it was, with a new temporary token."""
    token = read_secret(token_file, "temporary token")
    _follow(session, session.client.ingestions.resume(ingestion_id, token), watch)


def _follow(session: Session, ingestion: pb.Ingestion, watch: bool) -> None:
    if not watch:
        session.output.value(ingestion)
        return
    try:
        last = _watch(session, ingestion)
    except KeyboardInterrupt:
        click.echo(f"it goes on; `sealcomb ingest watch {ingestion.id}` follows it again", err=True)
        raise
    if not session.output.as_json:
        session.output.value(last)
    if last.state == pb.INGESTION_STATE_NEEDS_TOKEN:
        raise CommandFailed(f"it needs a token: sealcomb ingest resume {last.id}", 6)
    if last.state != pb.INGESTION_STATE_SUCCEEDED:
        raise CommandFailed(f"not all of it succeeded; see `sealcomb ingest get --failed {last.id}`")


def _watch(session: Session, ingestion: pb.Ingestion) -> pb.Ingestion:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=session.output.as_json) as progress:
        bar = progress.add_task("waiting", total=None)
        last, failures = ingestion, 0
        while True:
            try:
                for last in session.client.ingestions.watch(ingestion.id):
                    failures = 0
                    counts = last.counts
                    done = counts.indexed + counts.unchanged + counts.failed
                    said = pb.IngestionState.Name(last.state).removeprefix("INGESTION_STATE_").lower()
                    progress.update(bar, description=said, completed=done, total=counts.found or None)
                    if session.output.as_json:
                        session.output.value(last)
            except ApiError as error:
                # A long watch is ended now and then; what is watched goes on.
                failures += 1
                if error.code not in _WATCH_AGAIN or failures > _FAILURES_MAX:
                    raise
                time.sleep(min(failures, 5))
                continue
            return last
