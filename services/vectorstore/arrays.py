"""Growable numpy arrays: append at the end, read as a view.

What was appended never changes and never moves: growth makes a new array and leaves the old one to
those who hold a view of it, so a view taken on the event loop may be read in another thread.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

_Scalar = TypeVar("_Scalar", bound=np.generic)
_FIRST_ROWS = 16


class Growable(Generic[_Scalar]):
    """Rows of one dtype; `width` columns each, or plain numbers where it is 0."""

    def __init__(self, dtype: type[_Scalar], width: int = 0) -> None:
        self._width = width
        self._data: npt.NDArray[_Scalar] = np.empty(self._shape(0), dtype)
        self.count = 0

    @property
    def size_bytes(self) -> int:
        """Memory that is held, spare room included."""
        return self._data.nbytes

    def view(self, start: int = 0) -> npt.NDArray[_Scalar]:
        """The rows from `start`; writing into it writes into the array."""
        # The count first: in another thread the array may only be newer, so longer, than the count.
        count = self.count
        return self._data[start:count]

    def extend(self, rows: npt.ArrayLike | npt.NDArray[Any]) -> int:
        """Appends rows and returns the position of the first."""
        new = np.asarray(rows, self._data.dtype)
        first = self.count
        self._reserve(first + len(new))
        self._data[first : first + len(new)] = new
        self.count = first + len(new)
        return first

    def expect(self, rows: int) -> None:
        """Makes room at once for so many more rows, where their number is known."""
        rows += self.count
        if rows > len(self._data):
            self._move(rows)

    def _reserve(self, rows: int) -> None:
        capacity = len(self._data)
        if rows <= capacity:
            return
        # Doubling wastes too much once arrays are large.
        step = capacity if self._data.nbytes < 64 * 1024 * 1024 else capacity // 4
        self._move(max(rows, capacity + step, _FIRST_ROWS))

    def _move(self, capacity: int) -> None:
        grown = np.empty(self._shape(capacity), self._data.dtype)
        grown[: self.count] = self._data[: self.count]
        self._data = grown

    def _shape(self, rows: int) -> tuple[int, ...]:
        return (rows, self._width) if self._width else (rows,)
