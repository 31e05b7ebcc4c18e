"""What binds account keys and wrappings to their account, at a KMS that is not ours to program.

A handle is the canonical JSON of `Handle`: which key it is, and for whom. It holds no secret.

A KMS that takes names and values gets `encryption_context`; one that takes bytes gets
`context_of`, an injective encoding of the same. Both hold opaque ids only, since a KMS writes them
into logs of its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from services.common.sealing import Identity, OpenFailed, context_bytes
from services.keyvault.records import AccountKey, Wrapping

_HEAD = b"sealcomb data key 1"
_HANDLE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Handle:
    """A key in a KMS, and the version of an account's key that it is.

    `adopted` keys belong to somebody else: they are used, and never changed or destroyed.
    """

    account: str
    version: int
    key: str
    role: str = ""
    adopted: bool = False
    # What the KMS gave to be kept, such as a wrapped key; base64.
    kept: str = ""

    def encode(self) -> bytes:
        """The handle's bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


def handle_of(key: AccountKey) -> Handle:
    """A key's handle. Raises OpenFailed for one that was made for another account or version."""
    handle = _parse(key.handle)
    if handle is None or (handle.account, handle.version) != (key.account, key.version):
        raise OpenFailed
    return handle


def is_adopted(raw: bytes) -> bool:
    """Whether a handle says that its key is adopted."""
    handle = _parse(raw)
    return handle is not None and handle.adopted


def encryption_context(key: AccountKey, wrapping: Wrapping) -> dict[str, str]:
    """The encryption context of a wrapping as names and values. Raises OpenFailed across accounts."""
    if key.account != wrapping.account:
        raise OpenFailed
    return {
        "account": wrapping.account,
        "resource": wrapping.resource,
        "purpose": wrapping.purpose,
        "key_id": wrapping.key_id,
    }


def context_of(key: AccountKey, wrapping: Wrapping) -> bytes:
    """The encryption context of a wrapping as bytes. Raises OpenFailed across accounts."""
    if key.account != wrapping.account:
        raise OpenFailed
    identity = Identity(wrapping.account, wrapping.resource, "data-key:" + wrapping.purpose, wrapping.key_id)
    return context_bytes(_HEAD, identity)


def _parse(raw: bytes) -> Handle | None:
    if len(raw) > _HANDLE_BYTES_MAX or not raw.startswith(b"{"):
        return None
    try:
        fields = json.loads(raw)
        handle = Handle(**fields)
    except (TypeError, ValueError, RecursionError):
        return None
    # One handle has one spelling.
    return handle if handle.encode() == raw else None
