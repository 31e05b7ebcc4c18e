"""Finds secrets where they must not be: in any file, in any of the forms in which they leak.

Each secret is looked for by two halves, so that a copy cut at a page or record boundary is found
as well: as it is, in base64 and base64url at each of the three alignments, in hex, percent-encoded,
JSON-escaped, in UTF-16, and inside gzip and zlib streams. Vectors are looked for as their bytes and
as decimal text.
"""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_INFLATED_BYTES_MAX = 16 * 1024 * 1024
_HALF_BYTES = 15
# Every first byte pair of a zlib stream with the usual window, and gzip's.
_STREAM_STARTS = (b"\x1f\x8b\x08", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


@dataclass(frozen=True, slots=True)
class Leak:
    """A secret that was found."""

    canary: str
    form: str
    where: str


class Canaries:
    """The secrets of one scenario, each under the name of its class."""

    def __init__(self) -> None:
        self._patterns: dict[str, dict[str, bytes]] = {}

    def text(self, name: str, secret: str) -> str:
        """Adds a text of at least 30 bytes; returns it."""
        raw = secret.encode()
        assert len(raw) >= 2 * _HALF_BYTES, "too short to be unique"
        patterns: dict[str, bytes] = {}
        for part, half in (("head", raw[:_HALF_BYTES]), ("tail", raw[-_HALF_BYTES:])):
            patterns |= {f"{form} {part}": pattern for form, pattern in _byte_forms(half).items()}
        for form, pattern in _text_forms(secret).items():
            patterns[form] = pattern
        self._patterns[name] = patterns
        return secret

    def raw(self, name: str, secret: bytes) -> None:
        """Adds bytes that are no text, such as a part of a file; at least 30 that are somewhere unique."""
        assert len(secret) >= 2 * _HALF_BYTES, "too short to be unique"
        patterns: dict[str, bytes] = {}
        for part, half in (("head", secret[:_HALF_BYTES]), ("tail", secret[-_HALF_BYTES:])):
            patterns |= {f"{form} {part}": pattern for form, pattern in _byte_forms(half).items()}
        self._patterns[name] = patterns

    def vector(self, name: str, vector: Iterable[float]) -> list[float]:
        """Adds a vector; returns it. Four neighbouring numbers of it are enough to be found."""
        numbers = list(vector)
        patterns: dict[str, bytes] = {}
        for at in (0, len(numbers) // 2, len(numbers) - 4):
            four = numbers[at : at + 4]
            raw = struct.pack("<4f", *four)
            patterns |= {f"float32 {form} {at}": pattern for form, pattern in _byte_forms(raw).items()}
            patterns[f"float64 {at}"] = struct.pack("<4d", *four)
            single = [struct.unpack("<f", struct.pack("<f", number))[0] for number in four]
            patterns[f"decimal {at}"] = f"{single[0]!r}, {single[1]!r}".encode()
            patterns[f"compact decimal {at}"] = f"{single[0]!r},{single[1]!r}".encode()
        self._patterns[name] = patterns
        return numbers

    def names(self) -> list[str]:
        """The classes."""
        return list(self._patterns)

    def forms(self, name: str) -> Mapping[str, bytes]:
        """The byte patterns of one secret by the name of the form."""
        return self._patterns[name]

    def find(self, data: bytes, where: str) -> list[Leak]:
        """The leaks in some bytes, inflated streams included."""
        leaks = self._find_plain(data, where)
        for start in _STREAM_STARTS:
            at = data.find(start)
            while at >= 0:
                leaks += self._find_plain(_inflate(data[at:]), f"{where} (inflated at {at})")
                at = data.find(start, at + 1)
        return leaks

    def _find_plain(self, data: bytes, where: str) -> list[Leak]:
        return [
            Leak(name, form, where)
            for name, patterns in self._patterns.items()
            for form, pattern in patterns.items()
            if pattern in data
        ]


def files_below(*folders: Path) -> Iterator[Path]:
    """Every file below the folders."""
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def deleted_files(pids: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    """What processes still hold open of files that no folder names any more; memfds are memory, not disk."""
    for pid in pids:
        for entry in _listed(Path(f"/proc/{pid}/fd")):
            try:
                target = os.readlink(entry)
                if target.endswith(" (deleted)") and not target.startswith("/memfd:"):
                    yield f"{pid}:{target}", entry.read_bytes()
            except OSError:
                continue


def process_texts(pids: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    """Command lines and environments of processes."""
    for pid in pids:
        for name in ("cmdline", "environ"):
            try:
                yield f"{pid}/{name}", Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _byte_forms(raw: bytes) -> dict[str, bytes]:
    forms = {"raw": raw, "hex": raw.hex().encode(), "HEX": raw.hex().upper().encode()}
    for shift in range(3):
        # What stands before and after decides the outermost characters, so these are left out.
        encoded = base64.b64encode(b"\0" * shift + raw)
        first = -(-shift * 8 // 6)
        last = (shift + len(raw)) * 8 // 6
        core = encoded[first:last]
        forms[f"base64+{shift}"] = core
        forms[f"base64url+{shift}"] = core.translate(bytes.maketrans(b"+/", b"-_"))
    forms["percent"] = "".join(f"%{byte:02X}" for byte in raw).encode()
    forms["escaped"] = "".join(f"\\x{byte:02x}" for byte in raw).encode()
    forms["octal"] = "".join(f"\\{byte:03o}" for byte in raw).encode()
    return forms


def _text_forms(text: str) -> dict[str, bytes]:
    head = text[:_HALF_BYTES]
    return {
        "utf-16-le": head.encode("utf-16-le"),
        "utf-16-be": head.encode("utf-16-be"),
        "json": "".join(f"\\u{ord(char):04x}" for char in head).encode(),
        "url": quote(head, safe="").encode(),
        "lower": head.lower().encode(),
    }


def _inflate(data: bytes) -> bytes:
    # 47: whichever of gzip and zlib it is.
    inflater = zlib.decompressobj(47)
    try:
        return inflater.decompress(data, _INFLATED_BYTES_MAX)
    except zlib.error:
        return b""
