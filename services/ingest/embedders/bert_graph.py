"""A BERT sentence encoder as an ONNX graph, written straight from its weights.

The graph is encoder, mean over the attended tokens, unit length: inputs `input_ids` and
`attention_mask` (int64 [batch, length]), output `sentence_embedding` (float32 [batch, hidden]).
It uses standard operators and onnxruntime's fused ones (domain com.microsoft) for attention,
residual + normalisation and GELU, as measured faster than leaving the fusion to load time. Token
types are folded into the positions, since a sentence has one type only.

It must never need torch: the weights are plain arrays, the architecture is Devlin et al. 2018
(BERT), the pooling Reimers and Gurevych 2019 (Sentence-BERT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Tensors = Mapping[str, npt.NDArray[np.float32]]

OPSET = 17
IR_VERSION = 8
FUSED = "com.microsoft"
# The sum of squares of a vector that is all zero; keeps the division finite, changes nothing else.
_NORM_FLOOR = 1e-12


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The numbers of config.json that the graph depends on."""

    hidden: int
    layers: int
    heads: int
    epsilon: float


@dataclass(slots=True)
class _Graph:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        array = np.ascontiguousarray(np.asarray(value, dtype=dtype))
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output


def build_graph(tensors: Tensors, config: BertConfig) -> onnx.ModelProto:
    """The encoder with pooling. KeyError when a weight is missing from `tensors`."""
    graph = _Graph()
    mask = graph.add("Cast", ["attention_mask"], "mask_i32", to=TensorProto.INT32)
    state = _embeddings(graph, tensors, config)
    for layer in range(config.layers):
        state = _layer(graph, tensors, config, layer, state, mask)
    _pool(graph, state)
    ids = ["batch", "length"]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "bert_sentence_encoder",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, ids),
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ids),
            ],
            [
                helper.make_tensor_value_info(
                    "sentence_embedding", TensorProto.FLOAT, ["batch", config.hidden]
                )
            ],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)],
        ir_version=IR_VERSION,
        producer_name="sealcomb",
    )


def _embeddings(graph: _Graph, tensors: Tensors, config: BertConfig) -> str:
    prefix = "embeddings"
    words = graph.weight("words", tensors[f"{prefix}.word_embeddings.weight"])
    positions = (
        tensors[f"{prefix}.position_embeddings.weight"] + tensors[f"{prefix}.token_type_embeddings.weight"][0]
    )
    graph.weight("positions", positions)
    graph.weight("zero", [0], np.int64)
    graph.add("Shape", ["input_ids"], "length_1d", start=1, end=2)
    graph.add("Slice", ["positions", "zero", "length_1d", "zero"], "position_rows")
    graph.add("Gather", [words, "input_ids"], "word_rows")
    graph.add("Add", ["word_rows", "position_rows"], "embedded")
    return graph.add(
        "LayerNormalization",
        [
            "embedded",
            graph.weight("embedded_gamma", tensors[f"{prefix}.LayerNorm.weight"]),
            graph.weight("embedded_beta", tensors[f"{prefix}.LayerNorm.bias"]),
        ],
        "state_0",
        axis=-1,
        epsilon=config.epsilon,
    )


def _layer(graph: _Graph, tensors: Tensors, config: BertConfig, layer: int, state: str, mask: str) -> str:
    source = f"encoder.layer.{layer}"
    name = f"layer_{layer}"
    parts = [f"{source}.attention.self.{part}" for part in ("query", "key", "value")]
    packed = np.concatenate([tensors[f"{part}.weight"].T for part in parts], axis=1)
    bias = np.concatenate([tensors[f"{part}.bias"] for part in parts])
    attended = graph.add(
        "Attention",
        [
            state,
            graph.weight(f"{name}_qkv_weight", packed),
            graph.weight(f"{name}_qkv_bias", bias),
            mask,
        ],
        f"{name}_attended",
        domain=FUSED,
        num_heads=config.heads,
    )
    projected = _linear(graph, tensors, f"{source}.attention.output.dense", attended, f"{name}_out")
    middle = _residual(
        graph, tensors, config, f"{source}.attention.output.LayerNorm", projected, state, f"{name}_mid"
    )
    wide = graph.add(
        "MatMul",
        [
            middle,
            graph.weight(f"{name}_up_weight", tensors[f"{source}.intermediate.dense.weight"].T),
        ],
        f"{name}_up",
    )
    active = graph.add(
        "BiasGelu",
        [wide, graph.weight(f"{name}_up_bias", tensors[f"{source}.intermediate.dense.bias"])],
        f"{name}_gelu",
        domain=FUSED,
    )
    narrow = _linear(graph, tensors, f"{source}.output.dense", active, f"{name}_down")
    return _residual(
        graph, tensors, config, f"{source}.output.LayerNorm", narrow, middle, f"state_{layer + 1}"
    )


def _linear(graph: _Graph, tensors: Tensors, source: str, state: str, name: str) -> str:
    weight = graph.weight(f"{name}_weight", tensors[f"{source}.weight"].T)
    product = graph.add("MatMul", [state, weight], f"{name}_product")
    bias = graph.weight(f"{name}_bias", tensors[f"{source}.bias"])
    return graph.add("Add", [product, bias], name)


def _residual(
    graph: _Graph,
    tensors: Tensors,
    config: BertConfig,
    source: str,
    state: str,
    skip: str,
    name: str,
) -> str:
    return graph.add(
        "SkipLayerNormalization",
        [
            state,
            skip,
            graph.weight(f"{name}_gamma", tensors[f"{source}.weight"]),
            graph.weight(f"{name}_beta", tensors[f"{source}.bias"]),
        ],
        name,
        domain=FUSED,
        epsilon=config.epsilon,
    )


def _pool(graph: _Graph, state: str) -> None:
    graph.weight("axis_1", [1], np.int64)
    graph.weight("axis_2", [2], np.int64)
    graph.weight("norm_floor", [_NORM_FLOOR])
    graph.add("Cast", ["attention_mask"], "mask_f32", to=TensorProto.FLOAT)
    graph.add("Unsqueeze", ["mask_f32", "axis_2"], "mask_column")
    graph.add("Mul", [state, "mask_column"], "attended_state")
    # The mean's division is left out: the direction of the sum is that of the mean.
    graph.add("ReduceSum", ["attended_state", "axis_1"], "summed", keepdims=0)
    graph.add("Mul", ["summed", "summed"], "squared")
    graph.add("ReduceSum", ["squared", "axis_1"], "norm_squared", keepdims=1)
    graph.add("Max", ["norm_squared", "norm_floor"], "norm_bounded")
    graph.add("Sqrt", ["norm_bounded"], "norm")
    graph.add("Div", ["summed", "norm"], "sentence_embedding")
