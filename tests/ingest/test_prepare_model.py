"""The prepared model is what its authors published, and stays close to it after quantisation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

from services.ingest import prepare_model
from services.ingest.embedders.bert_graph import BertConfig, build_graph
from services.ingest.embedders.local import OnnxEmbedder
from tests.ingest.bert_reference import random_tensors, reference_embedding

TINY = BertConfig(hidden=32, layers=2, heads=4, epsilon=1e-12)
MINILM = BertConfig(hidden=384, layers=6, heads=12, epsilon=1e-12)
SENTENCES = [
    "The wax cap seals each cell of a honeycomb.",
    "What similarity laws must be obeyed when constructing aeroelastic models of heated aircraft?",
    "key",
    "Ein Satz auf Deutsch, mit Umlauten: äöü ß; and 12345 numbers, e-mail@example.org.",
]


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(
    session: onnxruntime.InferenceSession, ids: list[list[int]], mask: list[list[int]]
) -> npt.NDArray[np.float32]:
    feed = {"input_ids": np.array(ids, np.int64), "attention_mask": np.array(mask, np.int64)}
    output: npt.NDArray[np.float32] = session.run(None, feed)[0]
    return output


@pytest.fixture(scope="module")
def weights() -> Path:
    return prepare_model._wheel_folder()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "minilm"
    assert prepare_model.prepare(out)
    return out


def test_the_graph_of_a_tiny_model_equals_the_formulas_of_the_papers() -> None:
    tensors = random_tensors(TINY, words=50, positions=16, seed=7)
    session = session_of(build_graph(tensors, TINY))
    for ids in ([1], [4, 9, 2], list(range(16))):
        found = run(session, [ids], [[1] * len(ids)])[0]
        assert np.abs(found - reference_embedding(tensors, TINY, ids)).max() < 1e-5


def test_padding_does_not_change_a_vector() -> None:
    tensors = random_tensors(TINY, words=50, positions=16, seed=8)
    session = session_of(build_graph(tensors, TINY))
    alone = run(session, [[4, 9, 2]], [[1, 1, 1]])
    padded = run(session, [[4, 9, 2, 0, 0], [1, 2, 3, 4, 5]], [[1, 1, 1, 0, 0], [1] * 5])
    assert np.abs(alone[0] - padded[0]).max() < 1e-6


def test_a_missing_weight_is_an_error() -> None:
    tensors = dict(random_tensors(TINY, words=5, positions=4, seed=1))
    del tensors["encoder.layer.1.output.dense.bias"]
    with pytest.raises(KeyError):
        build_graph(tensors, TINY)


def test_the_float_graph_of_the_published_weights_equals_the_reference(weights: Path, prepared: Path) -> None:
    tensors = load_file(weights / "model.safetensors")
    session = session_of(build_graph(tensors, MINILM))
    embedder = OnnxEmbedder(prepared)
    quantised = embedder.embed(SENTENCES)
    for sentence, close in zip(SENTENCES, quantised, strict=True):
        ids = embedder._tokenizer.encode(sentence).ids
        wanted = reference_embedding(tensors, MINILM, ids)
        assert np.abs(run(session, [ids], [[1] * len(ids)])[0] - wanted).max() < 1e-4
        assert float(close @ wanted) > 0.97


def test_the_folder_says_what_it_holds(prepared: Path) -> None:
    manifest = json.loads((prepared / "model.json").read_bytes())
    assert manifest["dimension"] == OnnxEmbedder(prepared).dimension == 384
    assert manifest["sha256"] == prepare_model.sha256_file(prepared / "model.onnx")
    assert manifest["built_from"] == prepare_model.PUBLISHED
    assert sorted(path.name for path in prepared.iterdir()) == ["model.json", "model.onnx", "tokenizer.json"]


def test_a_second_run_finds_the_work_done_and_leaves_no_scratch(prepared: Path) -> None:
    before = (prepared / "model.onnx").stat().st_mtime_ns
    assert not prepare_model.prepare(prepared)
    assert (prepared / "model.onnx").stat().st_mtime_ns == before
    assert [path.name for path in prepared.parent.iterdir()] == [prepared.name]


def test_a_damaged_folder_is_made_again_to_the_same_bytes(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    shutil.copytree(prepared, out)
    (out / "model.onnx").write_bytes(b"cut short")
    assert prepare_model.prepare(out)
    assert (out / "model.onnx").read_bytes() == (prepared / "model.onnx").read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_files_other_than_the_published_ones_are_refused(weights: Path, tmp_path: Path, name: str) -> None:
    forged = tmp_path / "weights"
    shutil.copytree(weights, forged)
    data = bytearray((forged / name).read_bytes())
    data[-1] ^= 1
    (forged / name).write_bytes(data)
    with pytest.raises(prepare_model.PreparationError, match=name):
        prepare_model.prepare(tmp_path / "out", source=forged)
    assert not (tmp_path / "out").exists()


def test_the_pinned_hash_is_what_refuses_a_forged_file(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: with the forged file's own hash pinned, the same forgery is accepted."""
    forged = tmp_path / "weights"
    shutil.copytree(weights, forged)
    with (forged / "tokenizer.json").open("ab") as stream:
        stream.write(b"\n")
    pinned = {
        **prepare_model.PUBLISHED,
        "tokenizer.json": prepare_model.sha256_file(forged / "tokenizer.json"),
    }
    with pytest.raises(prepare_model.PreparationError):
        prepare_model.prepare(tmp_path / "out", source=forged)
    monkeypatch.setattr(prepare_model, "PUBLISHED", pinned)
    assert prepare_model.prepare(tmp_path / "out", source=forged)


def test_the_command_prints_one_line(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_model.main(["--out", str(prepared)]) == 0
    assert capsys.readouterr().out.startswith("already prepared: all-minilm-l6-v2")


def test_the_command_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_model, "PACKAGE", "no_such_wheel_at_all")
    assert prepare_model.main(["--out", str(tmp_path / "out")]) == 1
    assert "no-such-wheel-at-all is missing" in capsys.readouterr().err
