"""A keyvault on a small disk that fills up, as a process of its own; prints what happened.

`python -m tests.keyvault.full_disk FOLDER` mounts a tmpfs of 3 MB there. Where nobody may mount, its own
files are limited in size instead, which SQLite meets in the same place: a write that fails. With
`unrecorded` releases are not recorded: the twin.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from services.common import ids
from services.common.errors import SealcombError
from services.keyvault.kms.file import FileKms
from services.keyvault.transaction import Transaction
from tests.keyvault.rig import Rig

_DISK_BYTES = 3 * 1024 * 1024
_TRIES_MAX = 20_000
_REFUSALS = 20


class _Disk:
    """The small disk: full until it is freed."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"size={_DISK_BYTES}".encode()
        self.is_mounted = libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options) == 0

    def fill(self) -> None:
        """Leaves no byte."""
        if not self.is_mounted:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, resource.RLIM_INFINITY))
            return
        with self._filler.open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        """Gives the room back."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self._filler.unlink(missing_ok=True)


async def _live(folder: Path, *, recorded: bool) -> dict[str, Any]:
    disk = _Disk(folder)
    rig = Rig(folder / "keyvault.db", FileKms(bytes(range(32))))
    account = await rig.account()
    asker = rig.asker(account)
    held = ids.new_id()
    await rig.releases.release(asker, held, "collection")
    if not recorded:
        Transaction.append = lambda *_arguments: None  # type: ignore[method-assign]
        # The count of releases is written too, and would not fit either.
        Transaction.count_release = lambda *_arguments: None  # type: ignore[method-assign]
    before = len(await rig.acts(account))
    disk.fill()
    released, reasons = 0, []
    for _ in range(_TRIES_MAX):
        try:
            await rig.releases.release(asker, held, "collection")
            released += 1
        except SealcombError as error:
            reasons.append(error.reason)
            if len(reasons) == _REFUSALS:
                break
        if not recorded and released == 500:
            break
    records = len(await rig.acts(account)) - before
    disk.free()
    again = await rig.releases.release(asker, held, "collection")
    made = await rig.releases.release(asker, ids.new_id(), "collection")
    found = {
        "released": released,
        "records": records,
        "reasons": sorted(set(reasons)),
        "refused": len(reasons),
        "again": again.id != made.id,
        "first_bad": await rig.chain.first_bad(account),
        "mounted": disk.is_mounted,
    }
    rig.close()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_live(Path(sys.argv[1]), recorded="unrecorded" not in sys.argv))))
