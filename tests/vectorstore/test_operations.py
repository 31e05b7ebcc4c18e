"""Operations on points as bytes: what is written is read again, and nothing shorter is."""

from __future__ import annotations

import numpy as np
import pytest

from services.vectorstore.operations import (
    DeletePoints,
    Operation,
    UpdatePoints,
    UpsertPoints,
    decode,
    encode,
)
from services.vectorstore.reader import DataDamaged

VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)
OPERATIONS: list[Operation] = [
    UpsertPoints(["a", "bee \N{HONEYBEE}"], VECTORS, [b"", b"meta"], ["text", ""], [7, 2**40]),
    UpsertPoints(["a", "b"], VECTORS, [b"x", b""], ["", "\N{HONEYBEE}"]),
    UpdatePoints(["a", "b", "c"], [b"", None, b"m"], [None, "", "t"]),
    DeletePoints(["a"]),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_read_as_it_was_written(operation: Operation) -> None:
    raw = encode([operation, DeletePoints(["end"])])
    read, end = decode(raw, 3)
    assert end == DeletePoints(["end"])
    assert encode([read]) == encode([operation])
    for name in ("ids", "metadata", "texts", "versions"):
        assert getattr(read, name, None) == getattr(operation, name, None)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_beginning_of_an_operation_is_taken_for_the_whole(operation: Operation) -> None:
    raw = encode([operation])
    for end in range(len(raw)):
        with pytest.raises(DataDamaged):
            decode(raw[:end], 3)


def test_text_that_is_not_utf8_and_unknown_parts_of_an_update_are_damage() -> None:
    versioned = encode(OPERATIONS[:1]).replace("\N{HONEYBEE}".encode(), b"\xff\xff\xff\xff")
    unknown = bytearray(encode([UpdatePoints(["a"], [None], [None])]))
    unknown[-1] = 4
    for raw in (versioned, bytes(unknown)):
        with pytest.raises(DataDamaged):
            decode(raw, 3)
