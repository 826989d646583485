"""Elementwise operators: labels that meet at one position are united."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import constant
from axformer_passes.registry import (
    Array,
    Cutting,
    Edit,
    FloatArray,
    Moving,
    Probes,
    Scaling,
    Shifting,
    Stuck,
    TokenRows,
    Walk,
    affine,
    aligned,
    channels,
    cut_edit,
    follow_all,
    least,
    moves,
    raises,
    row_shifts,
    scales,
    shifts,
    tokens,
)

UNARY = (
    "Abs", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tan",
    "Tanh", "ThresholdedRelu", "Trilu", "com.microsoft::FastGelu", "com.microsoft::Gelu", "com.microsoft::QuickGelu",
)  # fmt: skip
NARY = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod",
    "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip

MASKED = -1e4
"""What is written over masked scores is at most that."""


@channels(*UNARY, elementwise=True)
def _unary(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], walk.labels(node.inputs[0]))


@channels(*NARY, elementwise=True)
def _nary(walk: Walk, node: ir.Node) -> None:
    labelled = [walk.labels(v) for v in node.inputs if v is not None and walk.has(v)]
    shape = walk.shape(node.outputs[0])
    walk.put(node.outputs[0], walk.meet(np.broadcast_to(x, shape) for x in labelled))


# -- tokens ----------------------------------------------------------------------------------------------------------


@tokens(*(name for name in UNARY if name != "Trilu"), "com.microsoft::BiasGelu")
def _unary_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    return {0: rows}


@tokens(*NARY)
def _nary_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    rank = probes.rank(node.outputs[0])
    found = {slot: aligned(probes, value, rows, rank) for slot, value in enumerate(node.inputs) if value is not None}
    return {slot: one for slot, one in found.items() if one is not None}


# -- the cut ------------------------------------------------------------------------------------------------------------


@cut_edit(*NARY)
def _nary_cut(cut: Cutting, node: ir.Node) -> None:
    """A constant or computed operand without labels loses what it meets."""
    follow_all(cut, node)


# -- single numbers -----------------------------------------------------------------------------------------------------


@moves("Identity", orderly=True)
def _identity_moves(move: Moving, data: Sequence[Array]) -> Array:
    return data[0]


@affine("Add")
def _add_affine(slot: int, by: FloatArray) -> tuple[FloatArray, FloatArray]:
    return np.ones(()), by


@affine("Sub")
def _sub_affine(slot: int, by: FloatArray) -> tuple[FloatArray, FloatArray]:
    return (-np.ones(()), by) if slot == 0 else (np.ones(()), -by)  # c - x, x - c


@affine("Mul")
def _mul_affine(slot: int, by: FloatArray) -> tuple[FloatArray, FloatArray]:
    return by, np.zeros(())


@affine("Div")
def _div_affine(slot: int, by: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    return None if slot == 0 else (1 / np.where(by == 0, np.nan, by), np.zeros(()))


# -- what has grown by a constant ---------------------------------------------------------------------------------------


@shifts("Add", "Sub")
def _sum_shifts(edits: Shifting, node: ir.Node, slot: int, delta: FloatArray) -> None:
    other = node.inputs[1 - slot]
    assert other is not None
    if constant(other) is not None and node.op_type == "Add":
        edits.add(other, -delta)
        return
    if other is node.inputs[slot]:
        raise Stuck
    edits.shift(node.outputs[0], -delta if node.op_type == "Sub" and slot == 1 else delta)


@shifts("Mul", "Div")
def _product_shifts(edits: Shifting, node: ir.Node, slot: int, delta: FloatArray) -> None:
    factor = constant(node.inputs[1 - slot])
    if factor is None or factor.dtype != np.float32 or (node.op_type == "Div" and slot == 1):
        raise Stuck
    other = np.asarray(factor, np.float64)
    edits.shift(node.outputs[0], least(delta * other if node.op_type == "Mul" else delta / other))


@row_shifts("Add", "Sub")
def _sum_row_shifts(edits: Shifting, node: ir.Node, slot: int) -> None:
    if node.inputs[1 - slot] is node.inputs[slot]:
        raise Stuck
    edits.shift_rows(node.outputs[0])


@row_shifts("Mul", "Div")
def _product_row_shifts(edits: Shifting, node: ir.Node, slot: int) -> None:
    factor = constant(node.inputs[1 - slot])
    if factor is None or factor.size != 1 or (node.op_type == "Div" and slot == 1):
        raise Stuck
    edits.shift_rows(node.outputs[0])


@row_shifts("Where")
def _where_row_shifts(edits: Shifting, node: ir.Node, slot: int) -> None:
    """Masked scores are so low that it does not matter by how much the others grow."""
    instead = constant(node.inputs[3 - slot]) if slot else None
    if instead is None or not (instead <= MASKED).all():
        raise Stuck
    edits.shift_rows(node.outputs[0])


@raises("Add")
def _raise_sum(edits: Shifting, node: ir.Node, delta: FloatArray) -> None:
    for value in node.inputs:
        if constant(value) is not None:
            edits.add(value, delta)
            return
    raise Stuck


# -- what shall be larger by a factor -----------------------------------------------------------------------------------


@scales("Add")
def _scale_sum(scaling: Scaling, node: ir.Node) -> list[Edit] | None:
    for slot in (0, 1):
        edit, other = scaling.weight(node.inputs[slot]), node.inputs[1 - slot]
        if edit is not None and other is not None:
            rest = scaling.value(other)
            return None if rest is None else [edit, *rest]
    return None
