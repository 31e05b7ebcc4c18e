"""strace: which system calls a process makes on its files, and a fault at any one of them.

strace counts the calls of each thread by itself, so a fault is placed by thread, system call and number; what
it hit is read from its output, never assumed.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DURABLE = (
    *("openat", "write", "writev", "pwrite64", "pwritev", "ftruncate", "fallocate"),
    *("fsync", "fdatasync", "rename", "renameat", "renameat2"),
    *("unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "link", "linkat"),
)
_LINE = re.compile(r"^(?:(?P<pid>\d+)\s+)?(?P<name>[a-z0-9_]+)\((?P<rest>.*)$")
_RANDOM = re.compile(r"\.put-[0-9a-f]+|[0-9a-z]{26}|\d{6,}")
_ATTACHED_WITHIN_S = 30.0


@dataclass(frozen=True)
class Site:
    """One system call: the nth of its kind that a thread makes; `what` it is done to, without chance."""

    thread: str
    call: str
    number: int
    what: str


@asynccontextmanager
async def attached(target: int, output: Path, *, follow: bool, inject: str = "") -> AsyncIterator[None]:
    """strace on a process and its threads, or on one thread; detached at the end."""
    output.unlink(missing_ok=True)  # noqa: ASYNC240
    arguments = ["strace", "-y", "-o", str(output), "-e", "trace=" + ",".join(DURABLE)]
    if follow:
        arguments.append("-f")
    if inject:
        arguments += ["-e", "inject=" + inject]
    process = await asyncio.create_subprocess_exec(
        *arguments, "-p", str(target), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    said = await asyncio.wait_for(process.stderr.readline(), _ATTACHED_WITHIN_S)
    assert b"attached" in said, said
    draining = asyncio.create_task(process.stderr.read())
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            # Not its `terminate`, which may collect it before its waiter does.
            os.kill(process.pid, signal.SIGTERM)
        await asyncio.wait_for(process.wait(), _ATTACHED_WITHIN_S)
        await draining


def sites(output: Path, threads: Mapping[str, int], data: Path) -> list[Site]:
    """The durable calls on files below a folder, in order; of threads that have a name."""
    names = {pid: name for name, pid in threads.items()}
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for line in _lines(output):
        pid, call, rest = line
        thread = names.get(pid, "")
        counts[(thread, call)] += 1
        if str(data) in rest and (call != "openat" or "O_CREAT" in rest):
            found.append(Site(thread, call, counts[(thread, call)], target(rest, data)))
    return found


def spread(found: Sequence[Site], most: int) -> list[Site]:
    """At most so many of each kind of call on each kind of file, the first and the last among them."""
    groups: dict[tuple[str, str, str], list[Site]] = {}
    for site in found:
        groups.setdefault((site.thread, site.call, site.what), []).append(site)
    chosen = set()
    for group in groups.values():
        count = min(len(group), most)
        chosen |= {group[round(n * (len(group) - 1) / max(1, count - 1))] for n in range(count)}
    return [site for site in found if site in chosen]


def hit(output: Path, data: Path) -> tuple[str, str] | None:
    """The call that a fault was put into, and what it was done to; None while there was none.

    A fault that kills leaves no mark but the last line.
    """
    for _pid, call, rest in _lines(output):
        if "(INJECTED)" in rest:
            return call, target(rest, data)
    return None


def touched(output: Path, data: Path) -> int:
    """How many calls there were on files below a folder."""
    return sum(str(data) in rest for _pid, _call, rest in _lines(output))


def target(rest: str, data: Path) -> str:
    """The file that a call names, relative to the data and without what chance gave it."""
    place = rest.find(str(data))
    if place < 0:
        return "elsewhere"
    path = re.split(r'[>",]', rest[place + len(str(data)) :], maxsplit=1)[0]
    return _RANDOM.sub("*", path.strip("/")) or "."


def _lines(output: Path) -> list[tuple[int, str, str]]:
    found = []
    with suppress(FileNotFoundError):
        for line in output.read_text(errors="replace").splitlines():
            match = _LINE.match(line)
            if match:
                found.append((int(match["pid"] or 0), match["name"], match["rest"]))
    return found
