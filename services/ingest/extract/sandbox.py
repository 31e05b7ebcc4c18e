"""What the extraction child gives up, in two steps, before it sees a byte of a document.

`prepare` runs before the parser is imported, `lock` after it was imported and warmed up. After
`lock` the process has no network, no files, no other process, no privileges, and bounded memory,
CPU, descriptors and threads. Namespaces and the empty root come on top where the kernel lets us;
the limits, the loss of root and the system-call filter are conditions: without them the child ends.

This module must never give anything back, and never be imported by the service itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from dataclasses import dataclass

from services.ingest.extract import seccomp

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_DESCRIPTORS_MAX = 64
_THREADS_MAX = 64
# Far from the ids of people and services; each child its own, so that none sees another.
_UID_FIRST = 1_900_000_000
_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits of one child."""

    memory_bytes_max: int
    cpu_s_max: int


def prepare(limits: Limits) -> None:
    """Limits and namespaces; the parser may still be loaded from files afterwards."""
    os.umask(0o077)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, limits.memory_bytes_max)
    _limit(resource.RLIMIT_CPU, limits.cpu_s_max)
    _limit(resource.RLIMIT_NOFILE, _DESCRIPTORS_MAX)
    namespaces = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET
    if os.geteuid() != 0:
        namespaces |= _CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    # Containers often forbid namespaces; the filter holds the same doors shut.
    libc.unshare(namespaces)


def lock(parent: int) -> None:
    """Gives up the rest, for good; the current folder must be an empty one, which becomes the root."""
    _limit(resource.RLIMIT_FSIZE, 0)
    with contextlib.suppress(OSError):
        # Where this is forbidden, the filter alone refuses every path.
        os.chroot(".")
    if os.geteuid() == 0:
        _drop_root()
    _limit(resource.RLIMIT_NPROC, _THREADS_MAX)
    _prctl(_PR_SET_DUMPABLE, 0)
    # After the change of user, which would have cleared it.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, 0):
        raise RuntimeError("the parent is gone")
    seccomp.install()


def _drop_root() -> None:
    os.setgroups([])
    for user in (_UID_FIRST + os.getpid() % 100_000_000, _NOBODY):
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:
            continue  # not mapped in this user namespace
        return
    raise RuntimeError("root cannot be given up")


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
