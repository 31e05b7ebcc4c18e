"""The demo of a first start: an account, a collection `examples`, its documents, one search.

Every step may be repeated: a start that was stopped half way is finished by the next one, and a
finished demo is never made again, whatever the user did to it since.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from sealcomb.v1 import search_service_pb2
from sealcomb_client import ApiError, Client, Connection
from services.standalone.pki import write_file

COLLECTION = "examples"
QUESTION = "What should I do when a key may have leaked?"
_ACCOUNT_NAME = "demo"
_ACCOUNT_KEY = "standalone-demo"


class Progress(Protocol):
    """What shows how far the ingestion is."""

    def advance(self, name: str) -> None:
        """One more document is done."""


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo of one installation. `marker` is the file that says it was finished."""

    connection: Connection
    examples: Path
    marker: Path

    @property
    def finished(self) -> bool:
        """Whether an earlier start finished it."""
        return self.marker.exists()

    def documents(self) -> list[Path]:
        """The documents to ingest."""
        return sorted(
            path for path in self.examples.iterdir() if path.is_file() and not path.name.startswith(".")
        )

    def prepare(
        self, client: Client, documents: Sequence[Path], progress: Progress, stopped: Callable[[], bool]
    ) -> bool:
        """Makes the collection and ingests the documents; False if it was stopped before the end."""
        try:
            client.collections.create(COLLECTION, embedder="default")
        except ApiError as error:
            if error.code != "ALREADY_EXISTS":
                raise
        for path in documents:
            if stopped():
                return False
            content = path.read_bytes()
            # The same document at the next try is the same upload.
            key = hashlib.sha256(path.name.encode() + b"\0" + content).hexdigest()
            client.documents.upload(COLLECTION, content, name=path.name, idempotency_key=key)
            progress.advance(path.name)
        write_file(self.marker, b"the demo's documents are ingested\n")
        return True


def ensure_account_token(connection: Connection) -> str:
    """The token of a demo account made now."""
    with Client(connection) as client:
        made = client.accounts.create(_ACCOUNT_NAME, idempotency_key=_ACCOUNT_KEY)
        if made.token:
            return made.token
        # An earlier start was stopped between the account and the note of its token, so nobody has it.
        client.accounts.delete(made.account.id, confirm=made.account.id)
        return client.accounts.create(_ACCOUNT_NAME).token


def with_token(connection: Connection, token: str) -> Connection:
    """The connection with an account's token."""
    return replace(connection, token=token)


def search_report(hits: Sequence[search_service_pb2.SearchHit]) -> str:
    """The demo's search and its best passage, for people."""
    if not hits:
        return f'search "{QUESTION}": nothing found'
    best = hits[0]
    where = f"{best.document_name}, page {best.page}" if best.page else best.document_name
    passage = "\n".join("    " + line for line in _wrapped(best.text))
    return f'search "{QUESTION}"\n  best of {len(hits)}: {where} (score {best.score:.2f})\n{passage}'


def how_to_repeat(data: Path, endpoint: str) -> str:
    """The same search by grpcurl, by the command line and in Python."""
    env_file, ca_file = _shown(data / "client.env"), _shown(data / "ca.pem")
    return f"""
repeat it with grpcurl:
  . {env_file}
  {_program("grpcurl")} -cacert {ca_file} -H "authorization: Bearer $SEALCOMB_TOKEN" \\
    -d '{{"collection": "{COLLECTION}", "query": "{QUESTION}", "top_k": 1}}' \\
    {endpoint} sealcomb.v1.SearchService/Search
with the command line:
  {_program("sealcomb")} --env-file {env_file} search {COLLECTION} "{QUESTION}"
in Python ({_program("python")}):
  from pathlib import Path
  from sealcomb_client import Client
  with Client.from_env(Path("{env_file}")) as client:
      print(client.search("{COLLECTION}", "{QUESTION}")[0].text)
"""


def _program(name: str) -> str:
    """How to call a program from here: as it was installed with this one, else by its name."""
    path = Path(sys.executable).with_name(name)
    return _shown(path) if path.exists() else name


def _shown(path: Path) -> str:
    """The path as seen from the current folder, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _wrapped(text: str, width: int = 96, lines_max: int = 10) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    lines.append(line)
    return [*lines[:lines_max], "..."] if len(lines) > lines_max else lines
