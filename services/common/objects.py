"""Sealed objects by key: a folder, or a bucket behind the same Protocol (s3.py).

What comes here is sealed already; this module never sees plaintext. A put is whole or absent:
written beside, synced, renamed, and the folder synced, in this order.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import structlog

from services.common.clock import Clock, SystemClock
from services.common.errors import AlreadyExists, NotFound, ResourceExhausted, SealcombError, Unavailable
from services.common.objectkeys import check_key, check_prefix, is_key

_log = structlog.get_logger("objects")

_PART_BYTES = 1024 * 1024
_TEMP_PREFIX = ".put-"
# Older than any put still running, also one of another process on the same folder.
_STALE_S = 3600.0
_CLAIM_WAIT_S = 0.5
_CLAIM_WAIT_S_MAX = 10.0


class ObjectStore(Protocol):
    """Whole objects under keys such as `account/collection/object`. Methods block: off the event loop."""

    def claim(self, owner: str) -> None:
        """Marks the place as its owner's. Raises ObjectsRefused if it is another's."""

    def put(self, key: str, parts: Iterable[bytes], *, new: bool = False) -> None:
        """Stores the parts as one object, durably; replaces an earlier one.

        With `new` it never does: AlreadyExists, whoever was first.
        """

    def get(self, key: str) -> bytes:
        """The object. Raises NotFound."""

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in parts. Raises NotFound at the first."""

    def delete(self, key: str) -> None:
        """Removes the object; no error if there is none."""

    def list(self, prefix: str) -> list[str]:
        """The keys below a prefix that ends in a slash, in order; all keys for an empty one.

        What somebody else put there under a name that is no key is none of ours, and is left out.
        """


class FolderStore:
    """Objects as files below a folder."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A crash between write and rename leaves a part that no key names.
        for temp in folder.rglob(_TEMP_PREFIX + "*"):
            with contextlib.suppress(FileNotFoundError):
                if clock.now_s() - temp.stat().st_mtime > _STALE_S:
                    temp.unlink()

    def claim(self, owner: str) -> None:
        """Nothing: the folder is below the installation's own."""

    def put(self, key: str, parts: Iterable[bytes], *, new: bool = False) -> None:
        """Stores the parts as one object, durably; ResourceExhausted for a full disk."""
        path = self._path(key)
        temp = path.parent / (_TEMP_PREFIX + secrets.token_hex(8))
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(temp, "xb", opener=_private) as file:  # Path.open has no opener
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            if new:
                _link(temp, path)
            else:
                temp.replace(path)
            _sync_up(path.parent, self._folder)
        except OSError as error:
            raise _storage_error(error) from error
        finally:
            # Also when the parts themselves fail half way, such as at a cancelled upload.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                temp.unlink()

    def get(self, key: str) -> bytes:
        """The object. Raises NotFound."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in parts of 1 MiB. Raises NotFound."""
        try:
            with self._path(key).open("rb") as file:
                while part := file.read(_PART_BYTES):
                    yield part
        except FileNotFoundError:
            raise NotFound("there is no such object", reason="OBJECT_NOT_FOUND") from None
        except OSError as error:
            raise _storage_error(error) from error

    def delete(self, key: str) -> None:
        """Removes the object; no error if there is none."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
            if path.parent.exists():
                _sync_folder(path.parent)
        except OSError as error:
            raise _storage_error(error) from error

    def list(self, prefix: str) -> list[str]:
        """The keys below a prefix, in order."""
        check_prefix(prefix)
        top = self._path(prefix[:-1]) if prefix else self._folder
        found = (path.relative_to(self._folder).as_posix() for path in top.rglob("*") if path.is_file())
        # A part that is being written has a name that is no key.
        return sorted(filter(is_key, found))

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._folder / key


def open_store(url: str) -> ObjectStore:
    """The store that a URL names: `file:<folder>` or `s3://<bucket>/<prefix>?...` (s3.py)."""
    scheme, _, rest = url.partition(":")
    if scheme == "s3":
        try:
            from services.common.s3 import Bucket, S3Store  # only there where a bucket is used
        except ModuleNotFoundError:
            raise ValueError("S3's client is not installed: pip install sealcomb[s3]") from None
        return S3Store(Bucket.from_url(url))
    if scheme != "file" or not rest:
        raise ValueError("the object store must be file:<folder> or s3://<bucket>/<prefix>")
    return FolderStore(Path(rest.removeprefix("//")), SystemClock())


async def claimed(objects: ObjectStore, owner: str, unless: asyncio.Event) -> bool:
    """Waits until the store answers and is the owner's, trying again and again; False once the event is set.

    Until then a service says that it is not ready, and the log says why. Raises ObjectsRefused.
    """
    wait_s = _CLAIM_WAIT_S
    while not unless.is_set():
        try:
            await asyncio.to_thread(objects.claim, owner)
            return True
        except SealcombError as error:
            _log.warning("waiting for the object store", reason=error.reason)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(unless.wait(), wait_s)
        wait_s = min(2 * wait_s, _CLAIM_WAIT_S_MAX)
    return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _link(temp: Path, path: Path) -> None:
    # Unlike a rename it does not replace.
    try:
        path.hardlink_to(temp)
    except FileExistsError:
        raise AlreadyExists("there is such an object already", reason="OBJECT_EXISTS") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_up(folder: Path, top: Path) -> None:
    while True:
        _sync_folder(folder)
        if folder == top:
            return
        folder = folder.parent


def _storage_error(error: OSError) -> ResourceExhausted | Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted("the storage is full; nothing was written", reason="STORAGE_FULL")
    return Unavailable("the storage failed; try again", reason="STORAGE_FAILED")
