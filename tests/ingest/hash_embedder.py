"""The fake embedder: vectors from hashed words, in microseconds, with no model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class HashEmbedder:
    """Each word is a fixed random direction; a text is the sum of its words', of unit length.

    Texts that share words are near one another, which is enough for tests of what lies around.
    """

    def __init__(self, *, name: str = "hash", dimension: int = 64, max_tokens: int = 256) -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.fingerprint = hashlib.sha256(f"{name}/{dimension}/{max_tokens}".encode()).hexdigest()
        self.closed = False

    def count_tokens(self, text: str) -> int:
        """One a word, and two as a model's own would be."""
        return len(text.split()) + 2

    def token_starts(self, text: str) -> list[int]:
        """Where each word begins."""
        return [match.start() for match in re.finditer(r"\S+", text)]

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), dimension], every row of unit length."""
        rows = np.empty((len(texts), self.dimension), dtype=np.float32)
        for position, text in enumerate(texts):
            words = text.lower().split()[: self.max_tokens] or [""]
            total = np.sum([self._direction(word) for word in words], axis=0)
            rows[position] = total / np.linalg.norm(total)
        return rows

    def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True

    def _direction(self, word: str) -> npt.NDArray[np.float64]:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
        return np.random.default_rng(seed).standard_normal(self.dimension)
