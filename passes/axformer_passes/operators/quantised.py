"""Quantised tensors: labels pass through the steps to integers and back, and a product of integers is found again in floats.

    x -> QuantizeLinear -> DequantizeLinear          x rounded and clipped; scales per channel follow their axis
    x -> DynamicQuantizeLinear -> y, scale, zero     scale and zero point are of the whole tensor: no channel's own
    MatMulInteger(y, weight) -> Cast -> Mul(scales)  the float product; contracted like a MatMul (`contraction`)

Exact under a cut: static scales stay as they are, and a dynamic range always holds 0, so a channel of zeros does not move it.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from axformer_passes.graph import origin
from axformer_passes.operators.axes import apart
from axformer_passes.registry import Cutting, Probes, Stop, TokenRows, Walk, channels, cut_edit, tokens

INTEGER_PRODUCTS = frozenset({"MatMulInteger", "ConvInteger"})
"""Contractions whose int32 output is scaled behind a Cast."""
LINEAR = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""To integers and back, by given scales."""
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
