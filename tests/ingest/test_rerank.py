"""The reranker: a real ONNX model that reads pairs, its bounds, and searches that ask for it."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sealcomb.v1 import search_service_pb2 as search
from services.common.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted, SealcombError
from services.ingest.prepare_model import default_folder
from services.ingest.rerank import Reranker, open_scorer
from tests.ingest.rig import Rig, details, running

CANARY = "canary text of a caller"
# The last token of both parts is the same separator, which says nothing.
_MET_ANYWAY = 1.0


def write_pair_model(folder: Path, *, outputs: int = 1) -> Path:
    """A cross-encoder whose logit is how often a token of the query is one of the passage's."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = ["batch", "length"]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "across": np.array([2], np.int64),
        "down": np.array([1], np.int64),
        "one": np.array([1], np.float32),
        "anyway": np.array([_MET_ANYWAY], np.float32),
        "sums": np.array([1, 2], np.int64),
        "copies": np.array([1, outputs], np.int64),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["input_ids", "across"], ["left"]),
        helper.make_node("Unsqueeze", ["input_ids", "down"], ["right"]),
        helper.make_node("Equal", ["left", "right"], ["same"]),
        helper.make_node("Cast", ["same"], ["met"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["token_type_ids"], ["second"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "second"], ["first"]),
        helper.make_node("Unsqueeze", ["first", "across"], ["of_query"]),
        helper.make_node("Unsqueeze", ["second", "down"], ["of_passage"]),
        helper.make_node("Mul", ["met", "of_query"], ["half"]),
        helper.make_node("Mul", ["half", "of_passage"], ["pairs"]),
        helper.make_node("ReduceSum", ["pairs", "sums"], ["total"], keepdims=0),
        helper.make_node("Sub", ["total", "anyway"], ["plain"]),
        helper.make_node("Unsqueeze", ["plain", "down"], ["column"]),
        helper.make_node("Tile", ["column", "copies"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pairs",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    shutil.copy(default_folder() / "tokenizer.json", folder / "tokenizer.json")
    (folder / "model.json").write_text(json.dumps({"max_tokens": 64}))
    return folder


def test_a_pair_is_read_together_and_scored_within_0_and_1(tmp_path: Path) -> None:
    scorer = open_scorer(f"onnx:{write_pair_model(tmp_path)}")
    assert scorer is not None
    assert scorer.score("wax cap", "a mountain") == pytest.approx(0.5)
    assert scorer.score("wax cap", "a cap of wax") == pytest.approx(1 / (1 + np.exp(-2)))
    assert scorer.score("wax " * 60, "wax " * 60) == pytest.approx(1.0)


def test_what_is_no_reranker_is_refused_at_the_start(tmp_path: Path) -> None:
    assert open_scorer("") is None
    for spec in ("onnx:", "https://somewhere.test", "model"):
        with pytest.raises(ValueError, match="onnx:FOLDER"):
            open_scorer(spec)
    with pytest.raises(ValueError, match=r"has no model\.onnx"):
        open_scorer(f"onnx:{tmp_path}")
    with pytest.raises(FailedPrecondition) as caught:
        open_scorer(f"onnx:{write_pair_model(tmp_path, outputs=2)}")
    assert caught.value.reason == "RERANKER_MISMATCH"


class Gated:
    """Scores once the gate is open, and fails for what it is told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.scored = 0

    def score(self, query: str, passage: str) -> float:
        """A score, late."""
        self.gate.wait(30)
        self.scored += 1
        if passage == "bad":
            raise RuntimeError(query)
        return 0.25


async def test_searches_are_bounded_and_one_that_is_late_leaves_the_queue() -> None:
    gated = Gated()
    reranker = Reranker(gated, threads=1, searches_max=1, timeout_s=0.2)
    late = asyncio.create_task(reranker.scores("q", ["a"] * 40))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await reranker.scores("q", ["a"])
    assert caught.value.reason == "RERANKER_BUSY"
    with pytest.raises(DeadlineExceeded):
        await late
    gated.gate.set()
    assert (await reranker.scores("q", ["a", "b"])).tolist() == [0.25, 0.25]
    # At most the one that had begun, and the two of the second search.
    assert gated.scored <= 3
    reranker.close()


async def test_a_model_that_fails_quotes_nobody() -> None:
    gated = Gated()
    gated.gate.set()
    reranker = Reranker(gated)
    with pytest.raises(SealcombError) as caught:
        await reranker.scores(CANARY, ["good", "bad"])
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    reranker.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A running ingest with a reranker and documents whose vectors rank them otherwise than it does."""
    folder = write_pair_model(tmp_path / "reranker")
    async with running(tmp_path, reranker=f"onnx:{folder}") as made:
        await _fill(made)
        yield made


async def _fill(rig: Rig) -> None:
    rig.collection()
    for name, text in (
        ("close.txt", b"cell"),
        ("full.txt", b"which cap seals the cell said a long text of many other words and bees"),
        ("far.txt", b"rotate keys early"),
    ):
        await rig.upload(text, name=name)


async def _names(rig: Rig, **fields: Any) -> list[str]:
    request = search.SearchRequest(collection="notes", query="cap of the cell", **fields)
    hits = (await rig.call("Search", request)).hits
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return [hit.document_name for hit in hits]


async def test_a_search_that_asks_for_it_is_ordered_by_the_reranker(rig: Rig) -> None:
    assert (await _names(rig))[0] == "close.txt"
    assert await _names(rig, rerank=True) == ["full.txt", "close.txt", "far.txt"]
    assert await _names(rig, rerank=True, top_k=1) == ["full.txt"]
    # More candidates are asked for than are wanted.
    assert [asked.top_k for asked in rig.vectorstore.searches] == [10, 50, 50]


async def test_without_a_reranker_a_search_that_asks_for_it_is_refused(tmp_path: Path) -> None:
    """Off by default."""
    async with running(tmp_path) as rig:
        await _fill(rig)
        request = search.SearchRequest(collection="notes", query="cell", rerank=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call("Search", request)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert details(caught.value)[0] == "RERANKER_OFF"
        assert rig.vectorstore.searches == []
