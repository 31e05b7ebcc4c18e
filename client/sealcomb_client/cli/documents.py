"""`sealcomb upload`, `search` and `documents`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sealcomb.v1 import document_service_pb2, search_service_pb2
from sealcomb_client.cli.options import FILTER, METADATA
from sealcomb_client.cli.output import CommandFailed, printable, whole_file
from sealcomb_client.cli.session import Session, command
from sealcomb_client.errors import ApiError

# The service's formats by their endings; docs/ingest.md has the table.
SUFFIXES = frozenset(
    [
        ".md",
        ".markdown",
        ".txt",
        ".text",
        ".html",
        ".htm",
        ".xhtml",
        ".eml",
        ".msg",
        ".pdf",
        ".docx",
        ".docm",
        ".dotx",
        ".pptx",
        ".ppsx",
        ".xlsx",
        ".xlsm",
        ".xlsb",
        ".doc",
        ".ppt",
        ".xls",
        ".odt",
        ".ods",
        ".epub",
        ".fb2",
        ".docbook",
        ".dbk",
        ".jats",
        ".rtf",
        ".rst",
        ".org",
        ".tex",
        ".typ",
        ".djot",
        ".mdx",
        ".ipynb",
        ".json",
        ".jsonl",
        ".ndjson",
        ".xml",
        ".svg",
        ".csv",
        ".tsv",
        ".bib",
        ".ris",
        ".yaml",
        ".yml",
        ".toml",
    ]
)
_PARALLEL = 2
_MODE = click.Choice(["hybrid", "dense", "lexical"])
_COLUMNS = ("id", "name", "content_type", "size_bytes", "passages", "pages", "create_time")


def register(main: click.Group) -> None:
    """Adds the commands."""
    command(main)(upload)
    command(main)(search)
    main.add_command(documents)


@click.argument("collection")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@METADATA
@click.option("--principal", "principals", multiple=True, help="Who may see it; repeat for several.")
def upload(
    session: Session,
    collection: str,
    paths: Sequence[Path],
    metadata: dict[str, Any] | None,
    principals: Sequence[str],
) -> None:
    """Upload files, and folders with all that is in them.

    Files of formats that are not supported are skipped with a note; one that fails does not stop the others.
    """
    files = list(_files(paths, session))
    failed = 0

    sent: dict[str, int] = {}

    def send(path: Path, name: str) -> document_service_pb2.Document:
        def show(size_bytes: int) -> None:
            sent[name] = size_bytes
            progress.update(bar, completed=sum(list(sent.values())))

        return session.client.documents.upload(
            collection, path, name=name, metadata=metadata, principals=principals, sent=show
        )

    columns = (
        TextColumn("uploading"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=session.output.as_json) as progress:
        bar = progress.add_task("", total=sum(path.stat().st_size for path, _name in files))
        for done, (name, result) in enumerate(_all_uploads(send, files), 1):
            if isinstance(result, ApiError):
                failed += 1
                click.echo(f"failed {printable(name)}: {result}", err=True)
            elif session.output.as_json:
                session.output.value(result)
            progress.update(bar, description=f"{done} of {len(files)}, {printable(name)}")
    session.output.say(f"uploaded {len(files) - failed} of {len(files)} documents")
    if failed:
        raise CommandFailed(f"{failed} of {len(files)} documents failed")


@click.argument("collection")
@click.argument("query")
@click.option("--top-k", "-k", type=click.IntRange(1, 200), default=5, show_default=True)
@click.option(
    "--mode", type=click.Choice(["hybrid", "dense", "lexical"]), default="hybrid", show_default=True
)
@FILTER
@click.option("--as", "principals", multiple=True, help="Only what this one may see; repeat for several.")
@click.option("--one-per-document", is_flag=True, help="The best passage of each document alone.")
@click.option("--rerank", is_flag=True, help="By the operator's reranker, which is slower.")
def search(
    session: Session,
    collection: str,
    query: str,
    top_k: int,
    mode: str,
    condition: dict[str, Any] | None,
    principals: Sequence[str],
    one_per_document: bool,
    rerank: bool,
) -> None:
    """Search a text collection."""
    hits = session.client.search(
        collection,
        query,
        top_k=top_k,
        mode=mode,
        filter=condition,
        as_principals=principals,
        one_per_document=one_per_document,
        rerank=rerank,
    )
    for number, hit in enumerate(hits, 1):
        if session.output.as_json:
            session.output.value(hit)
        else:
            session.output.say(_hit_text(number, hit))
    if not hits:
        session.output.say("nothing found")


@click.group()
def documents() -> None:
    """List, describe, download and delete documents."""


@command(documents, "list")
@click.argument("collection")
def list_(session: Session, collection: str) -> None:
    """List the documents of a collection."""
    session.output.rows(session.client.documents.list(collection), _COLUMNS)


@command(documents)
@click.argument("collection")
@click.argument("document_id", metavar="ID")
def get(session: Session, collection: str, document_id: str) -> None:
    """Describe one document."""
    session.output.value(session.client.documents.get(collection, document_id))


@command(documents)
@click.argument("collection")
@click.argument("document_id", metavar="ID")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write; - for standard output.")
def download(session: Session, collection: str, document_id: str, output: Path | None) -> None:
    """Download a document's original. Without -o it goes into the current folder under its own name."""
    if output == Path("-"):
        session.client.documents.download(collection, document_id, sys.stdout.buffer)
        return
    path = output or Path(_safe_name(session.client.documents.get(collection, document_id).name, document_id))
    if output is None and path.exists():
        raise CommandFailed(f"{path} exists; choose a name with -o")
    with whole_file(path) as file:
        session.client.documents.download(collection, document_id, file)
    session.output.value({"written": str(path), "size_bytes": path.stat().st_size})


@command(documents)
@click.argument("collection")
@click.argument("ids", nargs=-1, required=True)
def delete(session: Session, collection: str, ids: Sequence[str]) -> None:
    """Delete documents, their passages and originals."""
    for document_id in ids:
        session.client.documents.delete(collection, document_id)
        session.output.value({"deleted": document_id})


def _files(paths: Sequence[Path], session: Session) -> Iterator[tuple[Path, str]]:
    """Files to upload with their names: relative to the folder that was named, as people know them."""
    for path in paths:
        if not path.is_dir():
            yield path, path.name
            continue
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if not file.is_file() or any(part.startswith(".") for part in file.relative_to(path).parts):
                continue
            if file.suffix.lower() in SUFFIXES:
                yield file, name
            else:
                click.echo(f"skipped {printable(name)}: not a supported format", err=True)


def _all_uploads(
    send: Callable[[Path, str], document_service_pb2.Document], files: Sequence[tuple[Path, str]]
) -> Iterator[tuple[str, document_service_pb2.Document | ApiError]]:
    waiting = iter(files)
    running: dict[Future[document_service_pb2.Document], str] = {}
    with ThreadPoolExecutor(_PARALLEL) as pool:
        while True:
            while len(running) < _PARALLEL and (following := next(waiting, None)) is not None:
                path, name = following
                running[pool.submit(send, path, name)] = name
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                try:
                    yield name, future.result()
                except ApiError as error:
                    yield name, error


def _hit_text(number: int, hit: search_service_pb2.SearchHit) -> str:
    where = f"{hit.document_name}, page {hit.page}" if hit.page else hit.document_name
    where = f"{where}, {hit.heading}" if hit.heading else where
    text = " ".join(hit.text.split())
    return printable(f"{number}. {where}  (score {hit.score:.3f}, document {hit.document_id})\n   {text}\n")


def _safe_name(name: str, document_id: str) -> str:
    # The name is whatever somebody called the document: never a path to elsewhere.
    plain = printable(name.replace("\\", "/").split("/")[-1]).strip()
    return document_id if plain in ("", ".", "..") else plain
