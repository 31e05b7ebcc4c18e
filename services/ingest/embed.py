"""Texts to vectors, behind one small interface.

A collection records its embedder's name and fingerprint, because vectors of different weights
cannot be compared. An embedder must never log, store or put into an error what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.common.clock import SystemClock
from services.ingest.embedders.endpoint import EndpointSettings, HttpEmbedder
from services.ingest.embedders.local import OnnxEmbedder

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """One model. Safe to use from several threads at once; embedding leaves the GIL."""

    @property
    def name(self) -> str:
        """What people call the model."""

    @property
    def dimension(self) -> int:
        """Length of every vector."""

    @property
    def fingerprint(self) -> str:
        """Hash that changes whenever the vectors of the same text may change for good."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that count, by `count_tokens`; the rest is cut off."""

    def count_tokens(self, text: str) -> int:
        """Tokens the model sees in `text`, its own special tokens included."""

    def token_starts(self, text: str) -> Sequence[int] | None:
        """Where each token begins, in characters, without special tokens; None where nobody can say."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], every row of unit length.

        Raises InvalidArgument when a text is too long, Unavailable when the model cannot be
        reached, FailedPrecondition when it answers what it should not.
        """

    def close(self) -> None:
        """Releases what the embedder holds; it embeds no more."""


def open_embedder(
    spec: str, *, threads: int = 1, api_key_file: Path | None = None, ca_file: Path | None = None
) -> Embedder:
    """The embedder a setting names. ValueError when the spec means nothing.

    `onnx:FOLDER` is a folder with model.onnx, tokenizer.json and, if made by prepare_model,
    model.json. `https://HOST/v1#MODEL` is an OpenAI-compatible endpoint, asked for one vector at
    once to learn its dimension; plain http is accepted for this machine alone.
    """
    kind, _, rest = spec.partition(":")
    if kind == "onnx" and rest:
        return OnnxEmbedder(Path(rest), threads=threads)
    if kind in ("https", "http"):
        return HttpEmbedder(
            EndpointSettings.parse(spec, api_key_file=api_key_file, ca_file=ca_file),
            clock=SystemClock(),
        )
    raise ValueError("an embedder is onnx:FOLDER or https://HOST/v1#MODEL")
