"""Signed statements: what keyvault says of an account's keys or audit chain, for anybody to check offline.

A statement is one line, a JSON object in canonical form (sorted keys, no spaces, ASCII): its own
fields, `kind`, `key` (hex SHA-256 of the signing key's 32 public bytes), and `signature`: hex
Ed25519 (RFC 8032) over "sealcomb statement v1" NUL and the canonical form of all other fields. The
key signs call contexts too, under another prefix, so neither is ever taken for the other.

A statement holds ids, counts, times and hashes. It must never hold a name, content or a key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from services.common.secretfiles import read_secret_file

RECEIPT = "deletion receipt"
CHECKPOINT = "audit checkpoint"
# Of the ledger; keyvault alone reads them.
DESTRUCTION = "destruction"
MARK = "database mark"
_KEY_FILE_BYTES_MAX = 4096
_PREFIX = b"sealcomb statement v1\0"


class StatementDamaged(ValueError):
    """The text is no statement of this kind and key, or was changed."""


class StatementSigner:
    """Signs statements with the installation's key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        public = key.public_key()
        self._name = hashlib.sha256(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()
        self.public_pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @classmethod
    def from_file(cls, path: Path) -> StatementSigner:
        """The signer whose PEM private key is in a file."""
        key = load_pem_private_key(read_secret_file(path, _KEY_FILE_BYTES_MAX), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path.name} is not an Ed25519 private key")
        return cls(key)

    def sign(self, kind: str, fields: Mapping[str, Any]) -> str:
        """The statement of some fields. The same fields give the same statement."""
        body = {**fields, "kind": kind, "key": self._name}
        signature = self._key.sign(_PREFIX + canonical(body).encode())
        return canonical({**body, "signature": signature.hex()})

    def read(self, text: str, kind: str) -> dict[str, Any]:
        """The fields of a statement that this key signed. Raises StatementDamaged."""
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict) or canonical(fields) != text or fields.get("kind") != kind:
                raise StatementDamaged
            spelled = fields.pop("signature")
            signature = bytes.fromhex(spelled)
            # `fromhex` also takes capitals and spaces.
            if signature.hex() != spelled:
                raise StatementDamaged
            self._key.public_key().verify(signature, _PREFIX + canonical(fields).encode())
        except (InvalidSignature, KeyError, TypeError, ValueError, RecursionError):
            raise StatementDamaged("the statement does not hold") from None
        return fields


def canonical(fields: Mapping[str, Any]) -> str:
    """The canonical form of some fields."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
