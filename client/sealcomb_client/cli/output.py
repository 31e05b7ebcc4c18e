"""What commands print: tables for people, JSON lines for programs, errors on standard error.

With `--json` every result is one JSON object a line with the API's own field names, so that a
script reads one line at a time. Tokens are printed only where they were just made.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
from google.protobuf import json_format
from google.protobuf.message import Message

from sealcomb_client.connection import ConnectionIncomplete
from sealcomb_client.errors import ApiError

_EXIT_CODES = {
    "NOT_FOUND": 3,
    "UNAUTHENTICATED": 4,
    "PERMISSION_DENIED": 4,
    "INVALID_ARGUMENT": 5,
    "ALREADY_EXISTS": 6,
    "FAILED_PRECONDITION": 6,
    "ABORTED": 6,
    "RESOURCE_EXHAUSTED": 7,
    "UNAVAILABLE": 7,
    "DEADLINE_EXCEEDED": 7,
}
# As protobuf's JSON writes times; people get them to the second, in UTC.
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?Z")
_ENUM = re.compile(r"(?:METRIC|KEY_STATE|CONNECTION_STATE|INGESTION_STATE|REVOCATION)_([A-Z_]+)")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
EXIT_CODES_HELP = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not allowed, 5 a value is wrong, "
    "6 the state forbids it, 7 try again later."
)


class CommandFailed(click.ClickException):
    """A failure with an exit code of its own, shown as one line and a line for each bad field."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        # click declares a class variable and reads the instance.
        self.exit_code = exit_code  # type: ignore[misc]


def failure(error: ApiError | ConnectionIncomplete | ValueError | OSError) -> CommandFailed:
    """The failure that a command shows for an error."""
    if isinstance(error, ApiError):
        lines = [f"{error.message} ({error.reason or error.code})"]
        lines += [
            f"  {violation.field}: {violation.description}"
            for violation in error.fields
            # The message of an error about one field says both already.
            if f"{violation.field}: " not in error.message
        ]
        if error.retry_after_s is not None:
            lines.append(f"  try again in {error.retry_after_s:.1f} s")
        if error.code in ("INTERNAL", "DATA_LOSS") and error.request_id:
            lines.append(f"  request id {error.request_id}")
        return CommandFailed("\n".join(lines), _EXIT_CODES.get(error.code, 1))
    if isinstance(error, ConnectionIncomplete):
        return CommandFailed(str(error), 4)
    if isinstance(error, OSError):
        return CommandFailed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return CommandFailed(str(error), 5)


class Output:
    """Where a command's results go."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def say(self, text: str) -> None:
        """A line for people only."""
        if not self.as_json:
            click.echo(text)

    def value(self, value: Message | Mapping[str, Any]) -> None:
        """One result: a JSON line, or name and value pairs."""
        if self.as_json:
            _print_json(fields_of(value))
            return
        fields = dict(_flat(fields_of(value)))
        width = max((len(name) for name in fields), default=0)
        for name, field in fields.items():
            click.echo(f"{name:{width}}  {_cell(field)}".rstrip())

    def rows(self, values: Iterable[Message | Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Many results: JSON lines, or a table of these columns, never cut short."""
        if self.as_json:
            for value in values:
                _print_json(fields_of(value))
            return
        table = [[_cell(fields_of(value).get(column, "")) for column in columns] for value in values]
        if not table:
            click.echo("none")
            return
        table.insert(0, [column.upper() for column in columns])
        widths = [max(len(row[at]) for row in table) for at in range(len(columns))]
        for row in table:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fields_of(value: Message | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a message with the API's names and in its order, zero values included."""
    if not isinstance(value, Message):
        return dict(value)
    fields: dict[str, Any] = json_format.MessageToDict(
        value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {field.name: fields[field.name] for field in value.DESCRIPTOR.fields if field.name in fields}


def printable(text: str) -> str:
    """The text without control characters, so that a name cannot command the terminal."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _print_json(fields: Mapping[str, Any]) -> None:
    click.echo(json.dumps(fields, ensure_ascii=False))


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields with those of messages in their place, such as a new token and what it may do."""
    for name, field in fields.items():
        if isinstance(field, Mapping) and name != "metadata":
            yield from _flat(field)
        else:
            yield name, field


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, Mapping):
        return printable(json.dumps(value, ensure_ascii=False))
    text = str(value)
    if match := _TIME.fullmatch(text):
        return f"{match[1]} {match[2]}"
    if match := _ENUM.fullmatch(text):
        return match[1].lower()
    return printable(text)


@contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file that bears its name once all of it is there; private: for its owner alone."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with open(part, "xb", opener=_private if private else None) as file:  # Path.open has no opener
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
