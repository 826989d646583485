"""Quantised tensors: labels pass through the steps to integers and back, and a product of integers is found again in floats.

    x -> QuantizeLinear -> DequantizeLinear          x rounded and clipped; scales per channel follow their axis
    x -> DynamicQuantizeLinear -> y, scale, zero     scale and zero point are of the whole tensor: no channel's own
    MatMulInteger(y, weight) -> Cast -> Mul(scales)  the float product; contracted like a MatMul (`contraction`)

Exact under a cut: static scales stay as they are, and a dynamic range always holds 0, so a channel of zeros does not move it.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx import NodeProto, helper, numpy_helper

from axformer_passes.graph import origin
from axformer_passes.operators.axes import apart
from axformer_passes.registry import (
    Cutting,
    Probes,
    Stop,
    TokenRows,
    Unrounding,
    Walk,
    channels,
    cut_edit,
    tokens,
    unrounded,
)

INTEGER_PRODUCTS = frozenset({"MatMulInteger", "ConvInteger"})
"""Contractions whose int32 output is scaled behind a Cast."""
LINEAR = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""To integers and back, by given scales."""
QUANTISE = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
"""To integers."""
SCALED = (*sorted(LINEAR), *(f"com.microsoft::{name}" for name in sorted(LINEAR)))
"""The same by all their names: operators with a scale and a zero point beside the tensor, in slots 1 and 2."""


@channels(*SCALED)
def _linear(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], walk.labels(node.inputs[0]))


@channels("DynamicQuantizeLinear")
def _dynamic(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], walk.labels(node.inputs[0]))


def unquantised(value: ir.Value) -> ir.Value:
    """The float tensor that was quantised on its way to `value`; `value` itself where nothing was."""
    node = value.producer()
    while node is not None and node.op_type in (*LINEAR, "DynamicQuantizeLinear") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def rescaled(product: ir.Node) -> ir.Value:
    """The float tensor that a contraction's output stands for: behind the Cast and Mul of an integer product, and behind
    QuantizeLinear and DequantizeLinear. The output itself where there are none, or where it is read on the way."""
    value = product.outputs[0]
    if product.op_type in INTEGER_PRODUCTS:
        value = _scaled(_behind(value, frozenset({"Cast"})))
    return _behind(_behind(value, LINEAR), LINEAR)


def _behind(value: ir.Value, operators: frozenset[str]) -> ir.Value:
    """The output of the one node that reads `value`, if it is one of `operators`; else `value`."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type not in operators:
        return value
    return uses[0].node.outputs[0]


def _scaled(value: ir.Value) -> ir.Value:
    """Behind the Mul by both scales, or by the dynamic one and the weight's one after the other."""
    once = _behind(value, frozenset({"Mul"}))
    if once is value or not _is_dynamic(_factor(value)):
        return once
    twice = _behind(once, frozenset({"Mul"}))
    return twice if twice is not once and origin(_factor(once)) is not None else once


def _factor(value: ir.Value) -> ir.Value | None:
    """What the one reader of `value`, a Mul, multiplies it with."""
    (use,) = value.uses()
    return use.node.inputs[1 - use.idx]


def _is_dynamic(scale: ir.Value | None) -> bool:
    node = scale.producer() if scale is not None else None
    return node is not None and node.op_type == "DynamicQuantizeLinear"


# -- tokens ----------------------------------------------------------------------------------------------------------


@tokens(*SCALED)
def _quantise_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    """By given scales: of the tensor, or of the channels of another axis."""
    if math.prod(probes.shape(node.inputs[1])[0]) != 1:
        apart(rows, [node.attributes.get_int("axis", 1) % probes.rank(node.inputs[0])])
        if node.attributes.get_int("block_size", 0):
            raise Stop("it is quantised in blocks")
    return {0: rows}


# -- the cut ------------------------------------------------------------------------------------------------------------


@cut_edit(*SCALED)
def _rescale(cut: Cutting, node: ir.Node) -> None:
    """Scales per channel of an activation follow it."""
    labels = cut.labels(node.outputs[0])
    axis = node.attributes.get_int("axis", 1)
    keep = cut.kept(node.outputs[0]).get(axis % labels.ndim) if labels is not None and labels.ndim else None
    for slot, value in enumerate(node.inputs[1:], start=1):
        if keep is not None and value is not None:
            cut.follow(node, slot, -1, keep)


# -- the twin that does not round ----------------------------------------------------------------------------------------

_FLOAT_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


@unrounded(*SCALED)
def _unrounded_linear(twin: Unrounding, node: NodeProto) -> list[NodeProto]:
    """To integers and back: the tensor itself."""
    if node.op_type == "QuantizeLinear":
        twin.integers.update(node.output)
    return [helper.make_node("Identity", [node.input[0]], [node.output[0]])]


@unrounded("DynamicQuantizeLinear")
def _unrounded_dynamic(twin: Unrounding, node: NodeProto) -> list[NodeProto]:
    """The tensor itself, at scale 1 and zero point 0."""
    twin.integers.add(node.output[0])
    numbers = (numpy_helper.from_array(np.asarray(one)) for one in (np.float32(1), np.uint8(0)))
    constants = (
        helper.make_node("Constant", [], [name], value=one) for name, one in zip(node.output[1:], numbers, strict=False)
    )
    return [helper.make_node("Identity", [node.input[0]], [node.output[0]]), *constants]


@unrounded(*_FLOAT_PRODUCTS)
def _unrounded_product(twin: Unrounding, node: NodeProto) -> list[NodeProto]:
    """The float product; of weights less their zero points. Raises: Stop where an operand is neither weight nor activation."""
    product = NodeProto()
    product.CopyFrom(node)
    product.op_type = _FLOAT_PRODUCTS[node.op_type]
    del product.input[2:]
    for slot, name in enumerate(node.input[:2]):
        zero = node.input[slot + 2] if slot + 2 < len(node.input) else ""
        if name in twin.integers:
            continue
        if name not in twin.weights or (zero and zero not in twin.weights):
            raise Stop(f"{name!r} is neither a weight nor a quantised activation")
        array = numpy_helper.to_array(twin.weights[name]).astype(np.float32)
        if zero:
            subtracted = numpy_helper.to_array(twin.weights[zero]).astype(np.float32)
            by_row = subtracted.ndim == 1 and (slot == 0 or node.op_type == "ConvInteger")
            array = array - (subtracted.reshape(-1, *[1] * (array.ndim - 1)) if by_row else subtracted)
        product.input[slot] = twin.weight(f"{node.output[0]}:float{slot}", array)
    return [product]
