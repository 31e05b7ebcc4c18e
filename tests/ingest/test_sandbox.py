"""The extraction child, with a parser that is taken over (E21) and with bombs (E19, E20, E22, E25)."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from services.common.errors import InvalidArgument, SealcombError, Unavailable
from services.ingest.extract.formats import Format
from services.ingest.extract.process import BOOTSTRAP, ExtractionLimits, Extractor
from tests.ingest.samples.bombs import BOMBS
from tests.ingest.samples.documents import zipped

HOSTILE = "tests.ingest.hostile_parser"
# The twin: the same child with the sandbox replaced by nothing.
OPEN_BOOTSTRAP = BOOTSTRAP.replace(
    "main(int",
    "from services.ingest.extract import sandbox; sandbox.prepare = sandbox.lock = lambda *_: None; main(int",
)
REFUSALS = {"EPERM", "EACCES", "ENOENT", "ENOSYS"}
_MIB = 1024 * 1024


def _limits(
    *, memory_bytes_max: int = 2048 * _MIB, cpu_s_max: int = 60, wall_s_max: float = 60.0
) -> ExtractionLimits:
    return ExtractionLimits(memory_bytes_max, cpu_s_max, wall_s_max)


def _remove_canaries() -> None:
    for folder in (tempfile.gettempdir(), "/dev/shm"):
        Path(folder, "canary").unlink(missing_ok=True)


@pytest.fixture
async def extractor() -> AsyncIterator[Extractor]:
    """The real parser in the real sandbox."""
    made = Extractor(_limits(), workers=1)
    yield made
    await made.close()


async def _attempt(
    what: str, *, bootstrap: str = BOOTSTRAP, limits: ExtractionLimits | None = None
) -> dict[str, str]:
    extractor = Extractor(limits or _limits(), workers=1, parser=HOSTILE, bootstrap=bootstrap)
    try:
        extracted = await extractor.extract(Format.TEXT, what.encode())
    finally:
        await extractor.close()
    return dict(line.split("=", 1) for line in extracted.pages[0].text.splitlines())


@pytest.mark.parametrize("what", ["files", "network", "processes", "another program", "privileges"])
async def test_a_parser_that_is_taken_over_reaches_nothing(what: str) -> None:
    """E21: every attempt fails."""
    outcomes = await _attempt(what)
    assert outcomes
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in REFUSALS} == {}


async def test_the_twin_without_the_sandbox_the_same_attempts_succeed() -> None:
    """E21, twin: the attempts are real ones."""
    files = await _attempt("files", bootstrap=OPEN_BOOTSTRAP)
    assert files["passwd"] == files["own environ"] == files["write to tmp"] == files["memory file"] == "done"
    network = await _attempt("network", bootstrap=OPEN_BOOTSTRAP)
    assert network["tcp"] == network["unix"] == network["pair"] == "done"
    processes = await _attempt("processes", bootstrap=OPEN_BOOTSTRAP)
    assert processes["fork"] == processes["run"] == "done"
    with pytest.raises(InvalidArgument):  # the child became another program, which says nothing
        await _attempt("another program", bootstrap=OPEN_BOOTSTRAP)
    privileges = await _attempt("privileges", bootstrap=OPEN_BOOTSTRAP)
    assert privileges["executable memory"] == "done"
    _remove_canaries()


async def test_the_child_inherits_no_variable_and_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """E21: nothing of the service's environment, and its own pipes alone."""
    monkeypatch.setenv("SEALCOMB_CANARY", "secret")
    with (tmp_path / "open").open("wb") as held:
        os.set_inheritable(held.fileno(), True)
        variables = set((await _attempt("environment"))["variables"].split(","))
        descriptors = (await _attempt("descriptors"))["open"].split(",")
    # What our package sets for itself in every process is no inheritance.
    given = {name for name in variables if not name.startswith("GRPC_")}
    assert given - {"LC_CTYPE"} == {"HOME", "MALLOC_ARENA_MAX", "TMPDIR"}
    assert descriptors == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["garbage", "flood", "crash", "segfault", "vanish", "hoard"])
async def test_a_child_that_dies_or_answers_garbage_is_a_typed_refusal(how: str) -> None:
    """E20, E21: the service survives, and the next document is read by another child."""
    extractor = Extractor(_limits(memory_bytes_max=512 * _MIB), workers=1, parser=HOSTILE)
    try:
        with pytest.raises(InvalidArgument) as caught:
            await extractor.extract(Format.TEXT, how.encode())
        assert caught.value.reason == "DOCUMENT_REFUSED"
        assert (await extractor.extract(Format.TEXT, b"environment")).pages
    finally:
        await extractor.close()


@pytest.mark.parametrize(
    ("how", "limits"), [("sleep", _limits(wall_s_max=1.0)), ("spin", _limits(cpu_s_max=1))]
)
async def test_time_is_bounded_on_the_wall_and_on_the_processor(how: str, limits: ExtractionLimits) -> None:
    """E20: no document holds a child for longer than its limit."""
    extractor = Extractor(limits, workers=1, parser=HOSTILE)
    try:
        started = time.monotonic()
        with pytest.raises(InvalidArgument) as caught:
            await extractor.extract(Format.TEXT, how.encode())
        assert caught.value.reason == "DOCUMENT_REFUSED"
        assert time.monotonic() - started < 20
    finally:
        await extractor.close()


async def test_a_caller_that_leaves_leaves_no_child() -> None:
    """Cancelled in the middle of a document: the child is killed and reaped."""
    before = set(psutil.Process().children(recursive=True))
    extractor = Extractor(_limits(), workers=1, parser=HOSTILE)
    await extractor.start()
    running = asyncio.create_task(extractor.extract(Format.TEXT, b"sleep"))
    await asyncio.sleep(0.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await extractor.close()
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_child_that_cannot_be_locked_in_takes_no_document() -> None:
    """Fails closed: where the sandbox cannot be had, there is no extraction."""
    broken = BOOTSTRAP.replace(
        "main(int",
        "from services.ingest.extract import seccomp; seccomp._MACHINES.clear(); main(int",
    )
    extractor = Extractor(_limits(), workers=1, parser=HOSTILE, bootstrap=broken)
    with pytest.raises(Unavailable):
        await extractor.start()
    await extractor.close()


async def test_nothing_is_left_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """E25: what the parser unpacks is gone, and no document was ever there."""
    made: list[str] = []
    make = tempfile.mkdtemp

    def noted(*arguments: str, **named: str) -> str:
        made.append(make(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    extractor = Extractor(_limits(), workers=1)
    await extractor.start()
    await extractor.extract(Format.TEXT, b"words of a document")
    await extractor.close()
    assert made
    assert not await asyncio.to_thread(list, filter(os.path.exists, made))


_EXTERNAL = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    b"<w:body><w:p><w:r><w:t>before &a; after</w:t></w:r></w:p></w:body></w:document>"
)


@pytest.mark.parametrize("name", list(BOMBS))
async def test_a_bomb_is_stopped_within_bounds_and_the_next_document_is_read(
    name: str, extractor: Extractor
) -> None:
    """E19, E20, E22: a typed error in bounded time and memory; the service is untouched."""
    form, make = BOMBS[name]
    content = make()
    memory_before = psutil.Process().memory_info().rss
    started = time.monotonic()
    reason, words = "", 0
    try:
        words = sum(len(page.text) for page in (await extractor.extract(form, content)).pages)
    except SealcombError as error:
        reason = error.reason
    # Refused, or read without being expanded.
    assert reason in {"", "DOCUMENT_REFUSED", "DOCUMENT_BROKEN", "DOCUMENT_EMPTY"}
    assert words <= len(content)
    assert time.monotonic() - started < 30
    assert psutil.Process().memory_info().rss - memory_before < 128 * _MIB
    assert (await extractor.extract(Format.TEXT, b"still here")).pages[0].text == "still here"


async def test_external_entities_bring_nothing_in(extractor: Extractor) -> None:
    """E22: no file of ours appears in a document's text."""
    try:
        extracted = await extractor.extract(Format.DOCX, zipped({"word/document.xml": _EXTERNAL}))
    except InvalidArgument:
        return
    assert "root:" not in extracted.pages[0].text
