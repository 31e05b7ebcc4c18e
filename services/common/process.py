"""What a process that holds keys does to itself before it reads the first one.

Memory holds keys and plaintext, so it must never become a file: no core dump, no dump through
ptrace or /proc by another user, and where the process may, none of it on a swap device.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4
# mlockall(2). On fault, since everything at once would count stacks and arenas that nobody has touched.
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK = 14
_RANDOM_BYTES = 32
# CPython's allocator of small objects: classes of 16 bytes up to 512, in pools that are never cleared.
_BLOCK_STEP, _BLOCK_MAX = 16, 512
_BLOCKS = 4_096


def give_memory_back() -> None:
    """Hands memory that was freed back to the system, where the allocator can (glibc); takes milliseconds.

    What many short-lived large things leave behind would otherwise stay with the process for good.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class RandomnessRefused(ValueError):
    """The kernel's random generator does not answer, or not at random: no key may be made."""


def forbid_dumps() -> None:
    """Turns core dumps and ptrace by other users off for this process; OSError if it cannot."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def lock_memory(status: Path = Path("/proc/self/status")) -> bool:
    """Keeps all memory of this process, present and future, off swap devices; False where it may not.

    A finite limit would not do: once it is reached, every further allocation fails.
    """
    if not _has_capability(status, _CAP_IPC_LOCK):
        _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if hard != resource.RLIM_INFINITY:
            return False
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)


def check_randomness() -> None:
    """Raises RandomnessRefused unless the kernel's generator is ready and gives what differs.

    Every key, salt and id comes from it. It says nothing of a generator that is bad in secret.
    """
    try:
        drawn = [os.getrandom(_RANDOM_BYTES, os.GRND_NONBLOCK) for _ in range(2)]
    except BlockingIOError:
        raise RandomnessRefused("the kernel's random generator is not ready yet; start again") from None
    except OSError as error:
        raise RandomnessRefused(f"the kernel's random generator fails: {error.strerror}") from None
    if drawn[0] == drawn[1] or any(len(set(draw)) < _RANDOM_BYTES // 4 for draw in drawn):
        raise RandomnessRefused("the kernel's random generator repeats itself; keys would be known")


def _has_capability(status: Path, number: int) -> bool:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return False
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> number & 1)


def swap_is_on(swaps: Path = Path("/proc/swaps")) -> bool:
    """Whether the machine may write memory to a swap device."""
    try:
        return len(swaps.read_text().splitlines()) > 1
    except OSError:
        return False


def overwrite_free_blocks() -> None:
    """Overwrites what small objects have left behind in memory that Python keeps for new ones.

    Takes and gives back many blocks of each size: free ones are handed out before fresh memory is. A
    matter of milliseconds; larger blocks are the C library's, see docs/adr/0014.
    """
    overhead = sys.getsizeof(b"")
    for size in range(_BLOCK_MAX, _BLOCK_STEP, -_BLOCK_STEP):
        if size > overhead:
            blocks = [bytes(size - overhead) for _ in range(_BLOCKS)]
            blocks.clear()
