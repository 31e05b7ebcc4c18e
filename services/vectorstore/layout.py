"""Which items of a collection are in which segment, and what the next snapshot has to write.

An item is what a segment holds: a point, or a document with its passages. It gets an ordinal when it is
first stored, ascending and never given twice, and keeps it in whichever segment it is written again; so what
names items by ordinal (the graph's part) outlives segments. A state numbers its items anew when it is
loaded or compacted, always in the order of ordinals.

Nothing here reads or writes; the snapshot (snapshot.py) carries a plan out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from services.vectorstore.index import Mask
from services.vectorstore.parts import Part

# With the seal it stays below 32 MiB, but for one item that is longer by itself.
SEGMENT_BYTES = 31 * 1024**2
# A segment of at most twice this is always taken in by one that is written beside it.
_SMALL_BYTES = 512 * 1024

Items = npt.NDArray[np.int64]
Ordinals = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stored segment; the ordinals of its items ascend and include those that are gone."""

    part: Part
    ordinals: Ordinals


@dataclass(frozen=True, slots=True)
class Layout:
    """What is stored of a state. `ordinals` are those of the state's first items, gone ones too."""

    segments: tuple[Segment, ...] = ()
    graph: Part | None = None
    ordinals: Ordinals = field(default_factory=lambda: np.empty(0, np.uint64))
    next_ordinal: int = 0
    # Items in segments that were gone when the manifest was written.
    gone: int = 0

    @property
    def parts(self) -> list[Part]:
        """All parts."""
        return [segment.part for segment in self.segments] + ([self.graph] if self.graph else [])

    @property
    def size_bytes(self) -> int:
        """The stored size of all parts."""
        return sum(part.size_bytes for part in self.parts)

    def compacted(self, live: Mask) -> Layout:
        """The layout for a state that has only the items of a mask, numbered anew."""
        return replace(self, ordinals=self.ordinals[live[: len(self.ordinals)]])

    def covering(self, items: int) -> Layout:
        """The layout with an ordinal for each of a state's items."""
        new = items - len(self.ordinals)
        given = np.arange(self.next_ordinal, self.next_ordinal + new, dtype=np.uint64)
        return replace(
            self, ordinals=np.concatenate([self.ordinals, given]), next_ordinal=self.next_ordinal + new
        )


@dataclass(slots=True, eq=False)
class Stretch:
    """Living items that follow one another; in a segment that stays, or else to be written."""

    items: Items
    size_bytes: int
    segment: Segment | None = None

    def gone(self, layout: Layout) -> Mask | None:
        """Which items of the segment are gone; None where none is."""
        if self.segment is None or len(self.items) == len(self.segment.ordinals):
            return None
        gone = np.ones(len(self.segment.ordinals), np.bool_)
        gone[np.searchsorted(self.segment.ordinals, layout.ordinals[self.items])] = False
        return gone


def plan(
    layout: Layout,
    live: Mask,
    sizes_of: Callable[[Items], npt.NDArray[np.int64]],
    unwanted: Callable[[Segment, int], bool],
) -> list[Stretch]:
    """The segments of the next snapshot in order. `layout` covers the state; `live` is by its item.

    A segment is written again if `unwanted` says so of it and its number of items that are gone, if more than
    half of it is gone, or if it is small beside what is written next to it.
    """
    stretches = _present(layout, live, sizes_of)
    for stretch in stretches:
        segment = stretch.segment
        if segment is not None:
            gone = len(segment.ordinals) - len(stretch.items)
            if gone > len(stretch.items) or unwanted(segment, gone):
                stretch.segment = None
    stretches = [stretch for stretch in stretches if len(stretch.items)]
    while _absorb(stretches):
        pass
    return [part for run in _runs(stretches) for part in _cut(run, sizes_of)]


def _present(layout: Layout, live: Mask, sizes_of: Callable[[Items], npt.NDArray[np.int64]]) -> list[Stretch]:
    living: Items = live.nonzero()[0]
    ordinals = layout.ordinals[living]
    stretches, end = [], 0
    for segment in layout.segments:
        begin = end
        end = int(np.searchsorted(ordinals, segment.ordinals[-1], side="right"))
        share = (end - begin) / len(segment.ordinals)
        stretches.append(Stretch(living[begin:end], int(segment.part.size_bytes * share), segment))
    new = living[end:]
    return [*stretches, Stretch(new, int(sizes_of(new).sum()))]


def _absorb(stretches: Sequence[Stretch]) -> bool:
    """Takes one small segment into its neighbour that is written; whether there was one."""
    runs = _runs(stretches)
    for run, (beside, *_) in [*pairwise(runs), *zip(runs[1:], runs, strict=False)]:
        if run[0].segment is None and beside.segment is not None:
            written = sum(stretch.size_bytes for stretch in run)
            # Twice, so that each is about half of the one before it: few, and each written few times.
            small = beside.size_bytes <= 2 * max(written, _SMALL_BYTES)
            if small and beside.size_bytes + written <= SEGMENT_BYTES:
                beside.segment = None
                return True
    return False


def _runs(stretches: Sequence[Stretch]) -> list[list[Stretch]]:
    """Neighbours that are written, together; each segment that stays, alone."""
    runs: list[list[Stretch]] = []
    for stretch in stretches:
        if runs and stretch.segment is None and runs[-1][-1].segment is None:
            runs[-1].append(stretch)
        else:
            runs.append([stretch])
    return runs


def _cut(run: Sequence[Stretch], sizes_of: Callable[[Items], npt.NDArray[np.int64]]) -> list[Stretch]:
    """What is written, in segments of about the same size."""
    if run[0].segment is not None:
        return list(run)
    items = np.concatenate([stretch.items for stretch in run])
    ends = np.cumsum(sizes_of(items))
    parts = -(-int(ends[-1]) // SEGMENT_BYTES)
    places = np.searchsorted(ends, [int(ends[-1]) * part // parts for part in range(1, parts)])
    cut = np.split(items, np.unique(places))
    return [Stretch(part, 0) for part in cut if len(part)]
