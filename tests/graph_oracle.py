"""What a plan means, said by the file itself: the same graph with masks inserted, run in ONNX Runtime.

For files whose arithmetic torch does not share: quantised ones and those in half precision. Shares no code with the passes:
the projections are found by the values of their weights (`graph_locate`), the masks are plain onnx nodes.

head, neuron      the float tensor that feeds the output or down projection, before it is quantised, times a mask of its width
block             the branch operand of the residual addition, bias included, minus itself
hard attention    a probability stays where fewer than k others of its row are larger, or equal with a lower index: no TopK;
                  truncated on the Softmax's float output, renormalised on its input; fused attention is spelled out first

bfloat16 has no CPU runtime: there the float32 twin of the file is asked.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from graph_locate import Graph, Projection, attribute, constants, locate
from graph_unfused import unfused
from onnx import ModelProto, NodeProto, TensorProto, helper
from zoo import Feeds, ZooModel, onnx_outputs, unwrapped
from zoo_rewrites import retyped

from axformer_passes.plan import Hard, Plan

_PASSING = (
    "Add", "Mul", "Cast", "Reshape", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear", "Transpose", "Squeeze",
    "Unsqueeze",
)  # fmt: skip
_SKIPPING = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


def masked_graph_outputs(model: ZooModel, feeds: Feeds, plan: Plan) -> list[npt.NDArray[Any]]:
    """All outputs of the model's file under `plan`, ONNX Runtime's optimisations off; bfloat16: of its float32 twin."""
    return run_as_declared(masked_graph(model, plan), feeds)


def masked_graph(model: ZooModel, plan: Plan) -> bytes:
    """The model's file (bfloat16: its float32 twin) with the masks of `plan` inserted.

    Raises: AssertionError where a projection is not found by its weight, or no Softmax for a hardened attention.
    """
    assert plan.weights is None, "the oracle replays removals, not weights"
    source = ModelProto.FromString(float32_twin(model.path))
    graph = unfused(source) if plan.hard_attention else Graph(source)
    outputs = [_linear(model, record.output) for record in model.records]
    downs = [_linear(model, record.down) for record in model.records]
    of_output, of_down = locate(graph, outputs), locate(graph, downs)
    for index, rule in plan.hard_attention.items():
        _harden(graph, _there(of_output, index), rule)
    for index, heads in plan.heads.items():
        width = model.records[index].width or 0
        _mask_input(graph, _there(of_output, index), [head * width + i for head in sorted(heads) for i in range(width)])
    for index, neurons in plan.neurons.items():
        _mask_input(graph, _there(of_down, index), sorted(neurons))
    for index in sorted(plan.attention_blocks):
        _zero_branch(graph, _there(of_output, index), outputs[index])
    for index in sorted(plan.feed_forward_blocks):
        _zero_branch(graph, _there(of_down, index), downs[index])
    return graph.serialized()


def float32_twin(model: Path | bytes) -> bytes:
    """The model with every bfloat16 tensor, cast, input and output in float32 instead: the same weights, a finer arithmetic."""
    loaded = ModelProto.FromString(model) if isinstance(model, bytes) else onnx.load(model)
    return retyped(loaded, TensorProto.BFLOAT16, TensorProto.FLOAT).SerializeToString()


def run_as_declared(model: bytes, feeds: Feeds) -> list[npt.NDArray[Any]]:
    """`onnx_outputs`, float inputs given in the element type that the model declares."""
    types = _input_types(model)
    return onnx_outputs(model, {name: value.astype(types[name]) for name, value in feeds.items() if name in types})


@functools.lru_cache(maxsize=4)
def _input_types(model: bytes) -> dict[str, Any]:
    inputs = ModelProto.FromString(model).graph.input
    return {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in inputs}


def _linear(model: ZooModel, name: str) -> Any:
    return unwrapped(model.module).get_submodule(name) if name else None


def _there(found: list[Projection | None], index: int) -> Projection:
    projection = found[index]
    assert projection is not None, f"layer {index} has no such block"
    return projection


# -- heads and neurons -------------------------------------------------------------------------------------------------


def _mask_input(graph: Graph, projection: Projection, columns: list[int]) -> None:
    reader = projection.node
    producer = graph.producer(reader.input[0])
    if producer is not None and producer.op_type == "DequantizeLinear":
        producer = graph.producer(producer.input[0])
    if producer is not None and producer.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
        reader = producer
    kept = np.ones(math.prod(projection.shape), projection.dtype)
    kept[columns] = 0
    reader.input[0] = graph.insert(reader, "Mul", [reader.input[0], graph.constant(kept.reshape(projection.shape))])


# -- blocks ------------------------------------------------------------------------------------------------------------


def _zero_branch(graph: Graph, projection: Projection, linear: Any) -> None:
    known = constants(graph)
    assert projection.node.op_type != "Gemm" or projection.node.input[2] in known, "the residual is in the Gemm"
    tensor = projection.node.output[0]
    while True:
        ((node, operand), *more) = graph.readers(tensor)
        if more:  # the norm behind a block of Gemma's: of zeros it makes zeros
            zeros = graph.insert(node, "Sub", [tensor, tensor])
            for reader, slot in ((node, operand), *more):
                reader.input[slot] = zeros
            return
        if node.op_type in _SKIPPING:
            _without_bias(node, known, linear)
            break
        others = [name for i, name in enumerate(node.input) if i != operand]
        if node.op_type == "Add" and others[0] not in known:
            break
        assert node.op_type in _PASSING, f"{node.op_type} between a projection and its residual addition"
        tensor = node.output[0]
    node.input[operand] = graph.insert(node, "Sub", [tensor, tensor])


def _without_bias(node: NodeProto, known: dict[str, Any], linear: Any) -> None:
    """SkipLayerNormalization(input, skip, scale, [shift,] bias): the bias that was the projection's goes with the branch."""
    operand = 4 if node.op_type == "SkipLayerNormalization" else 3
    if len(node.input) > operand and node.input[operand]:
        bias = known[node.input[operand]].astype(np.float32)
        assert np.allclose(bias, linear.bias.detach().numpy(), rtol=0.05, atol=0.05), f"{node.name}: another's bias"
        node.input[operand] = ""


# -- hard attention ----------------------------------------------------------------------------------------------------


def _harden(graph: Graph, projection: Projection, rule: Hard) -> None:
    softmax = _softmax_above(graph, projection.node)
    assert graph.opset >= 13 and attribute(softmax, "axis", -1) in (-1, 3), "Softmax over the last axis"
    if rule.mode == "renormalised":
        scores = softmax.input[0]
        gone = _number(graph, softmax, -np.inf, scores)
        softmax.input[0] = graph.insert(softmax, "Where", [_kept(graph, softmax, scores, rule.k), scores, gone])
        return
    soft = softmax.output[0]
    readers = graph.readers(soft)
    first = min((node for node, _ in readers), key=lambda node: [n is node for n in graph.nodes].index(True))
    gone = _number(graph, first, 0, soft)
    hard = graph.insert(first, "Where", [_kept(graph, first, soft, rule.k), soft, gone])
    for node, operand in readers:
        node.input[operand] = hard


def _number(graph: Graph, before: NodeProto, value: float, like: str) -> str:
    """`value` in the element type of `like`; before operator set 15 float32, which all files of the zoo are then."""
    constant = graph.constant(np.float32(value))
    return graph.insert(before, "CastLike", [constant, like]) if graph.opset >= 15 else constant


def _kept(graph: Graph, before: NodeProto, values: str, k: int) -> str:
    """bool[.., S] of values[.., S]: fewer than k of the row come first. Axes of the comparison: [.., this, other]."""

    def new(operator: str, *inputs: str, **attributes: Any) -> str:
        return graph.insert(before, operator, inputs, **attributes)

    def integers(*numbers: int) -> str:
        return graph.constant(np.asarray(numbers, np.int64))

    exact = new("Cast", values, to=TensorProto.FLOAT)
    this, other = new("Unsqueeze", exact, integers(-1)), new("Unsqueeze", exact, integers(-2))
    length = new("Squeeze", new("Gather", new("Shape", values), integers(-1)), integers(0))
    scalars = [graph.constant(np.asarray(number, np.int64)) for number in (0, 1)]
    place = new("Range", scalars[0], length, scalars[1])
    lower = new("Less", new("Unsqueeze", place, integers(0)), new("Unsqueeze", place, integers(1)))
    first = new("Or", new("Greater", other, this), new("And", new("Equal", other, this), lower))
    rank = new("ReduceSum", new("Cast", first, to=TensorProto.FLOAT), integers(-1), keepdims=0)
    return new("Less", rank, graph.constant(np.float32(k)))


def _softmax_above(graph: Graph, node: NodeProto) -> NodeProto:
    """The nearest Softmax on any way up: the one of this block, others are behind its value projection."""
    level, seen = [node], set()
    while level:
        above = []
        for producer in (graph.producer(name) for below in level for name in below.input):
            if producer is None or id(producer) in seen:
                continue
            assert "Attention" not in producer.op_type, f"{producer.op_type} has its softmax inside"
            if producer.op_type == "Softmax":
                return producer
            seen.add(id(producer))
            above.append(producer)
        level = above
    raise AssertionError("no Softmax above the output projection")
