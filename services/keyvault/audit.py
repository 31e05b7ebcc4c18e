"""The audit chain: every key use and administrative act of an account, each bound to all before it.

A record is a JSON object; its canonical form has sorted keys, no spaces and ASCII alone:

    account, action, method, outcome, peer, request_id, resource, token_id    strings
    sequence      position in the account's chain, from 1
    time_us       microseconds since the Unix epoch
    previous      hex hash of the record before; 64 zeros for the first
    hash          hex SHA-256 over "sealcomb audit v1" NUL and the canonical form of all the above

A record holds these fields alone, and each only in a form that cannot be somebody's text: what
does not have the form is recorded as "-". It must never hold a name, content, a token or a key.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

FIRST_HASH = bytes(32)
OK = "ok"
_PREFIX = b"sealcomb audit v1\0"
_WORD = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_METHOD = re.compile(r"/[0-9A-Za-z.]{1,100}/[0-9A-Za-z]{1,60}")


@dataclass(frozen=True, slots=True)
class Act:
    """What is to be recorded. `outcome` is "ok" or the reason of the refusal."""

    time_us: int
    action: str
    peer: str = ""
    token_id: str = ""
    method: str = ""
    resource: str = ""
    outcome: str = OK
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """An act in its place of the account's chain."""

    account: str
    sequence: int
    act: Act
    previous: bytes
    hash: bytes


def link(account: str, sequence: int, previous: bytes, act: Act) -> AuditRecord:
    """The record of an act as the next one after `previous`."""
    act = _clean(act)
    digest = hashlib.sha256(_PREFIX + _canonical(_fields(account, sequence, previous, act))).digest()
    return AuditRecord(account, sequence, act, previous, digest)


def export_line(record: AuditRecord) -> str:
    """The record's canonical form, with its hash."""
    fields = _fields(record.account, record.sequence, record.previous, record.act)
    return _canonical({**fields, "hash": record.hash.hex()}).decode()


def _fields(account: str, sequence: int, previous: bytes, act: Act) -> dict[str, str | int]:
    return {
        "account": account,
        "sequence": sequence,
        "previous": previous.hex(),
        "time_us": act.time_us,
        "action": act.action,
        "peer": act.peer,
        "token_id": act.token_id,
        "method": act.method,
        "resource": act.resource,
        "outcome": act.outcome,
        "request_id": act.request_id,
    }


def _canonical(fields: dict[str, str | int]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _clean(act: Act) -> Act:
    return Act(
        act.time_us,
        _word(act.action),
        _word(act.peer),
        _word(act.token_id),
        act.method if not act.method or _METHOD.fullmatch(act.method) else "-",
        _word(act.resource),
        _word(act.outcome),
        _word(act.request_id),
    )


def _word(text: str) -> str:
    return text if not text or _WORD.fullmatch(text) else "-"
