"""The extraction child: locks itself in, reads one document, answers once, ends.

Started by `process` as `python -I -c BOOTSTRAP ...` with an empty environment, three descriptors and
a current folder of its own. It must never read a byte of the document before `sandbox.lock` came back.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from services.ingest.extract import sandbox, wire

_READ_BYTES = 1024 * 1024


def main(parent: int, memory_bytes_max: int, cpu_s_max: int, parser: str) -> None:
    """Runs the child; `parser` is `module`, which has `warm_up()` and `parse(format, content)`."""
    sandbox.prepare(sandbox.Limits(memory_bytes_max, cpu_s_max))
    module = importlib.import_module(parser)
    module.warm_up()
    _empty_current_folder()
    sandbox.lock(parent)
    os.write(1, wire.READY)
    form, content = _read_request()
    _write(wire.encode(_parse(module.parse, form, content)))
    # No atexit, no finalisers: there is nothing to save and what they would run was exposed to the document.
    os._exit(0)


def _parse(parse: Callable[[str, bytes], wire.Extracted], form: str, content: bytes) -> wire.Extracted:
    try:
        return parse(form, content)
    except MemoryError:
        return wire.Extracted(wire.Outcome.REFUSED)
    except Exception:  # noqa: BLE001  (a worker's outermost frame: whatever a parser raises, the document is broken)
        return wire.Extracted(wire.Outcome.BROKEN)


def _read_request() -> tuple[str, bytes]:
    form = _read(int.from_bytes(_read(4), "big")).decode("ascii")
    return form, _read(int.from_bytes(_read(8), "big"))


def _read(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(0, min(size, _READ_BYTES))
        if not part:
            sys.exit(0)  # the parent had no document for this child
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        view = view[os.write(1, view) :]


def _empty_current_folder() -> None:
    # The parser unpacks its native library here; it stays mapped when the file is gone.
    for top, folders, files in os.walk(".", topdown=False):
        for name in files:
            os.unlink(os.path.join(top, name))
        for name in folders:
            os.rmdir(os.path.join(top, name))
