"""Reading a file that holds a secret, if nobody but us could have read or changed it.

The rule is PostgreSQL's for its server key: our own file is closed to group and others; one that
root gives us, as an orchestrator mounts its secrets, may be read by our group, and by no more.
"""

from __future__ import annotations

import os
from pathlib import Path

_OWN_FORBIDDEN = 0o077
_ROOTS_FORBIDDEN = 0o037


class SecretFileOpen(ValueError):
    """Others may read or change the file; the text names it and says what to do."""


def read_secret_file(path: Path, bytes_max: int) -> bytes:
    """The file's first bytes, `bytes_max` at most.

    Raises OSError if it cannot be read, SecretFileOpen if others could have read or changed it.
    """
    with open(path, "rb", opener=_open) as file:
        # Asked of the open file, so that what is checked is what is read.
        status = os.fstat(file.fileno())
        check_closed(path.name, status.st_mode, status.st_uid, os.geteuid())
        return file.read(bytes_max)


def check_closed(name: str, mode: int, owner: int, process: int) -> None:
    """Raises SecretFileOpen unless a file with this mode and owner is closed to all but this user."""
    if owner == process:
        if mode & _OWN_FORBIDDEN:
            raise SecretFileOpen(f"{name} is open to others; chmod 600 it")
    elif owner != 0:
        raise SecretFileOpen(f"{name} belongs to another user; chown it")
    elif mode & _ROOTS_FORBIDDEN:
        raise SecretFileOpen(f"{name} is open to others; chmod 640 it")


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC)
