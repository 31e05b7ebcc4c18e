"""Tokens of parts of a text, from one look at the whole.

A splitter asks for the length of one candidate after the other, and counting each anew took as long as
a fourteenth of the embedding. Tokenizers cut at white space before all else, so between two spaces, or
the text's ends, a part has the tokens that begin in it. Any other part is counted for itself: what is
said here must never be less than what the model will see.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

# Not all that Python calls white space: tokenizers drop some of it, and join what it parted.
_SPACES = frozenset(" \n\t")


class PartCounter:
    """Counts tokens of parts of one text; of any other text by `count`."""

    def __init__(self, text: str, starts: Sequence[int], count: Callable[[str], int]) -> None:
        """`starts` says where each token of the text begins, in characters, in order."""
        self._text = text
        self._starts = starts
        self._count = count
        self._extra = count("")
        self._last = 0

    def __call__(self, part: str) -> int:
        """Tokens of the part, a model's own special ones included."""
        if not part:
            return self._extra
        # Candidates follow one another; an equal part elsewhere has as many tokens.
        begin = self._text.find(part, self._last)
        if begin < 0:
            begin = self._text.find(part)
        if begin < 0:
            return self._count(part)
        self._last = begin
        end = begin + len(part)
        if not (self._parted(begin) and self._parted(end)):
            return self._count(part)
        return bisect_left(self._starts, end) - bisect_left(self._starts, begin) + self._extra

    def _parted(self, at: int) -> bool:
        text = self._text
        return at in (0, len(text)) or text[at - 1] in _SPACES or text[at] in _SPACES
