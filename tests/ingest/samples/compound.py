"""Compound files (MS-CFB) and the older office formats within, as small as their readers take them.

Streams are padded to the size from which they lie in whole sectors, so that no second allocation table
is needed; directory entries hang below one another in order, which makes a tree of a kind.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_SECTOR = 512
_STREAM_BYTES_MIN = 4096
_END, _FREE, _FAT = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD
_NOBODY = 0xFFFFFFFF


def compound_file(streams: Mapping[str, bytes]) -> bytes:
    """A compound file with these streams in its root."""
    names = sorted(streams, key=lambda name: (len(name), name.upper()))
    chains: list[int] = []
    body = bytearray()
    starts, sizes = [], []
    for name in names:
        content = streams[name].ljust(_STREAM_BYTES_MIN, b"\0")
        starts.append(len(chains))
        sizes.append(len(content))
        _append(chains, body, content)
    directory_start = len(chains)
    entries = [_entry("Root Entry", 5, child=1 if names else _NOBODY, start=_END)]
    for place, (name, start, size) in enumerate(zip(names, starts, sizes, strict=True), 1):
        right = place + 1 if place < len(names) else _NOBODY
        entries.append(_entry(name, 2, right=right, start=start, size=size))
    while len(entries) % 4:
        entries.append(_entry("", 0))
    _append(chains, body, b"".join(entries))
    fat_start = len(chains)
    fat = [*chains, _FAT]
    assert len(fat) <= _SECTOR // 4
    table = struct.pack(f"<{len(fat)}I", *fat).ljust(_SECTOR, b"\xff")
    header = struct.pack(
        "<8s16xHHHHH6xIIIIIIIII",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0x3E, 3, 0xFFFE, 9, 6, 0, 1, directory_start, 0,
        _STREAM_BYTES_MIN, _END, 0, _END, 0,
    )  # fmt: skip
    header += struct.pack("<I", fat_start)
    return header.ljust(_SECTOR, b"\xff") + bytes(body) + table


def doc(text: str, *, locked: bool = False) -> bytes:
    """A Word 97 document (MS-DOC): its text in one compressed piece; or one that says it has a password."""
    raw = text.replace("\n", "\r").encode("cp1252") + b"\r"
    fib = bytearray(1024)
    struct.pack_into("<HH", fib, 0, 0xA5EC, 0xC1)
    struct.pack_into("<H", fib, 0x0A, 0x0300 if locked else 0x0200)  # the table is in 1Table
    struct.pack_into("<H", fib, 0x20, 14)
    struct.pack_into("<H", fib, 0x3E, 22)
    struct.pack_into("<I", fib, 0x4C, len(raw))
    struct.pack_into("<H", fib, 0x98, 93)
    pieces = struct.pack("<IIHIH", 0, len(raw), 0, (len(fib) * 2) | 0x40000000, 0)
    table = b"\x02" + struct.pack("<I", len(pieces)) + pieces
    struct.pack_into("<II", fib, 0x01A2, 0, len(table))
    return compound_file({"WordDocument": bytes(fib) + raw, "1Table": table})


def xls(sheet: str, rows: list[list[str]], *, locked: bool = False) -> bytes:
    """An Excel 97 workbook (MS-XLS) of labels; or one that says it has a password."""

    def record(kind: int, content: bytes) -> bytes:
        return struct.pack("<HH", kind, len(content)) + content

    def begin(kind: int) -> bytes:
        return record(0x0809, struct.pack("<HHHHII", 0x0600, kind, 0, 0, 0, 0))

    name = sheet.encode("latin-1")
    codepage = record(0x0042, struct.pack("<H", 1200))
    if locked:
        codepage = record(0x002F, struct.pack("<HHH", 1, 1, 1) + bytes(48)) + codepage
    bound_bytes = 4 + 4 + 2 + 2 + len(name)
    globals_bytes = len(begin(5)) + len(codepage) + bound_bytes + 4
    bound = record(0x0085, struct.pack("<IHBB", globals_bytes, 0, len(name), 0) + name)
    book = begin(5) + codepage + bound + record(0x000A, b"")
    assert len(book) == globals_bytes
    cells = b"".join(
        record(0x0204, struct.pack("<HHHHB", y, x, 0, len(text), 0) + text.encode("latin-1"))
        for y, row in enumerate(rows)
        for x, text in enumerate(row)
    )
    return compound_file({"Workbook": book + begin(0x10) + cells + record(0x000A, b"")})


def ppt(texts: list[str], *, locked: bool = False) -> bytes:
    """A PowerPoint 97 presentation (MS-PPT): its slides' texts; or one that says it has a password."""

    def atom(kind: int, content: bytes, version: int = 0) -> bytes:
        return struct.pack("<HHI", version, kind, len(content)) + content

    slides = b"".join(
        atom(0x03F3, bytes(20)) + atom(0x0F9F, struct.pack("<I", 0)) + atom(0x0FA0, text.encode("utf-16-le"))
        for text in texts
    )
    document = atom(0x03E8, atom(0x0FF0, slides, 0x0F), 0x0F)
    user = atom(0x0FF6, struct.pack("<IIIHBBI", 20, 0xF3D1C4DF if locked else 0xE391C05F, 0, 4, 3, 0, 8))
    return compound_file({"PowerPoint Document": document, "Current User": user})


def msg(subject: str, body: str) -> bytes:
    """An Outlook message (MS-OXMSG) with subject and body."""
    parts = {0x0037001F: subject, 0x1000001F: body, 0x001A001F: "IPM.Note"}
    rows = b"".join(struct.pack("<IIQ", tag, 6, 2 * len(text) + 2) for tag, text in parts.items())
    streams = {f"__substg1.0_{tag:08X}": text.encode("utf-16-le") for tag, text in parts.items()}
    return compound_file({"__properties_version1.0": bytes(32) + rows, **streams})


def _append(chains: list[int], body: bytearray, content: bytes) -> None:
    """Adds a stream's sectors, each pointing to the next."""
    count = -(-len(content) // _SECTOR)
    first = len(chains)
    chains += [first + place + 1 for place in range(count - 1)] + [_END]
    body += content.ljust(count * _SECTOR, b"\0")


def _entry(
    name: str, kind: int, *, right: int = _NOBODY, child: int = _NOBODY, start: int = 0, size: int = 0
) -> bytes:
    raw = name.encode("utf-16-le") + b"\0\0" if name else b""
    return struct.pack(
        "<64sHBBIII16xI8x8xIQ", raw.ljust(64, b"\0"), len(raw), kind, 1, _NOBODY, right, child, 0, start, size
    )
