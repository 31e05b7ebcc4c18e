"""A second reader of Cobblestone-256, written from the specification and sharing no code with the first.

c2sp.org/chunked-encryption: HKDF-Expand, AES-256-GCM, 16 KiB chunks. Slow and simple; it shows that
what is stored can be read without the library that wrote it. Cobblestone-256 hashes with SHA-512;
the scheme's published vectors use SHA-256, hence `digest`. `check_commitment=False` is the scheme
with one of its controls off, for the twins of attack tests. `read_object` reads what Sealcomb makes of
it, written from docs/sealed-format.md alone.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK_BYTES = 16 * 1024
SALT_BYTES = 24
COMMITMENT_BYTES = 32
PREFIX_BYTES = SALT_BYTES + COMMITMENT_BYTES
TAG_BYTES = 16
_INFO = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"


class Unreadable(Exception):
    """The ciphertext is not one of this key and context."""


def derive(key: bytes, salt: bytes, context: bytes, digest: str = "sha512") -> tuple[bytes, bytes, bytes]:
    """The chunk key, base nonce and commitment of one message."""
    info = _INFO + salt + context
    material = block = b""
    for counter in range(1, 4):
        block = hmac.new(key, block + info + bytes([counter]), digest).digest()
        material += block
    return material[:32], material[32:44], material[44:76]


def chunk_nonce(base_nonce: bytes, number: int) -> bytes:
    """The nonce of a chunk."""
    return (int.from_bytes(base_nonce, "big") ^ number).to_bytes(12, "big")


def read(
    key: bytes, context: bytes, ciphertext: bytes, *, digest: str = "sha512", check_commitment: bool = True
) -> bytes:
    """The message. Raises Unreadable."""
    salt, commitment = ciphertext[:SALT_BYTES], ciphertext[SALT_BYTES:PREFIX_BYTES]
    chunk_key, base_nonce, expected = derive(key, salt, context, digest)
    if len(key) != 32 or len(commitment) != COMMITMENT_BYTES or (check_commitment and commitment != expected):
        raise Unreadable
    body = ciphertext[PREFIX_BYTES:]
    step = CHUNK_BYTES + TAG_BYTES
    chunks = [body[at : at + step] for at in range(0, len(body), step)]
    if not chunks or len(chunks[-1]) == step:
        raise Unreadable
    aead = AESGCM(chunk_key)
    try:
        return b"".join(
            aead.decrypt(chunk_nonce(base_nonce, number), chunk, None) for number, chunk in enumerate(chunks)
        )
    except (InvalidTag, ValueError):
        raise Unreadable from None


def read_object(secret: bytes, key_id: bytes, place: tuple[str, str, str, str, int], sealed: bytes) -> bytes:
    """A sealed object; its place is account, resource, kind, object and version. Raises Unreadable."""
    header = sealed[:19]
    if header != b"SC\x01" + key_id:
        raise Unreadable
    fields = [header, *(text.encode() for text in place[:4]), place[4].to_bytes(8, "big")]
    context = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return read(secret, context, sealed[19:])


def named_key(sealed: bytes) -> bytes:
    """The id of the data key that an object names. Raises Unreadable."""
    if len(sealed) < 19 or sealed[:3] != b"SC\x01":
        raise Unreadable
    return sealed[3:19]


def spelled(key_id: str) -> bytes:
    """The 16 bytes of an id's 26 characters: Crockford's base 32, big-endian."""
    number = 0
    for character in key_id:
        number = number * 32 + "0123456789abcdefghjkmnpqrstvwxyz".index(character)
    return number.to_bytes(16, "big")
