"""The twin of a quantised model that does not round its activations: for checks, never for output.

    x -> QuantizeLinear -> .. -> DequantizeLinear -> y      ->  x -> .. -> y
    x -> DynamicQuantizeLinear -> q, scale, zero            ->  q = x, scale = 1, zero = 0
    MatMulInteger(q, weight, zero, zero of the weight)      ->  MatMul(q, weight - zero of the weight), in float32

Quantised weights keep their values. Rounding turns a difference in the last bit into one of 1/255; the twins of a graph and of
what was made of it can be compared to float32 precision.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from axformer_passes.operators import QUANTISE, Stop
from axformer_passes.registry import Array, record_of_proto


def unrounded(model: ModelProto) -> ModelProto:
    """The twin; `model` itself where no activation is quantised, or an operator without a twin computes with integers."""
    twin = ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:], twin.graph.value_info[:]
    work = _Unrounding(twin.graph, {t.name: t for t in model.graph.initializer})
    constant = set(work.weights)
    for node in model.graph.node:
        if node.op_type == "Constant" or (node.input and all(name in constant for name in node.input if name)):
            constant.update(node.output)
            twin.graph.node.append(node)
            continue
        try:
            twin.graph.node.extend(_twin(work, node))
        except Stop:
            return model
    return twin if work.integers else model


def _twin(work: _Unrounding, node: NodeProto) -> list[NodeProto]:
    """The nodes in its place. Raises: Stop."""
    record, reads = record_of_proto(node), not work.integers.isdisjoint(node.input)
    if record.unrounded is not None and (reads or node.op_type in QUANTISE):
        return record.unrounded(work, node)
    if reads and record.moves is None:
        raise Stop(f"{node.op_type} computes with integers")
    if reads:
        work.integers.update(node.output)
    return [node]


class _Unrounding:
    """registry.Unrounding of one graph."""

    def __init__(self, graph: GraphProto, weights: Mapping[str, TensorProto]) -> None:
        self._graph, self.weights, self.integers = graph, weights, set[str]()

    def weight(self, name: str, array: Array) -> str:
        """Add a float weight to the twin."""
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name
