"""A constant factor goes into the weights before it.

(x @ W + b) -> Reshape -> Transpose -> x 0.18          ->  x @ 0.18 W + 0.18 b -> Reshape -> Transpose
(q @ k) / 5.7                                          ->  the same, into the weights of q
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import constant, origin
from axformer_passes.operators import record_of
from axformer_passes.registry import Edit


def fold_scales(model: ir.Model) -> int:
    """Edit `model` in place; returns how many factors went."""
    graph = model.graph
    held = Counter(id(v.const_value) for v in graph.initializers.values())
    shared = frozenset(v for v in graph.initializers.values() if held[id(v.const_value)] > 1)
    count = 0
    for node in list(graph):
        found = _factor(node)
        if found is None or node.outputs[0].is_graph_output():
            continue
        value, factor = found
        edits = _Factor(factor, shared).value(value)
        if edits is None:
            continue
        for edit in edits:
            edit()
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)
        count += 1
    return count


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(what is scaled, by how much) of a Mul or Div by one number."""
    if node.domain or node.op_type not in ("Mul", "Div"):
        return None
    for slot in (1, 0) if node.op_type == "Mul" else (1,):
        number, value = constant(node.inputs[slot]), node.inputs[1 - slot]
        if number is None or number.size != 1 or number.dtype != np.float32 or value is None:
            continue
        if constant(value) is not None or (number.ndim and not _has_rank(value, number.ndim)):
            return None
        factor = float(number.reshape(())) if node.op_type == "Mul" else 1.0 / (float(number.reshape(())) or math.nan)
        return (value, factor) if math.isfinite(factor) and factor else None
    return None


def _has_rank(value: ir.Value, least: int) -> bool:
    """Is the value of so many axes that a factor of `least` axes of size 1 adds none?"""
    return least <= 1 or (value.shape is not None and len(value.shape) >= least)


class _Factor:
    """One factor on its way up (registry.Scaling); `shared`: whose tensor others hold, too."""

    def __init__(self, factor: float, shared: frozenset[ir.Value]) -> None:
        self._factor, self._shared = factor, shared

    def value(self, value: ir.Value | None) -> list[Edit] | None:
        """What makes `value` that many times as large, where nobody else reads it; None where it cannot be."""
        node = value.producer() if value is not None else None
        if value is None or node is None or len(value.uses()) != 1 or value.is_graph_output():
            return None
        record = record_of(node)
        if record.orderly:
            return self.value(node.inputs[0])
        return None if record.scales is None else record.scales(self, node)

    def weight(self, value: ir.Value | None) -> Edit | None:
        """Scale the float32 initializer behind `value`, if no other tensor shares its memory."""
        found = own(value, self._shared)
        if found is None:
            return None
        return lambda: put(found, np.asarray(found.const_value.numpy(), np.float64) * self._factor)  # type: ignore[union-attr]


def own(value: ir.Value | None, shared: frozenset[ir.Value]) -> ir.Value | None:
    """The float32 initializer behind `value` (and Transposes), if it is its alone; `shared`: whose tensor others hold, too."""
    found = origin(value)
    node = value.producer() if value is not None else None
    while node is not None:
        if node.op_type not in ("Transpose", "Identity"):
            return None
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if found is None or found.value.const_value is None or found.value.dtype != ir.DataType.FLOAT:
        return None
    one = found.value
    return one if one not in shared and len(one.uses()) == 1 and not one.is_graph_output() else None


def put(value: ir.Value, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    """Another tensor of the same type for an initializer."""
    made = ir.tensor(np.ascontiguousarray(array.astype(np.float32)), name=value.name)
    value.const_value, value.shape = made, ir.Shape(array.shape)


__all__ = ["fold_scales", "own", "put"]
