"""The metadata index: per field, which rows have which value, as columns of codes.

A column is a list of entries (row, code), where a code stands for one distinct value of the field.
A row is never reused, so deleting it needs no work here: whoever asks masks the answer with the
rows that live. Dead entries leave when the collection is compacted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from services.vectorstore.arrays import Growable
from services.vectorstore.metadata import Scalar

Mask = npt.NDArray[np.bool_]
# A column costs some kilobytes however few rows have it.
FIELDS_MAX = 1024
# Rows that were written while their fields were not indexed have as many as they like: once all are
# indexed, those beyond this have no column, and a filter that asks for one is refused.
_COLUMNS_MAX = 2 * FIELDS_MAX
_LONG_CHARS = 64
_NO_VALUE = -1
_Key = str | float | bytes | tuple[bool]


# The fields that have columns; None for all.
Indexed = frozenset[str] | None


class Columns:
    """The columns of one collection."""

    def __init__(self, indexed: Indexed = None) -> None:
        self.indexed = indexed
        self._columns: dict[str, _Column] = {}
        self._is_full = False

    @property
    def size_bytes(self) -> int:
        """Memory that is held, about."""
        return sum(column.size_bytes for column in list(self._columns.values()))

    def add(self, row: int, fields: Mapping[str, tuple[Scalar, ...]]) -> None:
        """Records the fields of a new row."""
        for name, values in fields.items():
            if not self.indexes(name):
                continue
            column = self._columns.get(name)
            if column is None:
                if len(self._columns) >= _COLUMNS_MAX:
                    self._is_full = True
                    continue
                column = self._columns[name] = _Column()
            column.add(row, values)

    def indexes(self, name: str) -> bool:
        """Whether the field has a column, or gets one when a row first has it."""
        return self.indexed is None or name in self.indexed

    def can_filter(self, name: str) -> bool:
        """Whether a filter may ask for the field: it is indexed, and was not left out."""
        return self.indexes(name) and (name in self._columns or not self._is_full)

    def too_many(self, rows: Iterable[Iterable[str]]) -> list[int]:
        """Places of the rows that would take the number of distinct fields beyond its bound."""
        new: set[str] = set()
        refused = []
        for place, names in enumerate(rows):
            added = {name for name in names if self.indexes(name) and name not in self._columns} - new
            if len(self._columns) + len(new) + len(added) > FIELDS_MAX:
                refused.append(place)
            else:
                new |= added
        return refused

    def has(self, name: str, live: Mask) -> bool:
        """Whether any living row has the field."""
        column = self._columns.get(name)
        if column is None:
            return False
        rows = column.rows.view()
        # Where another thread asks, the column may already have rows that came later.
        return bool(live[rows[rows < len(live)]].any())

    def one_of(self, name: str, values: Iterable[Scalar], rows: int) -> Mask:
        """The rows of which a value of the field equals one of these."""
        column = self._columns.get(name)
        if column is None:
            return np.zeros(rows, np.bool_)
        codes = [column.codebook[key] for key in map(_key, values) if key in column.codebook]
        if len(codes) == 1:
            return column.mask(rows, lambda entries: entries == codes[0])
        return column.mask(rows, lambda entries: np.isin(entries, codes))

    def between(self, name: str, low: float, high: float, low_open: bool, high_open: bool, rows: int) -> Mask:
        """The rows of which a number of the field lies within the bounds."""
        column = self._columns.get(name)
        if column is None:
            return np.zeros(rows, np.bool_)

        def hit(entries: npt.NDArray[np.int32]) -> Mask:
            # Taken after the entries, so it knows every code among them.
            numbers = column.numbers.view()
            above = numbers > low if low_open else numbers >= low
            below = numbers < high if high_open else numbers <= high
            # The spare last place is for entries without a value, whose code is -1.
            return np.append(above & below, False)[entries]

        return column.mask(rows, hit)

    def exists(self, name: str, rows: int) -> Mask:
        """The rows that have the field."""
        column = self._columns.get(name)
        if column is None:
            return np.zeros(rows, np.bool_)
        return column.mask(rows, lambda entries: np.ones(len(entries), np.bool_))


class _Column:
    """One field's entries."""

    def __init__(self) -> None:
        self.rows: Growable[np.uint32] = Growable(np.uint32)
        self.codes: Growable[np.int32] = Growable(np.int32)
        self.codebook: dict[_Key, int] = {}
        # By code: the number, NaN for anything else.
        self.numbers: Growable[np.float64] = Growable(np.float64)

    @property
    def size_bytes(self) -> int:
        arrays = self.rows.size_bytes + self.codes.size_bytes + self.numbers.size_bytes
        return arrays + 120 * len(self.codebook) + 1024

    def add(self, row: int, values: tuple[Scalar, ...]) -> None:
        codes = [self._code(value) for value in values] or [_NO_VALUE]
        self.codes.extend(codes)
        self.rows.extend([row] * len(codes))

    def mask(self, rows: int, hit: Callable[[npt.NDArray[np.int32]], Mask]) -> Mask:
        entry_rows = self.rows.view()
        entries = self.codes.view()[: len(entry_rows)]
        mask = np.zeros(rows, np.bool_)
        found = entry_rows[hit(entries)]
        mask[found[found < rows]] = True
        return mask

    def _code(self, value: Scalar) -> int:
        key = _key(value)
        code = self.codebook.get(key)
        if code is None:
            number = value if isinstance(value, float) else math.nan
            code = self.codebook[key] = self.numbers.extend([number])
        return code


def _key(value: Scalar) -> _Key:
    # True equals 1.0 in Python, but not in a filter.
    if isinstance(value, bool):
        return (value,)
    if isinstance(value, str) and len(value) > _LONG_CHARS:
        return hashlib.sha256(value.encode()).digest()
    return value
