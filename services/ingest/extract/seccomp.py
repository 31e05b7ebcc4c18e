"""A system-call filter for the extraction child: what is not listed fails with EPERM.

The child has its whole document before the filter goes on and its only way out is a pipe, so it
needs memory, threads, time and read/write on descriptors that are open already. It must never be
able to open, connect, fork, execute, trace, signal another process or map memory executable.

The filter is classic BPF (seccomp(2), Documentation/userspace-api/seccomp_filter.rst of Linux)
over struct seccomp_data: nr at 0, arch at 4, args at 16 in steps of 8, little-endian.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL = 0x80000000
_NR, _ARCH, _ARGS = 0, 4, 16

_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1
_CLONE_THREAD = 0x00010000
_PROT_EXEC = 0x4
_PR_SET_NAME = 15
_X32_BIT = 0x40000000

# Plain permissions, as (x86-64, aarch64); -1: not on that machine.
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "poll": (7, -1),
    "ppoll": (271, 73),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "uname": (63, 160),
    "fcntl": (72, 25),
    "sysinfo": (99, 179),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "epoll_wait": (232, -1),
    "epoll_pwait": (281, 22),
    "epoll_ctl": (233, 21),
    "epoll_create1": (291, 20),
    "eventfd2": (290, 19),
    "set_robust_list": (273, 99),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
}


@dataclass(frozen=True, slots=True)
class _Machine:
    column: int
    arch: int
    seccomp: int
    clone: int
    clone3: int
    mmap: int
    mprotect: int
    prctl: int
    tgkill: int


_MACHINES = {
    "x86_64": _Machine(0, 0xC000003E, 317, 56, 435, 9, 10, 157, 234),
    "aarch64": _Machine(1, 0xC00000B7, 277, 220, 435, 222, 226, 167, 131),
}


class SeccompUnavailable(OSError):
    """The kernel or the machine cannot filter; the child must not go on."""


def install() -> None:
    """Puts the filter on every thread of this process, for good. no_new_privs must be set."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise SeccompUnavailable("no system-call table for this machine")
    program = _program(machine, os.getpid())
    code = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(machine.seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, header) != 0:
        raise SeccompUnavailable(ctypes.get_errno(), "the system-call filter was refused")


def _program(machine: _Machine, pid: int) -> bytes:
    deny = _step(_RETURN, _ERRNO | errno.EPERM)
    allow = _step(_RETURN, _ALLOW)
    code = [
        _step(_LOAD, _ARCH),
        _step(_EQUAL, machine.arch, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NR),
        # x32 calls on x86-64 would be other numbers for the same calls.
        _step(_AT_LEAST, _X32_BIT, 0, 1),
        deny,
        # glibc falls back to clone, whose flags can be seen, where clone3 does not exist.
        *_when(machine.clone3, [_step(_RETURN, _ERRNO | errno.ENOSYS)]),
        *_when(machine.clone, [_step(_LOAD, _ARGS), _step(_ANY_BIT, _CLONE_THREAD, 0, 1), allow, deny]),
    ]
    for nr in (machine.mmap, machine.mprotect):
        code += _when(nr, [_step(_LOAD, _ARGS + 16), _step(_ANY_BIT, _PROT_EXEC, 0, 1), deny, allow])
    code += _when(machine.prctl, [_step(_LOAD, _ARGS), _step(_EQUAL, _PR_SET_NAME, 0, 1), allow, deny])
    # abort() signals the process itself; no other one may be signalled.
    code += _when(machine.tgkill, [_step(_LOAD, _ARGS), _step(_EQUAL, pid, 0, 1), allow, deny])
    for numbers in _ALLOWED.values():
        if numbers[machine.column] >= 0:
            code += _when(numbers[machine.column], [allow])
    return b"".join((*code, deny))


def _when(nr: int, body: list[bytes]) -> list[bytes]:
    """The body, skipped unless the call's number is `nr`; it must end in a return."""
    return [_step(_EQUAL, nr, 0, len(body)), *body]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
