"""Verifies signed statements (deletion receipts, audit checkpoints) offline, with a public key.

A statement is one JSON object in canonical form (sorted keys, no spaces, ASCII). `signature` is hex
Ed25519 over "sealcomb statement v1" NUL and the canonical form of all other fields; `key` is the hex
SHA-256 of the 32 public bytes that verify it. Take the public key from whom you trust to have it, never
from beside the statement.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

RECEIPT = "deletion receipt"
CHECKPOINT = "audit checkpoint"
_PREFIX = b"sealcomb statement v1\0"


class StatementRefused(ValueError):
    """The statement is not one, not of the kind wanted, or not signed with the key."""


def parse_statement(text: str, kind: str) -> dict[str, Any]:
    """A statement's fields, its signature not checked. Raises StatementRefused."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise StatementRefused("this is not JSON") from None
    if not isinstance(fields, dict) or fields.get("kind") != kind:
        raise StatementRefused(f"this is not a {kind}")
    # One spelling for each statement: nothing can hide in spaces, order or repeated keys.
    if _canonical(fields) != text:
        raise StatementRefused("the statement is not in canonical form")
    return fields


def verify_statement(text: str, kind: str, public_key: bytes) -> dict[str, Any]:
    """The fields of a statement that the PEM public key verifies. Raises StatementRefused."""
    fields = parse_statement(text, kind)
    key = _public_key(public_key)
    name = hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()
    if not hmac.compare_digest(str(fields.get("key")), name):
        raise StatementRefused("the statement was signed with another key than the one given")
    body = {field: value for field, value in fields.items() if field != "signature"}
    spelled = str(fields.get("signature"))
    try:
        signature = bytes.fromhex(spelled)
        key.verify(signature, _PREFIX + _canonical(body).encode())
    except (InvalidSignature, ValueError):
        raise StatementRefused("the signature does not hold; the statement was changed") from None
    # `fromhex` also takes capitals and spaces, which the signature itself does not cover.
    if signature.hex() != spelled:
        raise StatementRefused("the statement is not in canonical form")
    return fields


def _public_key(pem: bytes) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except ValueError:
        raise StatementRefused("the key is not a public key in PEM form") from None
    if not isinstance(key, Ed25519PublicKey):
        raise StatementRefused("the key is not an Ed25519 public key")
    return key


def _canonical(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
