"""BERT with mean pooling in plain numpy, from the papers' formulas: the oracle of the graph."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from services.ingest.embedders.bert_graph import BertConfig, Tensors

Array = npt.NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def reference_embedding(tensors: Tensors, config: BertConfig, ids: list[int]) -> Array:
    """The unit vector of one sentence, in double precision throughout."""
    weight = {name: value.astype(np.float64) for name, value in tensors.items()}
    state = (
        weight["embeddings.word_embeddings.weight"][ids]
        + weight["embeddings.position_embeddings.weight"][: len(ids)]
        + weight["embeddings.token_type_embeddings.weight"][0]
    )
    state = _normalise(state, weight, "embeddings.LayerNorm", config)
    for layer in range(config.layers):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (
            _heads(_linear(state, weight, f"{prefix}.attention.self.{part}"), config)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        joined = (shares @ value).transpose(1, 0, 2).reshape(len(ids), config.hidden)
        attended = _linear(joined, weight, f"{prefix}.attention.output.dense")
        state = _normalise(attended + state, weight, f"{prefix}.attention.output.LayerNorm", config)
        wide = _linear(state, weight, f"{prefix}.intermediate.dense")
        active = wide * 0.5 * (1.0 + _erf(wide / math.sqrt(2.0)))
        narrow = _linear(active, weight, f"{prefix}.output.dense")
        state = _normalise(narrow + state, weight, f"{prefix}.output.LayerNorm", config)
    mean: Array = state.mean(axis=0)
    return mean / np.linalg.norm(mean)


def random_tensors(config: BertConfig, *, words: int, positions: int, seed: int) -> Tensors:
    """Weights of a tiny model, of the spread that trained ones have."""
    rng = np.random.default_rng(seed)
    hidden, wide = config.hidden, 4 * config.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, hidden),
        "embeddings.position_embeddings.weight": (positions, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(config.layers):
        prefix = f"encoder.layer.{layer}"
        for part, (rows, columns) in {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (wide, hidden),
            "output.dense": (hidden, wide),
        }.items():
            shapes[f"{prefix}.{part}.weight"] = (rows, columns)
            shapes[f"{prefix}.{part}.bias"] = (rows,)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{prefix}.{part}.weight"] = shapes[f"{prefix}.{part}.bias"] = (hidden,)
    return {
        name: rng.normal(0.0, 0.2, shape).astype(np.float32) + np.float32(name.endswith("Norm.weight"))
        for name, shape in shapes.items()
    }


def _linear(state: Array, weight: dict[str, Array], source: str) -> Array:
    product: Array = state @ weight[f"{source}.weight"].T + weight[f"{source}.bias"]
    return product


def _heads(state: Array, config: BertConfig) -> Array:
    return state.reshape(len(state), config.heads, -1).transpose(1, 0, 2)


def _normalise(state: Array, weight: dict[str, Array], source: str, config: BertConfig) -> Array:
    centred = state - state.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config.epsilon)
    scaled: Array = centred / spread * weight[f"{source}.weight"] + weight[f"{source}.bias"]
    return scaled
