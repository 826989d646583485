"""The model that computes in float32 what integer products will: inputs rounded as they will be, weights on their grid.

    y = x @ weight                     ->   DynamicQuantizeLinear(x) -> DequantizeLinear -> @ nearest(weight)
    a table                            ->   what its rows are rounded to
    a weight that is only stored so    ->   nearest(weight)

Its heads, neurons and blocks are called and recognised as before, and its weights are floats: so a search, a refit and gates work
on it as on any model, and see every rounding. It is never an answer: `products` and `tables` make the integers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.blocks import BlockKind, kind_of, linears, projection_at
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import Cleanup, constant, find, fresh, initializer
from axformer_passes.integers.products import written_plainly
from axformer_passes.integers.rounding import nearest, nearest_table, scaled_down
from axformer_passes.integers.smoothing import IntArray, by_activation, inner_shifts, input_shifts
from axformer_passes.integers.storage import stored_weights
from axformer_passes.integers.tables import table_bits, tables_of
from axformer_passes.precision import Int8
from axformer_passes.probe import Runner
from axformer_passes.recognise import Examined, examine
from axformer_passes.stages import writable

Rounded = dict[tuple[ir.Value, tuple[int, ...]], ir.Value]
"""What activations are rounded to, by them and the powers of two that their channels are divided by."""


def simulated(model: ir.Model, int8: Int8, runner: Runner, *, examined: Examined | None = None) -> ir.Model:
    """A new model; what cannot be written as integers stays as it is. `examined` as in `apply_plan`."""
    examined = examined.cloned() if examined else examine(model, runner)
    work, rounded = examined.labelling.model, Rounded()
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            kind = kind_of(block)
            if int8.has(layer.index, kind):
                outputs = [linear.output for linear in linears(block)]
                for output in dict.fromkeys(outputs):
                    _round_product(examined, output, int8, layer.index, kind, output == outputs[-1], rounded)
    for value in tables_of(work.graph) if int8.tables else ():
        array = constant(value)
        assert array is not None
        _put(value, nearest_table(array, table_bits(array, int8.tables)))
    if int8.stored:
        for stored in stored_weights(work.graph):
            _put(stored.value, stored.nearest())
    Cleanup()(work)
    return work


def _round_product(
    examined: Examined, output: str, int8: Int8, layer: int, kind: BlockKind, is_last: bool, rounded: Rounded
) -> None:
    graph = examined.labelling.model.graph
    node = find(graph, output).producer()
    if node is None or not written_plainly(node):
        return
    try:
        place = projection_at(examined, output, output, ())
    except RecogniseError:
        return
    whole = writable(examined, layer, kind) if is_last else place
    shifts = None if whole is None else (inner_shifts if is_last else input_shifts)(int8, layer, kind, whole)
    _put(place.weight, place.laid_out(nearest(place.weight_matrix(), int8.bits, shifts)))
    value = node.inputs[0]
    assert value is not None
    moved = None if shifts is None else by_activation(place, shifts)
    key = value, () if moved is None else tuple(moved.tolist())
    if key not in rounded:
        rounded[key] = _rounded(graph, value, node, moved)
    node.replace_input_with(0, rounded[key])


def _rounded(graph: ir.Graph, value: ir.Value, before: ir.Node, shifts: IntArray | None) -> ir.Value:
    """`value` as the runtime will round it, made before the first node that reads it."""
    names = [fresh(graph, f"{value.name}_{part}") for part in ("integers", "scale", "zero", "rounded")]
    outputs = [ir.Value(name=name) for name in names]
    new, given = list[ir.Node](), value
    if shifts is not None:
        given = _scaled(graph, value, scaled_down(shifts), "smooth", new)
    new.append(ir.Node("", "DynamicQuantizeLinear", [given], outputs=outputs[:3], name=names[0]))
    new.append(ir.Node("", "DequantizeLinear", outputs[:3], outputs=outputs[3:], name=names[3]))
    result = outputs[3] if shifts is None else _scaled(graph, outputs[3], scaled_down(-shifts), "whole", new)
    graph.insert_before(before, new)
    return result


def _scaled(
    graph: ir.Graph, value: ir.Value, factor: npt.NDArray[np.float32], part: str, new: list[ir.Node]
) -> ir.Value:
    out = ir.Value(name=fresh(graph, f"{value.name}_{part}"))
    constant = initializer(graph, f"{out.name}_factor", factor)
    new.append(ir.Node("", "Mul", [value, constant], outputs=[out], name=out.name))
    return out


def _put(value: ir.Value, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array.astype(np.float32)), name=value.name)


__all__ = ["simulated"]
