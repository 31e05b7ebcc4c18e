"""The sealed format: the one way in which Sealcomb puts anything on disk or in a database.

A sealed object is (docs/sealed-format.md):

    offset  size  field
    0       2     magic, the bytes 53 43 ("SC")
    2       1     format version, 01
    3       16    data key id, the bytes of the id
    19      ...   C2SP Cobblestone-256 ciphertext (github.com/C2SP/C2SP/blob/main/chunked-encryption.md)

Cobblestone is given the data key and, as context, the canonical encoding of the object's
identity: each of these fields as a 4-byte big-endian length and its bytes, in this order:
the 19 header bytes, account, resource, kind, object, version (8 bytes, big-endian). Fields are
UTF-8. The encoding is injective, so no two identities share a context. The scheme commits to key and
context, and refuses truncation and reordering of its 16 KiB chunks.

This module must never return a byte of plaintext that was not authenticated to its end, and never
say why an object does not open: there is one error, OpenFailed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.common import ids
from services.common.errors import DataLoss

MAGIC = b"SC"
VERSION = 1
HEADER_BYTES = 19
KEY_BYTES = 32


class OpenFailed(DataLoss):
    """A sealed object does not open: changed, truncated, moved, or sealed under another key."""

    def __init__(self) -> None:
        super().__init__("stored data does not open; restore it from a backup")


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key: its id (26 characters) and its 32 secret bytes, which never appear in a repr."""

    id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES or not ids.is_id(self.id):
            raise ValueError("a data key has an id and 32 bytes")

    def __reduce__(self) -> str:
        raise TypeError("a data key is not serialisable")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a sealed object is: moving it to any other identity makes it unreadable."""

    account: str
    resource: str
    kind: str
    object: str = ""
    version: int = 0


def seal(key: DataKey, identity: Identity, plaintext: bytes | bytearray | memoryview) -> bytes:
    """The plaintext sealed under the key as this identity; 91 bytes longer, and 16 a further 16 KiB."""
    header = _header(key.id)
    encryptor = Cobblestone256Encryptor(key.secret, context_bytes(header, identity))
    return b"".join((header, encryptor.update(plaintext), encryptor.finalize()))


def open_sealed(key: DataKey, identity: Identity, sealed: bytes | bytearray | memoryview) -> bytes:
    """The plaintext of an object that was sealed with this key as this identity.

    Raises OpenFailed for anything else.
    """
    view = memoryview(sealed)
    header = bytes(view[:HEADER_BYTES])
    if header != _header(key.id):
        raise OpenFailed
    decryptor = Cobblestone256Decryptor(key.secret, context_bytes(header, identity))
    try:
        return decryptor.update(view[HEADER_BYTES:]) + decryptor.finalize()
    except InvalidTag:
        # `from None`: the cause would tell apart what one error is to keep together.
        raise OpenFailed from None


def key_id_of(sealed: bytes | bytearray | memoryview) -> str:
    """The id of the data key that an object names; it is not authenticated until the object opens."""
    head = bytes(memoryview(sealed)[:HEADER_BYTES])
    if len(head) != HEADER_BYTES or head[:2] != MAGIC or head[2] != VERSION:
        raise OpenFailed
    return ids.from_bytes(head[3:])


class Sealer:
    """Seals one object as a stream: `update` any number of times, then `finalize` once."""

    def __init__(self, key: DataKey, identity: Identity) -> None:
        self._pending = _header(key.id)
        self._encryptor = Cobblestone256Encryptor(key.secret, context_bytes(self._pending, identity))

    def update(self, plaintext: bytes | bytearray | memoryview) -> bytes:
        """The next sealed bytes; may be empty."""
        head, self._pending = self._pending, b""
        return head + self._encryptor.update(plaintext)

    def finalize(self) -> bytes:
        """The last sealed bytes."""
        head, self._pending = self._pending, b""
        return head + self._encryptor.finalize()


class Opener:
    """Opens one object as a stream.

    Every byte returned is authenticated, but only `finalize` says that the object is whole: what
    must not act on a truncated object waits for it.
    """

    def __init__(self, key: DataKey, identity: Identity) -> None:
        self._key = key
        self._identity = identity
        self._head = b""
        self._decryptor: Cobblestone256Decryptor | None = None

    def update(self, sealed: bytes | bytearray | memoryview) -> bytes:
        """The next plaintext; may be empty. Raises OpenFailed."""
        if self._decryptor is None:
            self._head += bytes(sealed)
            if len(self._head) < HEADER_BYTES:
                return b""
            header, sealed = self._head[:HEADER_BYTES], self._head[HEADER_BYTES:]
            if header != _header(self._key.id):
                raise OpenFailed
            self._decryptor = Cobblestone256Decryptor(self._key.secret, context_bytes(header, self._identity))
        try:
            return self._decryptor.update(sealed)
        except InvalidTag:
            raise OpenFailed from None

    def finalize(self) -> bytes:
        """The last plaintext, once the object proved whole. Raises OpenFailed."""
        if self._decryptor is None:
            raise OpenFailed
        try:
            return self._decryptor.finalize()
        except InvalidTag:
            raise OpenFailed from None


def context_bytes(header: bytes, identity: Identity) -> bytes:
    """The canonical, injective encoding of an identity under a header."""
    parts = (
        header,
        identity.account.encode(),
        identity.resource.encode(),
        identity.kind.encode(),
        identity.object.encode(),
        struct.pack(">Q", identity.version),
    )
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def name_tag(key: DataKey, purpose: str, name: str) -> bytes:
    """A 32-byte tag to look a sealed name up by: HMAC-SHA-256 under a key derived for the purpose.

    Equal names under one key and purpose give equal tags; a tag tells nothing else.
    """
    derived = HKDF(hashes.SHA256(), 32, None, b"sealcomb name tag " + purpose.encode()).derive(key.secret)
    mac = hmac.HMAC(derived, hashes.SHA256())
    mac.update(name.encode())
    return mac.finalize()


def _header(key_id: str) -> bytes:
    return MAGIC + bytes([VERSION]) + ids.to_bytes(key_id)
