"""A6, A7, A10, A19 by the thousand: connections and streams that do nothing, disorder in header tables.

Everything here is the work of an attacker's process, or what a report does with several of them.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hpack

from tests.attacks.edge_floods import Target
from tests.attacks.edge_slow import KINDS, cut_after
from tests.attacks.frames import (
    DATA,
    EMPTY_MESSAGE,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    QUERY,
    UPLOAD,
    Attacker,
    attacker,
    call_headers,
    frame,
)
from tests.gateway.rig import Edge

# What HTTP/2 lets one connection have.
_STREAMS = 100
# Calls of one connection before the block that ends it.
_CALLS_EACH = 400
# A table entry that is not there; an end that does not come; a table larger than allowed.
_BROKEN = (b"\xff\xff\xff\xff\x0f", b"\xbe", b"\x3f\xe1\xff\xff\xff\x0f", b"\x40\x82\xff\xff\x01a")


def stall(index: int, target: Target, count: int, watch_s: float) -> list[float | None]:
    """So many connections of one kind of `KINDS`: when each was ended."""
    many_files()
    return cut_after(target, KINDS[index], count, watch_s)


@dataclass(frozen=True)
class Held:
    """What an attacker holds until a file appears."""

    tried: int
    taken: int


def hold_connections(target: Target, count: int, until: Path, ready: Path) -> Held:
    """As many connections as it gets of so many, each with its preface sent."""
    many_files()
    taken = 0
    with ExitStack() as stack:
        for _ in range(count):
            try:
                one = stack.enter_context(attacker(target.port, target.ca_file))
            except OSError:
                continue
            # Some are taken by the kernel and closed by the edge.
            one.wait_for(4, 5)
            taken += not one.closed
        _wait(until, ready)
    return Held(count, taken)


def hold_uploads(target: Target, count: int, until: Path, ready: Path) -> Held:
    """So many uploads that send nothing, a hundred on each connection; how many are still open."""
    many_files()
    opened: list[Attacker] = []
    with ExitStack() as stack:
        for _ in range(count // _STREAMS):
            one = stack.enter_context(attacker(target.port, target.ca_file))
            for _ in range(_STREAMS):
                one.send(one.headers(call_headers(UPLOAD, target.token))[1])
            opened.append(one)
        # Until those that are refused were told so.
        settled = time.monotonic() + 3
        while time.monotonic() < settled:
            for one in opened:
                one.take()
            time.sleep(0.05)
        left = sum(_STREAMS - len(one.over) for one in opened)
        _wait(until, ready)
    return Held(count, left)


def disorder(target: Target, count: int) -> int:
    """So many calls whose headers fill and shrink the table, some followed by a broken block; how many."""
    sent = 0
    while sent < count:
        with attacker(target.port, target.ca_file) as one:
            one.encoder = hpack.Encoder()
            for batch in range(_CALLS_EACH // _STREAMS):
                # Never more than fit in the table at once, and a table of another size each time.
                one.encoder.header_table_size = (4096, 0, 256, 1024)[batch % 4]
                calls = [_disorderly(one, target, sent + number) for number in range(_STREAMS // 2)]
                one.send(b"".join(calls))
                sent += _STREAMS // 2
                _answered(one, (batch + 1) * _STREAMS // 2)
            one.send(frame(HEADERS, END_HEADERS | END_STREAM, one.new_stream(), _BROKEN[sent % len(_BROKEN)]))
            one.wait(5)
    return sent


def _disorderly(one: Attacker, target: Target, number: int) -> bytes:
    stream = one.new_stream()
    fields = [
        *call_headers(QUERY, target.token),
        ("user-agent", f"mallory-{number % 7}"),
        (f"x-poison-{number % 5}", "p" * (number % 300)),
    ]
    block = bytes(one.encoder.encode(fields))
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, EMPTY_MESSAGE)


def _answered(one: Attacker, streams: int) -> None:
    deadline = time.monotonic() + 20
    while not one.closed and one.ended_streams < streams and time.monotonic() < deadline:
        one.wait_some(0.2)


@contextmanager
def held(
    begin: Callable[[int, Path, Path], Future[Held]], folder: Path, workers: int, timeout_s: float = 240
) -> Iterator[list[Held]]:
    """Runs the block once each worker holds what it gets; what each held is there after the block."""
    until = folder / f"over-{time.monotonic_ns()}"
    ready = [until.with_suffix(f".{number}") for number in range(workers)]
    jobs = [begin(number, until, ready[number]) for number in range(workers)]
    found: list[Held] = []
    try:
        deadline = time.monotonic() + timeout_s
        while not all(path.exists() for path in ready) and not any(job.done() for job in jobs):
            assert time.monotonic() < deadline, "the attackers did not get ready"
            time.sleep(0.1)
        yield found
    finally:
        until.touch()
        found += [job.result() for job in jobs]


def open_files(edge: Edge) -> int:
    """Files and sockets that the edge's Envoy has open."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in edge.envoy_pids())


def many_files() -> None:
    """As many sockets as this process may have at all."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _wait(until: Path, ready: Path) -> None:
    ready.touch()
    deadline = time.monotonic() + 300
    while not until.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
