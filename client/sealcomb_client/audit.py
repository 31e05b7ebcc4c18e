"""Verifies an exported audit chain offline, needing nothing but the exported lines.

Each line is a JSON object in canonical form (sorted keys, no spaces, ASCII); `hash` is the hex
SHA-256 over "sealcomb audit v1" NUL and the canonical form of all other fields; `previous` is the
hash of the line before, 64 zeros in the first; `sequence` counts from 1. So a changed, removed,
inserted or reordered line breaks the chain at a line that can be named.

The last line is a checkpoint: a signed statement of how far the chain goes. Lines cut from before it
are missed at once. Whoever cuts it off as well, or writes a whole chain anew, cannot sign another: give the
installation's public key, and a checkpoint that you kept from earlier, to notice those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from sealcomb_client.statements import CHECKPOINT, StatementRefused, parse_statement, verify_statement

_PREFIX = b"sealcomb audit v1\0"
_FIRST = "0" * 64
_FIELDS = {
    "account": str,
    "action": str,
    "hash": str,
    "method": str,
    "outcome": str,
    "peer": str,
    "previous": str,
    "request_id": str,
    "resource": str,
    "sequence": int,
    "time_us": int,
    "token_id": str,
}


class ChainBroken(ValueError):
    """The chain does not hold; `line` is the first bad one, counted from 1."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}")
        self.line = line
        self.why = why


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The last record of a chain: keep it, to notice later that a chain lost its end."""

    account: str
    sequence: int
    hash: str


def verify_chain(
    lines: Iterable[str],
    known: ChainHead | None = None,
    public_key: bytes | None = None,
    account: str = "",
) -> ChainHead | None:
    """The head of a chain that holds, None for an empty one. Raises ChainBroken.

    With `account` the chain must be that account's: nothing else tells it from another whole one. `known`
    is the head of an earlier export: the chain must still contain it. With the installation's public key,
    PEM, the chain must end in a checkpoint that the key verifies.
    """
    head: ChainHead | None = None
    number = 0
    is_over = False
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if is_over:
            raise ChainBroken(number, "comes after the checkpoint, which is the last line")
        if is_checkpoint(text):
            is_over = True
            _check_end(number, checkpoint_head(text, public_key, line=number), head)
            continue
        head = _next(number, text, head)
        if account and head.account != account:
            raise ChainBroken(number, "belongs to another account")
        if known is not None and head.sequence == known.sequence and head != known:
            raise ChainBroken(number, "is not the record that was here at the earlier export")
    if known is not None and (head is None or head.sequence < known.sequence):
        raise ChainBroken(number + 1, f"the chain ends before record {known.sequence} of the earlier export")
    if public_key is not None and not is_over:
        raise ChainBroken(number + 1, "there is no checkpoint; the end of the chain was cut off")
    return head


def checkpoint_head(text: str, public_key: bytes | None = None, *, line: int = 1) -> ChainHead:
    """Where a checkpoint says that its chain ends; with the public key, verified. Raises ChainBroken."""
    try:
        fields = parse_statement(text, CHECKPOINT)
        if public_key is not None:
            verify_statement(text, CHECKPOINT, public_key)
        return ChainHead(str(fields["account"]), int(fields["sequence"]), str(fields["hash"]))
    except (StatementRefused, KeyError, TypeError, ValueError) as error:
        raise ChainBroken(line, f"is not a checkpoint that holds: {error}") from None


def is_checkpoint(text: str) -> bool:
    """Whether a line of an export says that it is the checkpoint."""
    # Records have no such field, and a checkpoint has one spelling.
    return f'"kind":"{CHECKPOINT}"' in text


def _check_end(number: int, end: ChainHead, head: ChainHead | None) -> None:
    if head is None or head.sequence < end.sequence:
        raise ChainBroken(number, f"the chain ends before record {end.sequence} of its checkpoint")
    if head != end:
        raise ChainBroken(number, "the checkpoint is not of this chain's last record")


def _next(number: int, line: str, before: ChainHead | None) -> ChainHead:
    record = _parse(number, line)
    claimed = record["hash"]
    body = {name: value for name, value in record.items() if name != "hash"}
    if hashlib.sha256(_PREFIX + _canonical(body).encode()).hexdigest() != claimed:
        raise ChainBroken(number, "does not have the hash that it names; it was changed")
    if record["sequence"] != (before.sequence if before else 0) + 1:
        raise ChainBroken(number, "is out of sequence; a record is missing, added or moved")
    if record["previous"] != (before.hash if before else _FIRST):
        raise ChainBroken(number, "does not follow from the record before it")
    if before is not None and record["account"] != before.account:
        raise ChainBroken(number, "belongs to another account")
    return ChainHead(str(record["account"]), int(record["sequence"]), str(claimed))


def _parse(number: int, line: str) -> dict[str, str | int]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ChainBroken(number, "is not JSON") from None
    right = isinstance(record, dict) and record.keys() == _FIELDS.keys()
    if not right or any(type(record[name]) is not kind for name, kind in _FIELDS.items()):
        raise ChainBroken(number, "does not have the fields of an audit record")
    # One spelling for each record: nothing can hide in spaces, order or repeated keys.
    if _canonical(record) != line:
        raise ChainBroken(number, "is not in canonical form")
    return dict(record)


def _canonical(record: dict[str, str | int]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
