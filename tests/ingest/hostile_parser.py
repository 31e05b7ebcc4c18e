"""A parser that a document has taken over: it runs in the extraction child and tries to get out.

The first line of the document names what to try. What comes back is one line for each attempt,
`name=done` for one that succeeded and `name=errno` for one that did not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import socket
import subprocess
import time
from collections.abc import Callable

from services.ingest.extract.wire import Extracted, ExtractedPage, Outcome

_libc = ctypes.CDLL(None, use_errno=True)
# Attaches without stopping: the twin's parent is the test itself.
_PTRACE_SEIZE = 0x4206
_CLONE_NEWUSER = 0x10000000


def warm_up() -> None:
    """Leaves something in the current folder, as a parser that unpacks a library does."""
    os.makedirs("left/behind")
    with open("left/behind/library.so", "wb") as file:
        file.write(b"x")


def parse(_form: str, content: bytes) -> Extracted:
    """Does what the document says."""
    attempt = content.split(b"\n")[0].decode()
    if attempt in _ENDINGS:
        _ENDINGS[attempt]()
    lines = []
    for name, try_it in _ATTEMPTS[attempt].items():
        try:
            outcome = try_it()
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, "OSError")
        lines.append(f"{name}={'done' if outcome is None else outcome}")
    return Extracted(Outcome.TEXT, pages=(ExtractedPage(0, "\n".join(lines)),))


def _read(path: str) -> Callable[[], None]:
    def attempt() -> None:
        with open(path, "rb") as file:
            file.read(1)

    return attempt


def _write(path: str) -> Callable[[], None]:
    def attempt() -> None:
        with open(path, "wb") as file:
            file.write(b"plaintext")

    return attempt


def _list(path: str) -> Callable[[], None]:
    def attempt() -> None:
        os.listdir(path)

    return attempt


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def _pair() -> None:
    for end in socket.socketpair():
        end.close()


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _run() -> None:
    subprocess.run(["/bin/true"], check=True)


def _executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _descriptors() -> str:
    """Numbers of the open descriptors."""
    found = []
    for number in range(256):
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            continue
        found.append(str(number))
    return ",".join(found)


def _become_root() -> None:
    os.setuid(0)


def _raise_limits() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    except ValueError:
        # Python's words for EPERM here.
        raise PermissionError(errno.EPERM, "") from None


_ATTEMPTS: dict[str, dict[str, Callable[[], str | None]]] = {
    "environment": {"variables": lambda: ",".join(sorted(os.environ))},
    "descriptors": {"open": _descriptors},
    "files": {
        "passwd": _read("/etc/passwd"),
        "own environ": _read("/proc/self/environ"),
        "parent environ": _read(f"/proc/{os.getppid()}/environ"),
        "own code": _read(__file__),
        "root folder": _list("/"),
        "parent folder": _list("../../../.."),
        "write here": _write("canary"),
        "write to tmp": _write("/tmp/canary"),
        "memory file": lambda: os.close(os.memfd_create("canary")),
        "shared memory": _write("/dev/shm/canary"),
    },
    "network": {
        "tcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "tcp6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close(),
        "unix": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close(),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "pair": _pair,
    },
    "processes": {
        "fork": _fork,
        "run": _run,
        "signal parent": lambda: os.kill(os.getppid(), 0),
        "trace parent": lambda: _checked(_libc.ptrace(_PTRACE_SEIZE, os.getppid(), 0, 0)),
        "read parent memory": lambda: _checked(_libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)),
    },
    "another program": {"exec": lambda: os.execv("/bin/true", ["true"])},
    "privileges": {
        "root": _become_root,
        "user namespace": lambda: _checked(_libc.unshare(_CLONE_NEWUSER)),
        "change root": lambda: os.chroot("/"),
        "mount": lambda: _checked(_libc.mount(b"none", b"/", b"tmpfs", 0, None)),
        "executable memory": _executable_memory,
        "limits": _raise_limits,
        "keyring": lambda: _checked(_libc.syscall(250, 0, -1, 1)),
        "io_uring": lambda: _checked(_libc.syscall(425, 1, ctypes.create_string_buffer(120))),
    },
}


def _garbage() -> None:
    os.write(1, b"\xff" * 4096)
    os._exit(0)


def _flood() -> None:
    while True:
        os.write(1, b"\0" * 65536)


def _hoard() -> None:
    kept = []
    while True:
        kept.append(bytes(16 * 1024 * 1024))


def _spin() -> None:
    while True:
        pass


def _segfault() -> None:
    ctypes.memset(0, 0, 1)


_ENDINGS: dict[str, Callable[[], None]] = {
    "garbage": _garbage,
    "flood": _flood,
    "hoard": _hoard,
    "spin": _spin,
    "sleep": lambda: time.sleep(3600),
    "crash": lambda: os.abort(),
    "segfault": _segfault,
    "vanish": lambda: os._exit(0),
}
