"""A vectorstore that is made to be killed: forked anew for each life, so that a life begins quickly.

For each line on standard input, settings as JSON, a child is forked, which prints `born PID`. It serves
once it reads `go`; from then on it answers `threads` with the ids of its threads by name. When it
has ended, `ended STATUS` is printed. Everything else is the process that ships, but that a pool has one
thread, and from the start, so that the nth call of a thread is the same one in each life.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop

from services.common.process import forbid_dumps
from services.common.telemetry import configure_logging
from services.vectorstore import node
from services.vectorstore.config import VectorstoreSettings
from services.vectorstore.log import Committer
from services.vectorstore.main import serve
from services.vectorstore.schema import Append


class _OneThread(ThreadPoolExecutor):
    """A pool that begins its only thread at once."""

    def __init__(self, _threads: int, name: str = "", **others: Any) -> None:
        super().__init__(1, name, **others)
        self.submit(lambda: None).result()


_commit = Committer.commit
_later: set[asyncio.Task[None]] = set()


async def _commit_later(self: Committer, append: Append) -> None:
    """The twin of a commit: it is answered before it is begun."""
    _later.add(asyncio.create_task(_commit(self, append)))


def _line() -> str:
    # Byte by byte: what comes after the line is for the next life.
    read = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        read += byte
    return read.decode() if byte else ""


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def _threads() -> dict[str, int]:
    found = {thread.name: thread.native_id or 0 for thread in threading.enumerate()}
    # The one that forked is still remembered under its id before.
    return found | {threading.main_thread().name: os.getpid()}


def _answer() -> None:
    while _line() == "threads":
        _say(json.dumps(_threads()))


def _live(settings: VectorstoreSettings, hasty: bool) -> None:
    forbid_dumps()
    _say(f"born {os.getpid()}")
    if _line() != "go":
        os._exit(3)
    threading.Thread(target=_answer, name="answers", daemon=True).start()
    if hasty:
        Committer.commit = _commit_later  # type: ignore[method-assign]
    vars(node)["ThreadPoolExecutor"] = _OneThread
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
    # Without a last look at standard input, which the thread still reads.
    os._exit(0)


def main() -> None:
    """Begins lives until standard input ends."""
    configure_logging("vectorstore")
    while line := _line():
        wanted = json.loads(line)
        hasty = wanted.pop("hasty")
        settings = VectorstoreSettings(**wanted)
        child = os.fork()
        if child == 0:
            try:
                _live(settings, hasty)
            except BaseException as error:  # noqa: BLE001  (a fork must never return)
                print(f"life ended by {error!r}", file=sys.stderr, flush=True)
                os._exit(4)
        _pid, status = os.waitpid(child, 0)
        _say(f"ended {status}")


if __name__ == "__main__":
    main()
