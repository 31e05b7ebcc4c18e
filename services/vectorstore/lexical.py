"""The lexical index: BM25 over the words of passages.

Scoring is Robertson and Zaragoza (2009) with k1 1.2 and b 0.75 and the idf that cannot be negative,
ln(1 + (N - df + 0.5) / (df + 0.5)). Words are lower-case Unicode word tokens without English stop
words, stemmed by Snowball's English stemmer; a word of another language is its own stem.

A posting is one unsigned 64-bit number: the row, and in the low 16 bits how often the term occurs there.
Rows are never reused, so a deletion needs no work here: df and scores count living rows only.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import Stemmer

from services.vectorstore.arrays import Growable
from services.vectorstore.index import Found, Mask

K1 = 1.2
B = 0.75
# Names how texts become terms: postings made another way are made anew.
ANALYSER = f"snowball-english-{Stemmer.version()}-1"
_COUNT_BITS = 16
_COUNT_MAX = (1 << _COUNT_BITS) - 1
_WORD_CHARS_MAX = 64
_QUERY_TERMS_MAX = 512
# What a search costs by row of the collection and by posting that it reads (`python -m benchmarks.costs`).
_ROW_MS = 5e-6
_POSTING_MS = 7e-6
_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or s such t that the their then "
        "there these they this to was will with",
    )
)
_local = threading.local()


def terms_of(text: str) -> list[str]:
    """The terms of a text, in order."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    kept = [word[:_WORD_CHARS_MAX] for word in words if word not in _STOP_WORDS]
    stemmer = getattr(_local, "stemmer", None)
    if stemmer is None:
        # A stemmer is not safe to share between threads.
        stemmer = _local.stemmer = Stemmer.Stemmer("english")
    stems: list[str] = stemmer.stemWords(kept)
    return stems


@dataclass(frozen=True, slots=True)
class Analysed:
    """The terms of some passages: their lengths, and by term the postings relative to the first passage."""

    lengths: npt.NDArray[np.uint32]
    postings: dict[str, npt.NDArray[np.uint64]]


def analyse(texts: Sequence[str]) -> Analysed:
    """The terms of passages; takes about a millisecond a passage, so call it off the event loop."""
    lengths = np.zeros(len(texts), np.uint32)
    postings: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        terms = terms_of(text)
        lengths[position] = len(terms)
        for term, count in Counter(terms).items():
            postings.setdefault(term, []).append(position << _COUNT_BITS | min(count, _COUNT_MAX))
    return Analysed(lengths, {term: np.array(found, np.uint64) for term, found in postings.items()})


class LexicalIndex:
    """The postings of one collection."""

    def __init__(self) -> None:
        self._postings: dict[str, array[int]] = {}
        self._lengths: Growable[np.uint32] = Growable(np.uint32)
        # The sum over living rows.
        self._length_sum = 0
        self._posting_count = 0

    @property
    def size_bytes(self) -> int:
        """Memory that is held, about."""
        return self._lengths.size_bytes + 10 * self._posting_count + 200 * len(self._postings)

    def add(self, first: int, analysed: Analysed) -> Iterator[None]:
        """Adds passages from row `first` on, in steps, since many take long; they count once published."""
        self._lengths.extend(analysed.lengths)
        base = np.uint64(first << _COUNT_BITS)
        for number, (term, postings) in enumerate(analysed.postings.items()):
            known = self._postings.get(term)
            if known is None:
                known = self._postings[term] = array("Q")
            known.frombytes((postings + base).tobytes())
            self._posting_count += len(postings)
            if number % 2000 == 1999:
                yield

    def publish(self, first: int, count: int) -> None:
        """Counts rows that were added as living."""
        self._length_sum += int(self._lengths.view()[first : first + count].sum())

    def load(
        self, lengths: npt.NDArray[np.uint32], postings: Iterable[tuple[str, bytes]], kept: Mask | None = None
    ) -> None:
        """Adds living passages at the end, as `dump_lengths` and `dump` gave them; those of a mask."""
        all_kept = kept is None or bool(kept.all())
        if kept is not None and not all_kept:
            lengths = lengths[kept]
        first = self._lengths.extend(lengths)
        self._length_sum += int(lengths.sum())
        new_rows = None if kept is None or all_kept else np.cumsum(kept) - 1
        for term, dumped in postings:
            same = not first and new_rows is None
            raw = dumped if same else _moved(dumped, first, kept, new_rows)
            if raw:
                known = self._postings.get(term)
                if known is None:
                    known = self._postings[term] = array("Q")
                known.frombytes(raw)
                self._posting_count += len(raw) // 8

    def remove(self, rows: npt.NDArray[np.int64]) -> None:
        """Counts rows as dead."""
        self._length_sum -= int(self._lengths.view()[rows].sum())

    @property
    def length_sum(self) -> int:
        """Terms in all living rows together."""
        return self._length_sum

    def cost_ms(self, query: str, rows: int) -> float:
        """About how long a search takes."""
        postings = (self._postings.get(term, ()) for term in set(terms_of(query)))
        return rows * _ROW_MS + sum(map(len, postings)) * _POSTING_MS

    def search(
        self, query: str, k: int, live: Mask, allowed: Mask | None = None, length_sum: int | None = None
    ) -> Found:
        """The `k` best living, allowed rows that have any term of the query.

        Statistics count all living rows, so a filter changes no score. In another thread: `live` is a copy,
        and `length_sum` was taken with it.
        """
        if length_sum is None:
            length_sum = self._length_sum
        alive = int(np.count_nonzero(live))
        terms = Counter(terms_of(query)).most_common(_QUERY_TERMS_MAX)
        scores = np.zeros(len(live), np.float32)
        average = length_sum / alive if alive and length_sum else 1.0
        # By row: what the length of a passage adds to the count of a term.
        norms = (K1 * (1 - B) + K1 * B / average * self._lengths.view()[: len(live)]).astype(np.float32)
        for term, times in terms:
            rows, counts = self._living(term, live, all_live=alive == len(live))
            if len(rows):
                idf = np.log1p((alive - len(rows) + 0.5) / (len(rows) + 0.5))
                scores[rows] += np.float32(times * idf) * (counts / (counts + norms[rows]))
        found = np.flatnonzero(scores if allowed is None else scores * allowed)
        if len(found) > k:
            found = found[np.argpartition(scores[found], len(found) - k)[-k:]]
        order = np.lexsort((found, -scores[found]))
        return Found(found[order], scores[found[order]].astype(np.float64))

    def _living(
        self, term: str, live: Mask, *, all_live: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        known = self._postings.get(term)
        if known is None:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        # A copy, since an array that is looked at cannot grow.
        raw = known[:]
        rows = (np.frombuffer(raw, np.uint64) >> np.uint64(_COUNT_BITS)).view(np.int64)
        # Little-endian, so the count is the first of the four 16-bit parts.
        counts = np.frombuffer(raw, "<u2")[::4].astype(np.float32)
        if len(rows) and rows[-1] >= len(live):
            # Rows that came later; postings are in the order of rows.
            until = int(np.searchsorted(rows, len(live)))
            rows, counts = rows[:until], counts[:until]
        if all_live:
            return rows, counts
        kept = live[rows]
        return rows[kept], counts[kept]

    def dump(self, live: Mask) -> Iterable[tuple[str, bytes]]:
        """By term, the postings of the rows of a mask, numbered anew from 0 in order; for another thread.

        Rows beyond the mask came later and are left out.
        """
        named = live.nonzero()[0]
        if not len(named):
            return
        begin, end = int(named[0]) << _COUNT_BITS, (int(named[-1]) + 1) << _COUNT_BITS
        new_rows = np.cumsum(live) - 1
        # The copies are single steps of the interpreter, so the event loop may go on adding at the ends.
        for term, known in list(self._postings.items()):
            if known[-1] >= begin:
                low = bisect_left(known, begin)
                raw = _moved(known[low : bisect_left(known, end, low)].tobytes(), 0, live, new_rows)
                if raw:
                    yield term, raw

    def dump_lengths(self, live: Mask) -> npt.NDArray[np.uint32]:
        """The lengths of the rows of a mask."""
        lengths: npt.NDArray[np.uint32] = self._lengths.view()[: len(live)][live]
        return lengths


def _moved(raw: bytes, first: int, kept: Mask | None, new_rows: npt.NDArray[np.int64] | None) -> bytes:
    """Postings of the rows that are kept, as rows from `first` on."""
    postings = np.frombuffer(raw, np.uint64)
    rows = (postings >> np.uint64(_COUNT_BITS)).astype(np.int64)
    if kept is not None and new_rows is not None:
        there = kept[rows]
        postings, rows = postings[there], new_rows[rows[there]]
    moved = (rows + first).astype(np.uint64) << np.uint64(_COUNT_BITS)
    return (moved | (postings & np.uint64(_COUNT_MAX))).tobytes()
