"""What a graph computes of sizes, where it is always the same.

Sqrt(Cast(Shape(q)[-1]))                      ->  the number
Reshape(x, Concat(Shape(x)[:2], [12, 32]))    ->  Reshape(x, [0, 0, 12, 32])       0: the size of x there
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import initializer
from axformer_passes.probe import Array, Facts, known


def fold_sizes(model: ir.Model, facts: Facts) -> int:
    """Edit `model` in place; returns how many tensors and targets became constants."""
    graph = model.graph
    sizes, fixed = known(graph, facts)
    count = 0
    for node in list(graph):
        for slot, value in enumerate(node.inputs):
            if value in fixed and node.outputs[0] not in fixed:
                node.replace_input_with(slot, initializer(graph, f"{value.name}_known", fixed[value]))
                count += 1
        if node.op_type == "Reshape" and not node.domain and node.inputs[1] in sizes:
            target = _target(node, facts)
            if target is not None:
                node.replace_input_with(1, initializer(graph, f"{node.outputs[0].name}_target", target))
                node.attributes.pop("allowzero", None)
                count += 1
    return count


def _target(node: ir.Node, facts: Facts) -> Array | None:
    """Constants, 0 where the size is that of the input on the same axis, and at most one -1; None where that does not do."""
    data, wanted = node.inputs[0], node.inputs[1]
    assert data is not None and wanted is not None
    targets, shapes = facts.values(wanted), facts.all_shapes(data)
    if targets is None or any(shape is None for shape in shapes):
        return None
    found = list[int]()
    for axis, entries in enumerate(zip(*(t.tolist() for t in targets), strict=True)):
        if len(set(entries)) == 1 and len(shapes) > 1:
            found.append(int(entries[0]))
        elif all(shape and shape[axis : axis + 1] == (n,) for shape, n in zip(shapes, entries, strict=True)):
            found.append(0)
        else:
            found.append(-1)
    return np.array(found, dtype=np.int64) if found.count(-1) <= 1 else None


__all__ = ["fold_sizes", "known"]
