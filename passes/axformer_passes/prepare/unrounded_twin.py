"""The twin of a quantised model that does not round its activations: for checks, never for output.

    x -> QuantizeLinear -> .. -> DequantizeLinear -> y      ->  x -> .. -> y
    x -> DynamicQuantizeLinear -> q, scale, zero            ->  q = x, scale = 1, zero = 0
    MatMulInteger(q, weight, zero, zero of the weight)      ->  MatMul(q, weight - zero of the weight), in float32

Quantised weights keep their values. Rounding turns a difference in the last bit into one of 1/255; the twins of a graph and of
what was made of it can be compared to float32 precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from axformer_passes.operators import OPERATORS

_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def unrounded(model: ModelProto) -> ModelProto:
    """The twin; `model` itself where no activation is quantised, or an operator without a twin computes with integers."""
    integers = _integers(model)
    if not integers:
        return model
    twin = ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:], twin.graph.value_info[:]
    weights = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _PRODUCTS and not integers.isdisjoint(node.input):
            twin.graph.node.append(_product(node, integers, weights, twin.graph))
        else:
            twin.graph.node.extend(_twin(node, integers))
    return twin


def _integers(model: ModelProto) -> set[str]:
    """Names of quantised activations; none where an operator without a twin computes with them."""
    weights, integers = {t.name for t in model.graph.initializer}, set[str]()
    constant = set(weights)
    for node in model.graph.node:
        if node.op_type == "Constant" or (node.input and all(name in constant for name in node.input if name)):
            constant.update(node.output)
            continue
        reads = not integers.isdisjoint(node.input)
        if node.op_type == "DynamicQuantizeLinear":
            integers.add(node.output[0])
        elif node.op_type == "QuantizeLinear" or (reads and _moves(node)):
            integers.update(node.output)
        elif reads and node.op_type in _PRODUCTS:
            if not all(_is_clear(node, slot, integers, weights) for slot in (0, 1)):
                return set()
        elif reads and node.op_type not in ("DequantizeLinear", "Shape", "Size"):
            return set()
    return integers


def _moves(node: NodeProto) -> bool:
    """Does it only move integers?"""
    record = OPERATORS.get(node.op_type) if not node.domain else None
    return record is not None and record.moves is not None


def _twin(node: NodeProto, integers: set[str]) -> Iterator[NodeProto]:
    reads = not integers.isdisjoint(node.input)
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and node.output[0] in integers:
        yield helper.make_node("Identity", [node.input[0]], [node.output[0]])
        for name, value in zip(node.output[1:], (np.float32(1), np.uint8(0)), strict=False):
            if node.op_type == "DynamicQuantizeLinear":
                tensor = numpy_helper.from_array(np.asarray(value))
                yield helper.make_node("Constant", [], [name], value=tensor)
    elif node.op_type == "DequantizeLinear" and reads:
        yield helper.make_node("Identity", [node.input[0]], [node.output[0]])
    else:
        yield node


def _product(node: NodeProto, integers: set[str], weights: Mapping[str, TensorProto], graph: GraphProto) -> NodeProto:
    """The float product; a weight becomes a float initializer of `graph`, less its zero point."""
    product = NodeProto()
    product.CopyFrom(node)
    product.op_type = _PRODUCTS[node.op_type]
    del product.input[2:]
    for slot, name in enumerate(node.input[:2]):
        if name in integers:
            continue
        array = numpy_helper.to_array(weights[name]).astype(np.float32)
        if _zero(node, slot):
            zero = numpy_helper.to_array(weights[_zero(node, slot)]).astype(np.float32)
            by_row = zero.ndim == 1 and (slot == 0 or node.op_type == "ConvInteger")
            array = array - (zero.reshape(-1, *[1] * (array.ndim - 1)) if by_row else zero)
        product.input[slot] = f"{node.output[0]}:float{slot}"
        graph.initializer.append(numpy_helper.from_array(array, product.input[slot]))
    return product


def _zero(node: NodeProto, slot: int) -> str:
    return node.input[slot + 2] if slot + 2 < len(node.input) else ""


def _is_clear(node: NodeProto, slot: int, integers: set[str], weights: set[str]) -> bool:
    """Is an operand a quantised activation, or a weight that stands in the file?"""
    name, zero = node.input[slot], _zero(node, slot)
    return name in integers or (name in weights and (not zero or zero in weights))
