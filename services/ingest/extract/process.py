"""The service's side of extraction: one child process for one document, killed in any case.

Children are started ahead of need, locked and warmed up, so that a document does not wait for
imports; each serves one document and ends, so that a document that took its parser over meets no
other document. This module must never trust what a child says beyond `wire.decode`, and never
leave a child running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.common.errors import InvalidArgument, Unavailable, invalid
from services.ingest.extract import wire
from services.ingest.extract.formats import DOCUMENT_EMPTY, DOCUMENT_ENCRYPTED, Format
from services.ingest.extract.wire import Extracted, Outcome

DOCUMENT_BROKEN = "DOCUMENT_BROKEN"
DOCUMENT_REFUSED = "DOCUMENT_REFUSED"
PARSER = "services.ingest.extract.parse"
# `-I` keeps the environment, the current folder and the user's site out; the import root comes by argument.
BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); from services.ingest.extract.worker import main; "
    "main(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])"
)
_IMPORT_ROOT = Path(__file__).resolve().parents[3]
_START_S = 30.0
_START_ATTEMPTS = 3
_READ_BYTES = 256 * 1024
_RESPONSE_BYTES_MAX = wire.OUTPUT_BYTES_MAX + 16 * wire.PAGES_MAX + 64 * 1024

_log = structlog.get_logger("extract")

_REFUSALS = {
    Outcome.BROKEN: (DOCUMENT_BROKEN, "the document is damaged or not of its format"),
    Outcome.ENCRYPTED: (DOCUMENT_ENCRYPTED, "the document is encrypted; remove its password"),
    Outcome.EMPTY: (DOCUMENT_EMPTY, "the document has no text; scanned pages need recognition first"),
    Outcome.REFUSED: (DOCUMENT_REFUSED, "the document unpacks to more than is allowed"),
}


@dataclass(frozen=True, slots=True)
class ExtractionLimits:
    """What one document may cost."""

    memory_bytes_max: int = 2 * 1024**3
    cpu_s_max: int = 120
    wall_s_max: float = 150.0


class Extractor:
    """Extracts text from documents, a few at a time."""

    def __init__(
        self, limits: ExtractionLimits, *, workers: int = 2, parser: str = PARSER, bootstrap: str = BOOTSTRAP
    ) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(workers)
        self._workers = workers
        self._command = (sys.executable, "-I", "-B", "-X", "utf8", "-c", bootstrap, str(_IMPORT_ROOT))
        self._parser = parser
        self._warm: deque[asyncio.Task[_Child]] = deque()
        self._closed = False

    async def start(self) -> None:
        """Starts the first children. Raises Unavailable where the sandbox cannot be had."""
        first = await self._spawn()
        self._warm.append(asyncio.create_task(_ready(first)))
        self._refill()

    async def extract(self, form: Format, content: bytes) -> Extracted:
        """The text of a document.

        Raises InvalidArgument with DOCUMENT_BROKEN, DOCUMENT_ENCRYPTED, DOCUMENT_EMPTY, or
        DOCUMENT_REFUSED where the document exceeded a limit or its parser died of it.
        """
        async with self._slots:
            child = await self._take()
            try:
                async with asyncio.timeout(self._limits.wall_s_max):
                    raw = await child.run(form, content)
            except TimeoutError:
                _log.warning("extraction timed out", pid=child.pid, size_bytes=len(content))
                raise _refused("takes too long to read") from None
            finally:
                await child.kill()
        return _checked(raw)

    async def close(self) -> None:
        """Ends every child."""
        self._closed = True
        while self._warm:
            task = self._warm.popleft()
            with contextlib.suppress(Unavailable, asyncio.CancelledError):
                await (await task).kill()

    async def _take(self) -> _Child:
        for _attempt in range(_START_ATTEMPTS):
            # A task that this call's cancellation must not cancel: its child would be lost.
            task = self._warm.popleft() if self._warm else asyncio.create_task(self._spawn())
            try:
                child = await asyncio.shield(task)
            except asyncio.CancelledError:
                self._warm.append(task)
                raise
            finally:
                self._refill()
            if child.is_alive:
                return child
            await child.kill()
        raise _no_child()

    def _refill(self) -> None:
        while not self._closed and len(self._warm) < self._workers:
            self._warm.append(asyncio.create_task(self._spawn()))

    async def _spawn(self) -> _Child:
        folder = Path(tempfile.mkdtemp(prefix="sealcomb-extract-"))
        limits = self._limits
        arguments = (str(os.getpid()), str(limits.memory_bytes_max), str(limits.cpu_s_max), self._parser)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                cwd=folder,
                # The one folder that the parser may unpack its library to, and nothing of ours.
                env={"TMPDIR": str(folder), "HOME": "/nonexistent", "MALLOC_ARENA_MAX": "2"},
                start_new_session=True,
            )
            child = _Child(process)
            try:
                async with asyncio.timeout(_START_S):
                    await child.wait_ready()
            except BaseException:
                await child.kill()
                raise
            return child
        except (OSError, EOFError, TimeoutError) as error:
            _log.exception("an extraction child did not start", exc_info=error)
            raise _no_child() from None
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


class _Child:
    """One child process, locked in and waiting for its document."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        # Pipes were asked for.
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        self._in = process.stdin
        self._out = process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def wait_ready(self) -> None:
        if await self._out.readexactly(len(wire.READY)) != wire.READY:
            raise EOFError

    async def run(self, form: Format, content: bytes) -> bytes:
        """Gives the document and takes the answer, as far as it is within bounds."""
        feed = asyncio.create_task(self._feed(form, content))
        try:
            return await self._collect()
        finally:
            feed.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feed

    async def kill(self) -> None:
        """Ends the child and all in its session, and reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._in.close()
        await self._process.wait()

    async def _feed(self, form: Format, content: bytes) -> None:
        # A child that died has closed its end; what it answered, if anything, is judged by `_collect`.
        with contextlib.suppress(ConnectionError):
            self._in.write(wire.encode_request(form.value, len(content)))
            for start in range(0, len(content), _READ_BYTES):
                self._in.write(content[start : start + _READ_BYTES])
                await self._in.drain()
            self._in.close()

    async def _collect(self) -> bytes:
        parts = []
        size = 0
        while part := await self._out.read(_READ_BYTES):
            size += len(part)
            if size > _RESPONSE_BYTES_MAX:
                return b""
            parts.append(part)
        return b"".join(parts)


async def _ready(child: _Child) -> _Child:
    return child


def _checked(raw: bytes) -> Extracted:
    try:
        extracted = wire.decode(raw)
    except wire.WireError:
        # Died of the document, or answers garbage, which is worth the same.
        _log.warning("extraction crashed", size_bytes=len(raw))
        raise _refused("could not be read") from None
    if extracted.outcome is not Outcome.TEXT:
        reason, why = _REFUSALS[extracted.outcome]
        raise invalid("chunk", why, reason=reason)
    if not extracted.pages:
        raise invalid("chunk", _REFUSALS[Outcome.EMPTY][1], reason=DOCUMENT_EMPTY)
    return extracted


def _refused(why: str) -> InvalidArgument:
    return invalid("chunk", f"the document {why}; it may be damaged", reason=DOCUMENT_REFUSED)


def _no_child() -> Unavailable:
    return Unavailable(
        "documents cannot be read now; try again", reason="EXTRACTION_UNAVAILABLE", retry_after_s=5.0
    )
