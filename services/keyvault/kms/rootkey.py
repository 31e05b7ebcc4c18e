"""The file that holds the installation's root key: 32 random bytes, or the same sealed under a passphrase.

A sealed root key file is:

    offset  size  field
    0       4     magic, the bytes 53 43 52 4b ("SCRK")
    4       1     format version, 01
    5       1     log2 of scrypt's N
    6       1     scrypt's r
    7       1     scrypt's p
    8       ...   a sealed object (docs/sealed-format.md) of the 32 bytes, as ("", "root-key", "root-key"),
                  under scrypt(passphrase, salt, N, r, p); the salt is the object's 16-byte key id

Whoever holds the root key holds every account's data, so the file must be its owner's alone; it
is never made, replaced or repaired by a service's start.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from services.common import ids
from services.common.sealing import DataKey, Identity, OpenFailed, key_id_of, open_sealed, seal
from services.common.secretfiles import SecretFileOpen, read_secret_file

KEY_BYTES = 32
_MAGIC = b"SCRK"
_VERSION = 1
_HEAD_BYTES = 8
_FILE_BYTES_MAX = 4096
_PASSPHRASE_CHARS_MIN = 12
# RFC 7914: 128 MiB and about half a second of one core for each guess.
_LOG2_N, _R, _P = 17, 8, 1
_LOG2_N_RANGE = range(14, 21)
_IDENTITY = Identity("", "root-key", "root-key")
_DISTINCT_BYTES_MIN = 8


class RootKeyRefused(ValueError):
    """The root key file is missing, open to others, damaged, or not a key; says what to do."""


def load_root_key(path: Path, passphrase_file: Path | None = None) -> bytes:
    """The root key in a file. Raises RootKeyRefused."""
    raw = _read_private(path, "the root key file")
    if raw[:4] == _MAGIC:
        if passphrase_file is None:
            raise RootKeyRefused("the root key file is sealed; set SEALCOMB_ROOT_PASSPHRASE_FILE")
        return _unseal(raw, _passphrase(passphrase_file))
    if len(raw) != KEY_BYTES:
        raise RootKeyRefused(
            f"the root key file has {len(raw)} bytes instead of {KEY_BYTES}; restore it from a backup"
        )
    if len(set(raw)) < _DISTINCT_BYTES_MIN:
        raise RootKeyRefused("the root key is not random; make one with sealcomb-keyvault --init-root-key")
    if passphrase_file is not None:
        raise RootKeyRefused(
            "a passphrase is set but the root key file is not sealed; unset it or seal the file"
        )
    return raw


def create_root_key(
    path: Path,
    passphrase_file: Path | None = None,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> None:
    """Makes a root key file where there is none. Raises RootKeyRefused if there is one."""
    key = random_bytes(KEY_BYTES)
    content = key if passphrase_file is None else _seal(key, _passphrase(passphrase_file), random_bytes)
    temp = path.with_name(path.name + ".new")
    temp.unlink(missing_ok=True)
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A link fails where the name exists, so that no key is ever replaced.
        path.hardlink_to(temp)
    except FileExistsError:
        raise RootKeyRefused(
            "there is a root key file already; a new one would make all data unreadable"
        ) from None
    finally:
        temp.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _seal(key: bytes, passphrase: bytes, random_bytes: Callable[[int], bytes]) -> bytes:
    salt = random_bytes(16)
    head = _MAGIC + bytes([_VERSION, _LOG2_N, _R, _P])
    under = DataKey(ids.from_bytes(salt), Scrypt(salt, KEY_BYTES, 2**_LOG2_N, _R, _P).derive(passphrase))
    return head + seal(under, _IDENTITY, key)


def _unseal(raw: bytes, passphrase: bytes) -> bytes:
    version, log2_n, r, p = raw[4:_HEAD_BYTES] if len(raw) >= _HEAD_BYTES else bytes(4)
    # The bounds keep a changed file from costing more memory than a guess should.
    if version != _VERSION or log2_n not in _LOG2_N_RANGE or r != _R or p not in range(1, 5):
        raise RootKeyRefused("the root key file is damaged; restore it from a backup")
    try:
        key_id = key_id_of(raw[_HEAD_BYTES:])
        under = DataKey(key_id, Scrypt(ids.to_bytes(key_id), KEY_BYTES, 2**log2_n, r, p).derive(passphrase))
        key = open_sealed(under, _IDENTITY, raw[_HEAD_BYTES:])
    except OpenFailed:
        raise RootKeyRefused(
            "the passphrase does not open the root key file, or the file is damaged"
        ) from None
    if len(key) != KEY_BYTES:
        raise RootKeyRefused("the root key file is damaged; restore it from a backup")
    return key


def _passphrase(path: Path) -> bytes:
    passphrase = _read_private(path, "the passphrase file").rstrip(b"\r\n")
    if len(passphrase) < _PASSPHRASE_CHARS_MIN:
        raise RootKeyRefused(f"the passphrase is shorter than {_PASSPHRASE_CHARS_MIN} characters")
    return passphrase


def _read_private(path: Path, what: str) -> bytes:
    try:
        return read_secret_file(path, _FILE_BYTES_MAX)
    except FileNotFoundError:
        raise RootKeyRefused(f"{what} does not exist; restore it, or make one with --init-root-key") from None
    except OSError as error:
        raise RootKeyRefused(f"{what} cannot be read: {error.strerror}") from None
    except SecretFileOpen as error:
        raise RootKeyRefused(f"{what}: {error}") from None
