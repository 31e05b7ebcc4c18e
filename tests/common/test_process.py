"""What a process with keys does to itself first: memory locked, a generator that is random (D16, D24)."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from services.common import process
from services.common.process import RandomnessRefused, check_randomness, lock_memory

_GETRANDOM = {"x86_64": 318, "aarch64": 278}
_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
}


def _run(script: str) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_memory_is_locked_where_the_process_may() -> None:
    """D16, with its twin: the kernel counts locked memory after the call and none before."""
    script = (
        "from pathlib import Path\n"
        "from services.common.process import lock_memory\n"
        "def locked():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmLck'))\n"
        "before = locked()\n"
        "done = lock_memory()\n"
        "block = bytearray(8 << 20)\n"
        "print(before, int(done), int(locked() > 8 << 10))\n"
    )
    assert _run(script).split() in (["0", "1", "1"], ["0", "0", "0"])
    if os.geteuid() == 0 and process._has_capability(Path("/proc/self/status"), process._CAP_IPC_LOCK):
        assert _run(script).split() == ["0", "1", "1"]


def test_a_finite_limit_is_not_used_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Locking under a limit would make later allocations fail: rather none is locked."""
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (8 << 20, 8 << 20))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: pytest.fail("locked all the same"))
    assert not lock_memory(status)
    assert not lock_memory(tmp_path / "missing")


def test_a_generator_that_fails_waits_or_repeats_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """D24: each with its own message, and no key is made."""

    def fail(error: OSError) -> None:
        def getrandom(_size: int, _flags: int) -> bytes:
            raise error

        monkeypatch.setattr(os, "getrandom", getrandom)

    check_randomness()
    fail(BlockingIOError())
    with pytest.raises(RandomnessRefused, match="not ready"):
        check_randomness()
    fail(PermissionError(1, "Operation not permitted"))
    with pytest.raises(RandomnessRefused, match="not permitted"):
        check_randomness()
    draws = [bytes(32), os.urandom(32)]
    for size in range(2):
        monkeypatch.setattr(os, "getrandom", lambda _size, _flags, draw=draws[size]: draw)
        with pytest.raises(RandomnessRefused, match="repeats itself"):
            check_randomness()


@pytest.mark.parametrize("checked", [True, False])
def test_a_process_that_the_kernel_denies_randomness_does_not_start(checked: bool) -> None:
    """D24, by a filter of system calls; its twin starts, since Python goes on without them."""
    number = _GETRANDOM.get(platform.machine())
    assert number is not None, "name this machine's getrandom"
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    program = b"".join(struct.pack("HBBI", *line) for line in code)
    script = (
        "import ctypes, os, sys\n"
        f"filter = ctypes.create_string_buffer({program!r}, {len(program)})\n"
        "class Program(ctypes.Structure):\n"
        "    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]\n"
        f"program = Program({len(code)}, ctypes.addressof(filter))\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
        "assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0\n"
        "command = [sys.executable, '-c', os.environ['CHECKED']]\n"
        "os.execv(sys.executable, command)\n"
    )
    start = "from services.common.process import check_randomness\n" + ("check_randomness()\n" * checked)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**_ENVIRONMENT, "CHECKED": start + "print('started')"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout == "started\n") is not checked
    assert ("the kernel's random generator fails: Operation not permitted" in done.stderr) is checked


def test_free_blocks_are_overwritten() -> None:
    """E1: small objects that are gone are still there to be read until then, which is the twin."""
    script = """
import gc, os, re, secrets
from services.common.process import overwrite_free_blocks
MARK = secrets.token_hex(8).encode()
def copies():
    found = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            place = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if place:
                start, end = int(place[1], 16), int(place[2], 16)
                memory.seek(start)
                content = bytearray(end - start)
                try:
                    memory.readinto(content)
                except OSError:
                    continue
                found += content.count(MARK + b"!")
                content[:] = bytes(len(content))
    return found
left = [b"%s!%s" % (MARK, b"x" * size) for size in range(8, 440, 4)]
left = None
before = copies()
overwrite_free_blocks()
print(before, copies())
"""
    before, after = map(int, _run(script).split())
    assert before > 20
    assert after == 0


def test_freed_memory_is_handed_back_to_the_system_and_not_before() -> None:
    script = """
import os
from services.common.process import give_memory_back
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
blocks = [bytes(3000) for _ in range(40000)]
pins = blocks[::50]
del blocks
kept = resident() - before
give_memory_back()
print(kept, resident() - before)
"""
    kept, left = map(int, _run(script).split())
    assert kept > 80_000_000
    assert left < kept // 2
