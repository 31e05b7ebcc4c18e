"""Verifies an exported audit chain offline, needing nothing but the exported lines.

Each line is a JSON object in canonical form (sorted keys, no spaces, ASCII); `hash` is the hex
SHA-256 over "sealcomb audit v1" NUL and the canonical form of all other fields; `previous` is the
hash of the line before, 64 zeros in the first; `sequence` counts from 1. So a changed, removed,
inserted or reordered line breaks the chain at a line that can be named. Lines cut from the end
leave a chain that is whole: to notice those, keep the head of an earlier export and give it here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

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


def verify_chain(lines: Iterable[str], known: ChainHead | None = None) -> ChainHead | None:
    """The head of a chain that holds, None for an empty one. Raises ChainBroken.

    `known` is the head of an earlier export: the chain must still contain it.
    """
    head: ChainHead | None = None
    number = 0
    for number, line in enumerate(lines, 1):
        head = _next(number, line.rstrip("\r\n"), head)
        if known is not None and head.sequence == known.sequence and head != known:
            raise ChainBroken(number, "is not the record that was here at the earlier export")
    if known is not None and (head is None or head.sequence < known.sequence):
        raise ChainBroken(number + 1, f"the chain ends before record {known.sequence} of the earlier export")
    return head


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
