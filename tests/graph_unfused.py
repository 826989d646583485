"""Fused attention spelled out, so that `graph_oracle` finds a Softmax in it; plain onnx, nothing of the package.

    Attention (ai.onnx)                     its function body, as the standard gives it
    Attention, QAttention (com.microsoft)   x @ weight + bias -> q, k, v -> as below; QAttention: in integers, times both scales
    MultiHeadAttention                      q, k, v + bias -> heads -> softmax(q kT / sqrt(head size) + mask + bias) v -> joined

Masks: one number a row, the end of what is seen (what the zoo's files have), or an addend. In float32, as ONNX Runtime's
kernels on the CPU. B batch, S tokens, H heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.inliner
from graph_locate import Graph, attribute, constants
from onnx import ModelProto, NodeProto, TensorProto

CONTRIB = "com.microsoft"
_ENDS = ("EmbedLayerNormalization", "QEmbedLayerNormalization", "ReduceSum")
"""Producers of int32[B]: how many tokens of each row are seen."""


def unfused(model: ModelProto) -> Graph:
    """The graph with every attention in primitive operators."""
    if any(node.op_type == "Attention" and node.domain != CONTRIB for node in model.graph.node):
        model = onnx.inliner.inline_selected_functions(model, [("", "Attention")], inline_schema_functions=True)
    graph = Graph(model)
    spelled = {"Attention": _attention, "QAttention": _attention, "MultiHeadAttention": _multi_head}
    for node in [node for node in graph.nodes if node.domain == CONTRIB and node.op_type in spelled]:
        assert not attribute(node, "unidirectional", 0) and not attribute(node, "do_rotary", 0), (
            f"{node.name}: {node.attribute}"
        )
        spelled[node.op_type](graph, node)
        graph.nodes = [other for other in graph.nodes if other is not node]
    return graph


def _attention(graph: Graph, node: NodeProto) -> None:
    quantised = node.op_type == "QAttention"
    x, weight, bias = node.input[:3]
    widths = np.full(3, constants(graph)[bias].size // 3)
    assert list(attribute(node, "qkv_hidden_sizes", widths)) == list(widths), f"{node.name}: {node.attribute}"
    if quantised:
        whole = graph.insert(node, "MatMulInteger", [x, weight, node.input[6], node.input[7]])
        scales = graph.insert(node, "Mul", [node.input[3], node.input[4]])
        product = graph.insert(node, "Mul", [graph.insert(node, "Cast", [whole], to=TensorProto.FLOAT), scales])
    else:
        product = graph.insert(node, "MatMul", [x, weight])
    projected = graph.insert(node, "Add", [product, bias])
    starts = [graph.constant(np.asarray([i * widths[0]], np.int64)) for i in range(4)]
    axis = graph.constant(np.asarray([-1], np.int64))
    parts = [graph.insert(node, "Slice", [projected, starts[i], starts[i + 1], axis]) for i in range(3)]
    _attend(graph, node, parts, mask=_given(node, 5 if quantised else 3), addend="" if quantised else _given(node, 5))


def _multi_head(graph: Graph, node: NodeProto) -> None:
    parts = list(node.input[:3])
    if bias := _given(node, 3):
        values = constants(graph)[bias]
        added = np.split(values, 3)
        parts = [graph.insert(node, "Add", [x, graph.constant(b)]) for x, b in zip(parts, added, strict=True)]
    _attend(graph, node, parts, mask=_given(node, 4), addend=_given(node, 5))


def _attend(graph: Graph, node: NodeProto, parts: list[str], mask: str, addend: str) -> None:
    """parts: q, k, v[B, S, H x size] -> softmax(q kT x scale + mask + addend) v -> the node's output."""

    def new(operator: str, *inputs: str, **attributes: Any) -> str:
        return graph.insert(node, operator, inputs, **attributes)

    def integers(*numbers: int) -> str:
        return graph.constant(np.asarray(numbers, np.int64))

    heads = attribute(node, "num_heads")
    split = [new("Reshape", new("Cast", x, to=TensorProto.FLOAT), integers(0, 0, heads, -1)) for x in parts]
    query, value = (new("Transpose", split[i], perm=[0, 2, 1, 3]) for i in (0, 2))
    size = new("Cast", new("Gather", new("Shape", split[0]), integers(3)), to=TensorProto.FLOAT)
    scale = attribute(node, "scale") or 0.0
    times = graph.constant(np.float32(scale)) if scale else new("Reciprocal", new("Sqrt", size))
    scores = new("Mul", new("MatMul", query, new("Transpose", split[1], perm=[0, 2, 3, 1])), times)
    if addend:
        scores = new("Add", scores, new("Cast", addend, to=TensorProto.FLOAT))
    if mask:
        scores = new("Where", _seen(graph, node, mask, split[1]), scores, graph.constant(np.float32(-np.inf)))
    context = new("Transpose", new("MatMul", new("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    joined = new("CastLike", new("Reshape", context, integers(0, 0, -1)), parts[0])
    graph.insert(node, "Identity", [joined], output=node.output[0])


def _seen(graph: Graph, node: NodeProto, mask: str, keys: str) -> str:
    """bool[B, 1, 1, S] of ends int32[B] and keys[B, S, H, size]: the tokens before the end."""
    producer = graph.producer(mask)
    assert producer is not None and producer.op_type in _ENDS, f"{node.name}: the mask is not one end a row"
    length = graph.insert(
        node, "Gather", [graph.insert(node, "Shape", [keys]), graph.constant(np.asarray(1, np.int64))]
    )
    scalars = [graph.constant(np.asarray(number, np.int64)) for number in (0, 1)]
    places = graph.insert(node, "Range", [scalars[0], length, scalars[1]])
    axes = graph.constant(np.asarray([1, 2, 3], np.int64))
    ends = graph.insert(node, "Unsqueeze", [graph.insert(node, "Cast", [mask], to=TensorProto.INT64), axes])
    return graph.insert(node, "Less", [places, ends])


def _given(node: NodeProto, operand: int) -> str:
    return node.input[operand] if len(node.input) > operand else ""
