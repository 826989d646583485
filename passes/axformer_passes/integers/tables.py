"""Tables of embeddings in 8 or 4 bits: half of a small model's bytes are in them.

8   y = Gather(table[V, D], ids)   ->   Cast(Gather(integers[V, D], ids)) * Gather(scale[V, 1], ids)
4   the same, a scale a block of 32 columns, and two numbers a byte: byte[V, N, 16] = (left of the block + 8) + 16 * (right + 8)

Standard operators alone, so that every runtime takes either.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import constant, fresh, initializer, origin
from axformer_passes.integers.rounding import BLOCK, Array, rounded_table

LEAST = 2**16
"""Numbers of a table: a smaller one is not worth the operators."""
BYTES_OF_TABLES = {0: 4.0, 8: 1.0, 4: 0.5 + 4.0 / BLOCK}
"""Of a number, by bits, scales counted where there are many; 0: in float32."""
_HALF = 8
"""What is added to a number of 4 bits, so that it is none below zero."""


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


def table_bits(table: Array, wanted: int) -> int:
    """8 where its columns make no whole blocks."""
    return wanted if table.shape[1] % BLOCK == 0 else 8


def quantise_tables(model: ir.Model, bits: int) -> None:
    """Edit `model` in place."""
    graph = model.graph
    for table in tables_of(graph):
        array = constant(table)
        assert array is not None
        own = table_bits(array, bits)
        rows, scale = rounded_table(array, own)
        integers = initializer(graph, f"{table.name}_integers", rows if own == 8 else _packed(rows))
        scales = initializer(graph, f"{table.name}_scale", scale if own == 8 else scale[:, :, None])
        for use in list(table.uses()):
            _gather(graph, use.node, integers, scales)


def _packed(rows: Array) -> Array:
    """uint8[V, N, BLOCK / 2] of numbers of 4 bits, int8[V, D]."""
    left, right = np.split((rows + _HALF).astype(np.uint8).reshape(len(rows), -1, BLOCK), 2, axis=2)
    return left + 16 * right


def _gather(graph: ir.Graph, node: ir.Node, integers: ir.Value, scales: ir.Value) -> None:
    last, name, new, ids = node.outputs[0], str(node.outputs[0].name), list[ir.Node](), node.inputs[1]

    def put(operator: str, inputs: list[ir.Value | None], part: str, **attributes: int) -> ir.Value:
        value = ir.Value(name=fresh(graph, f"{name}_{part}"))
        new.append(ir.node(operator, inputs, attributes, outputs=[value], name=value.name))
        return value

    found = put("Gather", [integers, ids], "integers", axis=0)
    scale = put("Gather", [scales, ids], "scale", axis=0)
    number = put("Cast", [found], "float", to=int(ir.DataType.FLOAT))
    if _is_packed(integers):
        sixteen = initializer(graph, f"{name}_sixteen", np.array(16, np.float32))
        right = put("Floor", [put("Div", [number, sixteen], "sixteenth")], "right")
        left = put("Sub", [number, put("Mul", [right, sixteen], "sixteens")], "left")
        half = initializer(graph, f"{name}_half", np.array(_HALF, np.float32))
        number = put("Sub", [put("Concat", [left, right], "both", axis=-1), half], "number")
    result = put("Mul", [number, scale], "scaled")
    if _is_packed(integers):
        width = initializer(graph, f"{name}_width", np.array([-1]))
        sizes = put("Concat", [put("Shape", [ids], "sizes"), width], "shape", axis=0)
        result = put("Reshape", [result, sizes], "row")
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(last, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name, last.name = name, None
    result.shape, result.type = last.shape, last.type


def _is_packed(integers: ir.Value) -> bool:
    return integers.const_value is not None and integers.const_value.dtype == ir.DataType.UINT8


__all__ = ["BYTES_OF_TABLES", "quantise_tables", "table_bits", "tables_of"]
