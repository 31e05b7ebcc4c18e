"""One running installation per data folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

# Services of a run that was killed may take a moment to end.
_WAIT_S = 5.0
_EVERY_S = 0.1


class DataFolderInUse(Exception):
    """Another installation runs on the data folder."""


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """Holds the folder for the block; yields the descriptor that holds it. Makes the folder if need be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _acquire(descriptor, folder)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path) -> None:
    end_s = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end_s:
                raise DataFolderInUse(f"another installation runs on {folder}; stop it first") from None
            time.sleep(_EVERY_S)
        else:
            return
