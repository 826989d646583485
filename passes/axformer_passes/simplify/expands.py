"""An Expand that nobody needs, since what reads it broadcasts anyway.

scores[B,H,S,S] + Where(Expand(mask[B,1,1,S], [B,1,S,S]), 0, -inf)   ->   scores + Where(mask[B,1,1,S], 0, -inf)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.probe import Facts, Shape

_ELEMENTWISE = frozenset(
    {
        "Add",
        "And",
        "Cast",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "LessOrEqual",
        "Mul",
        "Neg",
        "Not",
    }
) | {"Or", "Sub", "Where", "Xor"}
Narrowed = dict[ir.Value, tuple[Shape, ...]]


def fold_expands(model: ir.Model, facts: Facts) -> int:
    """Edit `model` in place; returns how many went. What every probe confirms holds for all sizes (`facts.py`)."""
    count = 0
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "Expand" or node.domain or source is None or node.outputs[0].is_graph_output():
            continue
        narrowed = _narrowed(model.graph, node, facts)
        if narrowed is None:
            continue
        node.outputs[0].replace_all_uses_with(source)
        for value, shapes in narrowed.items():
            value.shape = None
            facts.put(value, shapes)
        count += 1
    return count


def _narrowed(graph: ir.Graph, expand: ir.Node, facts: Facts) -> Narrowed | None:
    """Shapes, by probe, of what is smaller without the Expand; None where somebody would see it."""
    small = _shapes(expand.inputs[0], facts, {})
    if small is None:
        return None
    found: Narrowed = {expand.outputs[0]: small}
    if small == _shapes(expand.outputs[0], facts, {}):
        return {}
    begun = False
    for node in graph:
        begun = begun or node is expand
        if not begun or node is expand or not any(v in found for v in node.inputs):
            continue
        if node.op_type == "Shape" and not node.domain:
            return None
        shapes = _without(node, facts, found)
        if shapes is None:
            return None
        if shapes != _shapes(node.outputs[0], facts, {}):
            found[node.outputs[0]] = shapes
    seen_inside = any(v.is_graph_output() or _read_inside(v, graph) for v in found)
    return None if seen_inside else {v: s for v, s in found.items() if v is not expand.outputs[0]}


def _read_inside(value: ir.Value, graph: ir.Graph) -> bool:
    return any(user.graph is not graph for user, _ in value.uses())


def _without(node: ir.Node, facts: Facts, found: Narrowed) -> tuple[Shape, ...] | None:
    """Shapes of an elementwise node's output, by probe."""
    if node.op_type not in _ELEMENTWISE or node.domain or len(node.outputs) != 1:
        return None
    inputs = [_shapes(v, facts, found) for v in node.inputs]
    if any(one is None for one in inputs):
        return None
    return tuple(tuple(np.broadcast_shapes(*one)) for one in zip(*inputs, strict=True))


def _shapes(value: ir.Value | None, facts: Facts, found: Narrowed) -> tuple[Shape, ...] | None:
    if value is None:
        return None
    shapes = found.get(value) or facts.all_shapes(value)
    return None if any(one is None for one in shapes) else shapes  # type: ignore[return-value]


__all__ = ["fold_expands"]
