"""A model in this process: any ONNX sentence encoder with a Hugging Face tokenizer.

The folder holds model.onnx and tokenizer.json, and may hold model.json with {name, max_tokens,
pooling ("mean" or "cls"), fingerprint, sha256}. The graph takes `input_ids`, optionally
`attention_mask` and `token_type_ids`, and gives either one vector a text or one a token, which is
then pooled here. Only files of the operator's own choice are ever opened: a model is code.

Texts go through one at a time. Batches gained nothing on a processor and need gigabytes, and with
run-time quantisation a text's vector would depend on its neighbours in the batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from services.common.errors import FailedPrecondition, invalid

TEXT_CHARS_MAX = 100_000
_MAX_TOKENS_DEFAULT = 256
_MAX_TOKENS_PAIR = 512
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class OnnxEmbedder:
    """Embeds with onnxruntime on the processor. See Embedder for the contract.

    One session serves all threads that call `embed`, so the weights are in memory once; `threads`
    is how many more a single text may use, best left at 1 where a pool feeds one text per core.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Opens the model. ValueError when the folder holds no usable one."""
        manifest = _read_manifest(folder)
        self.name = str(manifest.get("name", folder.name))
        self.max_tokens = int(manifest.get("max_tokens", _MAX_TOKENS_DEFAULT))
        self._pooling = _pooling(manifest)
        self.fingerprint = _fingerprint(folder, manifest)
        self._counter = _tokenizer(folder)
        self._tokenizer = _tokenizer(folder)
        self._tokenizer.enable_truncation(self.max_tokens)
        self._session = _open_session(folder / "model.onnx", threads)
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        if "input_ids" not in self._inputs or not self._inputs <= _INPUTS:
            raise ValueError(f"the model in {folder.name} wants other inputs than a text encoder's")
        self.dimension = int(self._embed_one("dimension").shape[0])

    def count_tokens(self, text: str) -> int:
        """Tokens the model sees in `text`, its own special tokens included."""
        return len(self._counter.encode(text).ids)

    def token_starts(self, text: str) -> Sequence[int]:
        """Where each token begins, in characters, without special tokens."""
        return [begin for begin, _end in self._counter.encode(text, add_special_tokens=False).offsets]

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), dimension], every row of unit length."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for position, text in enumerate(texts):
            if len(text) > TEXT_CHARS_MAX:
                raise invalid("text", f"is longer than {TEXT_CHARS_MAX} characters; split it")
            vectors[position] = self._embed_one(text)
        return vectors

    def close(self) -> None:
        """Nothing to release: the session goes with its last user."""

    def _embed_one(self, text: str) -> npt.NDArray[np.float32]:
        ids = np.asarray([self._tokenizer.encode(text).ids], dtype=np.int64)
        feed = {
            name: np.zeros_like(ids) if name == "token_type_ids" else np.ones_like(ids)
            for name in self._inputs
        }
        feed["input_ids"] = ids
        output: npt.NDArray[Any] = self._session.run(None, feed)[0]
        vector = output[0]
        if output.ndim == 3:
            vector = vector[0] if self._pooling == "cls" else vector.mean(axis=0)
        length = float(np.linalg.norm(vector))
        if vector.ndim != 1 or not np.isfinite(length) or length == 0.0:
            raise FailedPrecondition(
                "the embedding model gave no usable vector; tell the operator",
                reason="EMBEDDER_MISMATCH",
            )
        return np.asarray(vector / length, dtype=np.float32)


class OnnxCrossEncoder:
    """Reads query and passage together and says how well one answers the other.

    Any ONNX sequence classifier with one output, such as those trained on MS MARCO; model.json may
    set max_tokens. What comes out is a logit, which the logistic function brings within 0 to 1.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Opens the model. ValueError when the folder holds no usable one."""
        manifest = _read_manifest(folder)
        self._tokenizer = _tokenizer(folder)
        # The passage is cut, never the query, unless that alone is too long.
        self._tokenizer.enable_truncation(
            int(manifest.get("max_tokens", _MAX_TOKENS_PAIR)), strategy="longest_first"
        )
        self._session = _open_session(folder / "model.onnx", threads)
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        if "input_ids" not in self._inputs or not self._inputs <= _INPUTS:
            raise ValueError(f"the model in {folder.name} wants other inputs than a text encoder's")
        self.score("a query", "a passage")

    def score(self, query: str, passage: str) -> float:
        """How well the passage answers the query, 0 to 1."""
        if len(passage) > TEXT_CHARS_MAX:
            raise invalid("text", f"is longer than {TEXT_CHARS_MAX} characters; split it")
        encoded = self._tokenizer.encode(query, passage)
        ids = np.asarray([encoded.ids], dtype=np.int64)
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.asarray([encoded.type_ids], dtype=np.int64),
        }
        output = np.asarray(self._session.run(None, {name: given[name] for name in self._inputs})[0])
        if output.size != 1 or not np.isfinite(output).all():
            raise FailedPrecondition(
                "the reranker gave no usable score; tell the operator", reason="RERANKER_MISMATCH"
            )
        # Without overflow for any logit.
        return float(0.5 * (1.0 + np.tanh(0.5 * float(output.reshape(-1)[0]))))


def _open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A waiting thread that spins takes the core from the texts of other callers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # 3 = errors alone: its warnings go straight to standard error, past the log's format.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The published file pads and cuts to 128 tokens; both are decided here instead.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_manifest(folder: Path) -> dict[str, Any]:
    for name in ("model.onnx", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(f"the model folder {folder.name} has no {name}; run make setup")
    path = folder / "model.json"
    manifest = json.loads(path.read_bytes()) if path.is_file() else {}
    if not isinstance(manifest, dict):
        raise ValueError(f"model.json in {folder.name} is not an object")
    return manifest


def _pooling(manifest: dict[str, Any]) -> Literal["mean", "cls"]:
    match manifest.get("pooling", "mean"):
        case "mean":
            return "mean"
        case "cls":
            return "cls"
        case _:
            raise ValueError("pooling in model.json is mean or cls")


def _fingerprint(folder: Path, manifest: dict[str, Any]) -> str:
    """The manifest's, if the graph is the one it was written for, else a hash of all that counts."""
    weights = hashlib.sha256()
    # Large models keep their weights in files beside the graph: model.onnx.data and the like.
    for path in sorted(folder.glob("model.onnx*")):
        with path.open("rb") as stream:
            weights.update(hashlib.file_digest(stream, "sha256").digest())
    graph = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    if "sha256" in manifest and manifest["sha256"] != graph:
        raise ValueError(f"model.onnx in {folder.name} is not the file that model.json describes")
    if "fingerprint" in manifest:
        return str(manifest["fingerprint"])
    weights.update(hashlib.sha256((folder / "tokenizer.json").read_bytes()).digest())
    weights.update(json.dumps([manifest.get(key) for key in ("pooling", "max_tokens")]).encode())
    return weights.hexdigest()
