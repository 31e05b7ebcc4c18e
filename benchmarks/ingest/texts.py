"""Documents for the measurements: prose of the examples, shuffled anew for each document."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Texts:
    """Hands out documents that nobody has had before: some of one passage, some of several."""

    def __init__(self, folder: Path | None = None) -> None:
        self._chance = random.Random(3)
        self._given: list[str] = []
        if folder is not None:
            lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
            entries = [json.loads(line) for line in lines if line.strip()]
            self._given = [f"{entry.get('title', '')}\n\n{entry['text']}".strip() for entry in entries]
            self._chance.shuffle(self._given)
        prose = " ".join(
            path.read_text(encoding="utf-8")
            for pattern in ("*.md", "*.txt")
            for path in sorted(_EXAMPLES.glob(pattern))
        )
        self._sentences = [text.strip() for text in _SENTENCE.split(prose) if len(text.split()) > 4]

    def take(self, count: int) -> list[bytes]:
        """The next documents."""
        return [self._next().encode() for _ in range(count)]

    def _next(self) -> str:
        if self._given:
            return self._given.pop()
        paragraphs = [
            " ".join(self._chance.sample(self._sentences, self._chance.randint(4, 8)))
            for _ in range(self._chance.randint(2, 10))
        ]
        title = self._chance.choice(self._sentences)[:80].rstrip(".!?")
        return "\n\n".join([title, *paragraphs])
