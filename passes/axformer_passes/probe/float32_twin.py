"""The float32 twin of a model in half precision: for probes and checks, never for output.

    float16, bfloat16 -> float32: weights, casts, inputs, outputs. All names, shapes and integers are the model's own

ONNX Runtime has hardly any bfloat16 kernels on the CPU, so a probe runs on the twin there. And what a cut or a gate did to a
graph can be compared to float32 precision, where half precision would amplify the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from axformer_passes.errors import AxformerError, ModelError, RuntimeFailure
from axformer_passes.io import Detached, detached, first_line
from axformer_passes.probe.recipe import describe, recipe_of

Array = npt.NDArray[Any]
HALVES = frozenset({int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)})
BFLOAT16 = frozenset({int(TensorProto.BFLOAT16)})
_FLOAT = int(TensorProto.FLOAT)
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "softmax_precision", "precision", "stash_type"})


def widened(model: ModelProto, kinds: frozenset[int] = HALVES) -> ModelProto:
    """A copy of `model` with every tensor of the element types `kinds` in float32."""
    twin = ModelProto()
    twin.CopyFrom(model)
    for graph in _graphs(twin.graph):
        del graph.value_info[:]
        for tensor in graph.initializer:
            _widen(tensor, kinds)
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in kinds:
                value.type.tensor_type.elem_type = _FLOAT
    for node in _nodes(twin):
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
                _widen(tensor, kinds)
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in kinds:
                attribute.i = _FLOAT
    for function in twin.functions:
        del function.value_info[:]
    return twin


def widened_model(model: ir.Model, kinds: frozenset[int] = HALVES) -> ir.Model:
    """`widened` for an onnx-ir model; the model itself where there is nothing to widen."""
    graph = detached(model)
    if not holds(graph.proto, kinds):
        return model
    twin: ir.Model = ir.from_proto(widened(graph.whole(), kinds))
    describe(twin, recipe_of(model))
    return twin


def holds(model: ModelProto, kinds: frozenset[int] = BFLOAT16) -> bool:
    """Has any weight, cast, input or output one of these element types?"""
    tensors = (t for graph in _graphs(model.graph) for t in graph.initializer)
    values = (v for graph in _graphs(model.graph) for v in (*graph.input, *graph.output))
    return (
        any(t.data_type in kinds for t in tensors)
        or any(v.type.tensor_type.elem_type in kinds for v in values)
        or any(_made(node, kinds) for node in _nodes(model))
    )


def _made(node: NodeProto, kinds: frozenset[int]) -> bool:
    return any(
        (a.name in _TYPE_ATTRIBUTES and a.i in kinds) or (a.HasField("t") and a.t.data_type in kinds)
        for a in node.attribute
    )


def widening(runner: Callable[[Detached, Mapping[str, Array]], dict[str, Array]]) -> Any:
    """A runner that runs a bfloat16 model which `runner` refuses as its float32 twin; outputs in the types of the model.

    Everything that this package runs is run through here. Raises: ModelError, RuntimeFailure where `runner` refuses other models
    or the twin, whatever kinds of error are its own.
    """

    def run(graph: Detached, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return _ran(runner, graph, feeds)
        except AxformerError:
            if not holds(graph.proto):
                raise
            model = graph.whole()
        bfloat16 = ir.DataType.BFLOAT16.numpy()
        given = {n: a.astype(np.float32) if a.dtype == bfloat16 else a for n, a in feeds.items()}
        outputs = _ran(runner, Detached(widened(model, BFLOAT16), None, {}), given)
        halves = _declared(model)
        return {n: a.astype(bfloat16) if n in halves else a for n, a in outputs.items()}

    return run


def _ran(runner: Callable[[Detached, Any], dict[str, Array]], graph: Detached, feeds: Any) -> dict[str, Array]:
    try:
        return runner(graph, feeds)
    except AxformerError:
        raise
    except Exception as error:  # the runner's own kinds, which this package does not know
        raise RuntimeFailure(f"the model does not run: {first_line(error)}") from error


def _declared(model: ModelProto) -> frozenset[str]:
    """The main graph's outputs that are bfloat16, as far as shape inference can tell. Raises: ModelError where types contradict."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the model's types contradict each other: {first_line(error)}") from None
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return frozenset(v.name for v in values if v.type.tensor_type.elem_type in BFLOAT16)


def _widen(tensor: TensorProto, kinds: frozenset[int]) -> None:
    if tensor.data_type in kinds:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        yield from _inner(node)


def _inner(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _graphs(inner)


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for graph in _inner(node):
                yield from graph.node
