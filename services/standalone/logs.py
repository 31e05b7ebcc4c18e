"""Log files of bounded size: what the services print, one file each, two older ones kept."""

from __future__ import annotations

import os
from pathlib import Path

_SIZE_BYTES_MAX = 10 * 1024 * 1024
_OLDER_KEPT = 2


class LogFile:
    """One service's log; when it is full it becomes `<name>.1` and a new one begins."""

    def __init__(self, path: Path, size_bytes_max: int = _SIZE_BYTES_MAX) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._size_bytes_max = size_bytes_max
        self._descriptor = self._open()
        self._size_bytes = path.stat().st_size

    @property
    def path(self) -> Path:
        """The newest file."""
        return self._path

    def write(self, data: bytes) -> None:
        """Appends; a full disk loses log lines rather than the service."""
        if self._size_bytes + len(data) > self._size_bytes_max and self._size_bytes:
            self._rotate()
        try:
            os.write(self._descriptor, data)
        except OSError:
            return
        self._size_bytes += len(data)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _rotate(self) -> None:
        os.close(self._descriptor)
        for number in range(_OLDER_KEPT, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._descriptor = self._open()
        self._size_bytes = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
