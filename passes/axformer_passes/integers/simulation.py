"""The model that computes in float32 what integer products will: inputs rounded as they will be, weights on their grid.

    y = x @ weight                     ->   DynamicQuantizeLinear(x) -> DequantizeLinear -> @ nearest(weight)
    a table                            ->   what its rows are rounded to
    a weight that is only stored so    ->   nearest(weight)

Its heads, neurons and blocks are called and recognised as before, and its weights are floats: so a search, a refit and gates work
on it as on any model, and see every rounding. It is never an answer: `products` and `tables` make the integers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.blocks import kind_of, linears, projection_at
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import Cleanup, constant, find, fresh
from axformer_passes.integers.products import written_plainly
from axformer_passes.integers.rounding import nearest, nearest_table
from axformer_passes.integers.storage import stored_weights
from axformer_passes.integers.tables import table_bits, tables_of
from axformer_passes.precision import Int8
from axformer_passes.probe import Runner
from axformer_passes.recognise import Examined, examine


def simulated(model: ir.Model, int8: Int8, runner: Runner, *, examined: Examined | None = None) -> ir.Model:
    """A new model; what cannot be written as integers stays as it is. `examined` as in `apply_plan`."""
    examined = examined.cloned() if examined else examine(model, runner)
    work, rounded = examined.labelling.model, dict[ir.Value, ir.Value]()
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            if int8.has(layer.index, kind_of(block)):
                for output in dict.fromkeys(linear.output for linear in linears(block)):
                    _round_product(examined, output, int8.bits, rounded)
    for value in tables_of(work.graph) if int8.tables else ():
        array = constant(value)
        assert array is not None
        _put(value, nearest_table(array, table_bits(array, int8.tables)))
    if int8.stored:
        for stored in stored_weights(work.graph):
            _put(stored.value, stored.nearest())
    Cleanup()(work)
    return work


def _round_product(examined: Examined, output: str, bits: int, rounded: dict[ir.Value, ir.Value]) -> None:
    graph = examined.labelling.model.graph
    node = find(graph, output).producer()
    if node is None or not written_plainly(node):
        return
    try:
        place = projection_at(examined, output, output, ())
    except RecogniseError:
        return
    _put(place.weight, place.laid_out(nearest(place.weight_matrix(), bits)))
    value = node.inputs[0]
    assert value is not None
    if value not in rounded:
        rounded[value] = _rounded(graph, value, node)
    node.replace_input_with(0, rounded[value])


def _rounded(graph: ir.Graph, value: ir.Value, before: ir.Node) -> ir.Value:
    """`value` as the runtime will round it, made before the first node that reads it."""
    names = [fresh(graph, f"{value.name}_{part}") for part in ("integers", "scale", "zero", "rounded")]
    outputs = [ir.Value(name=name) for name in names]
    dynamic = ir.Node("", "DynamicQuantizeLinear", [value], outputs=outputs[:3], name=names[0])
    back = ir.Node("", "DequantizeLinear", outputs[:3], outputs=outputs[3:], name=names[3])
    graph.insert_before(before, [dynamic, back])
    return outputs[3]


def _put(value: ir.Value, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array.astype(np.float32)), name=value.name)


__all__ = ["simulated"]
