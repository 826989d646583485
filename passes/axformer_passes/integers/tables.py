"""Tables of embeddings in 8 bits, a scale a row: half of a small model's bytes are in them.

y = Gather(table[V, D], ids)   ->   Cast(Gather(integers[V, D], ids)) * Gather(scale[V, 1], ids)
"""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.graph import constant, fresh, initializer, origin
from axformer_passes.integers.rounding import TABLE_BITS, rounded_columns

LEAST = 2**16
"""Numbers of a table: a smaller one is not worth the operators."""


def tables_of(graph: ir.Graph) -> list[ir.Value]:
    """Initializers float32[V, D] that Gathers alone read, row by row, by ids that are computed."""
    return [value for value in graph.initializers.values() if _is_table(value)]


def _is_table(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or tensor.size < LEAST:
        return False
    uses = list(value.uses())
    return bool(uses) and not value.is_graph_output() and all(
        use.node.op_type == "Gather"
        and use.node.domain in ("", "ai.onnx")
        and use.idx == 0
        and use.node.attributes.get_int("axis", 0) in (0, -2)
        and origin(use.node.inputs[1]) is None
        for use in uses
    )  # fmt: skip


def quantise_tables(model: ir.Model) -> list[str]:
    """Edit `model` in place; returns the names of the tables."""
    graph, done = model.graph, list[str]()
    for table in tables_of(graph):
        array = constant(table)
        assert array is not None
        rows, scale = rounded_columns(array.T, TABLE_BITS)
        integers = initializer(graph, f"{table.name}_integers", rows.T)
        scales = initializer(graph, f"{table.name}_scale", scale.reshape(-1, 1))
        for use in list(table.uses()):
            _gather(graph, use.node, integers, scales)
        done.append(str(table.name))
    return done


def _gather(graph: ir.Graph, node: ir.Node, integers: ir.Value, scales: ir.Value) -> None:
    ids, last = node.inputs[1], node.outputs[0]
    name = str(last.name)
    values = [ir.Value(name=fresh(graph, f"{name}_{part}")) for part in ("integers", "scale", "float", "scaled")]
    new = [
        ir.node("Gather", [integers, ids], {"axis": 0}, outputs=[values[0]], name=values[0].name),
        ir.node("Gather", [scales, ids], {"axis": 0}, outputs=[values[1]], name=values[1].name),
        ir.node("Cast", [values[0]], {"to": int(ir.DataType.FLOAT)}, outputs=[values[2]], name=values[2].name),
        ir.node("Mul", [values[2], values[1]], outputs=[values[3]], name=values[3].name),
    ]
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(last, values[3], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    values[3].name, last.name = name, None
    values[3].shape, values[3].type = last.shape, last.type


__all__ = ["quantise_tables", "tables_of"]
