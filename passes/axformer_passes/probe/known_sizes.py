"""What a graph computes of sizes alone, and what of it is always the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import origin
from axformer_passes.probe.facts import Array, Facts

_SIZED = frozenset({"Shape", "Size"})

_ARITHMETIC = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Div",
        "Gather",
        "Identity",
        "Mul",
        "Neg",
        "Reshape",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    }
)
"""Polynomials of sizes, and division, which must come out even."""

_PLAIN = _ARITHMETIC | {"Equal", "Exp", "Floor", "Log", "Max", "Min", "Not", "Pow", "Reciprocal", "Sqrt", "Where"}
"""Operators on constants that are computed beforehand."""


def known(graph: ir.Graph, facts: Facts) -> tuple[set[ir.Value], dict[ir.Value, Array]]:
    """(what is computed of sizes alone, what of it is always the same: with its value)."""
    sizes, fixed = set[ir.Value](), dict[ir.Value, Array]()
    halves = any(v.dtype == ir.DataType.BFLOAT16 for v in graph.initializers.values())  # probed as float32
    for node in graph:
        if node.domain or len(node.outputs) != 1:
            continue
        out, inputs = node.outputs[0], [v for v in node.inputs if v is not None]
        constant = [v in fixed or v.const_value is not None for v in inputs]
        chosen = node.op_type == "Where" and constant[0]  # which entries are whose never changes
        sized = node.op_type in _SIZED or (
            (node.op_type in _ARITHMETIC or chosen)
            and all(c or v in sizes for c, v in zip(constant, inputs, strict=True))
        )
        if not sized and not (node.op_type in _PLAIN and all(constant)):
            continue
        values = facts.values(out)
        if values is None or origin(out) is not None:
            continue
        if sized and all(v.dtype.kind in "iu" for v in values) and _even(node, facts):
            sizes.add(out)
        same = all(v.shape == values[0].shape and (v == values[0]).all() for v in values)
        if same and (out in sizes or all(constant)) and not (halves and values[0].dtype.kind == "f"):
            fixed[out] = values[0]
    return sizes, fixed


def _even(node: ir.Node, facts: Facts) -> bool:
    """A division of integers without a remainder, in all probes; every other operator."""
    if node.op_type != "Div":
        return True
    sides = [_values(v, facts) for v in node.inputs if v is not None]
    return all(sides) and all(b.all() and not (a % b).any() for a, b in zip(*sides, strict=True))


def _values(value: ir.Value, facts: Facts) -> list[Array]:
    if value.const_value is not None:
        return [np.asarray(value.const_value.numpy())] * len(facts.shapes)
    return facts.values(value) or []
