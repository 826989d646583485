"""Elementwise operators: labels that meet at one position are united."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from axformer_passes.registry import (
    Array,
    Cutting,
    FloatArray,
    Moving,
    Probes,
    TokenRows,
    Walk,
    affine,
    aligned,
    channels,
    cut_edit,
    follow_all,
    moves,
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


@channels(*UNARY, elementwise=True)
def _unary(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], walk.labels(node.inputs[0]))


@channels(*NARY, elementwise=True)
def _nary(walk: Walk, node: ir.Node) -> None:
    labelled = [walk.labels(v) for v in node.inputs if v is not None and walk.has(v)]
    shape = walk.shape(node.outputs[0])
    walk.put(node.outputs[0], walk.meet(np.broadcast_to(x, shape) for x in labelled))


# -- tokens ----------------------------------------------------------------------------------------------------------


@tokens(*(name for name in UNARY if name != "Trilu"))
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
def _add_affine(slot: int, constant: FloatArray) -> tuple[FloatArray, FloatArray]:
    return np.ones(()), constant


@affine("Sub")
def _sub_affine(slot: int, constant: FloatArray) -> tuple[FloatArray, FloatArray]:
    return (-np.ones(()), constant) if slot == 0 else (np.ones(()), -constant)  # c - x, x - c


@affine("Mul")
def _mul_affine(slot: int, constant: FloatArray) -> tuple[FloatArray, FloatArray]:
    return constant, np.zeros(())


@affine("Div")
def _div_affine(slot: int, constant: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    return None if slot == 0 else (1 / np.where(constant == 0, np.nan, constant), np.zeros(()))
