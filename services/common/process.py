"""What a process that holds keys does to itself before it reads the first one.

Memory holds keys and plaintext, so it must never become a file: no core dump, no dump through
ptrace or /proc by another user. Memory is not locked against swap; `swap_is_on` lets a service
say so at its start.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """Turns core dumps and ptrace by other users off for this process; OSError if it cannot."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def swap_is_on(swaps: Path = Path("/proc/swaps")) -> bool:
    """Whether the machine may write memory to a swap device."""
    try:
        return len(swaps.read_text().splitlines()) > 1
    except OSError:
        return False
