"""The model that computes in float32 what integer products will: inputs rounded as they will be, weights on their grid.

    y = x @ weight                     ->   DynamicQuantizeLinear(x) -> DequantizeLinear -> @ nearest(weight)
    the same, where steps are static   ->   QuantizeLinear(x) -> DequantizeLinear -> @ nearest(weight)
    a table                            ->   what its rows are rounded to
    a weight that is only stored so    ->   nearest(weight)

Its heads, neurons and blocks are called and recognised as before, and its weights are floats: so a search, a refit and gates work
on it as on any model, and see every rounding. It is never an answer: `products` and `tables` make the integers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.blocks import BlockKind, kind_of, projection_at
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import Cleanup, anchor, constant, find, fresh, initializer
from axformer_passes.integers.products import Rounding, known_step, written_plainly, zero_point
from axformer_passes.integers.ranges import projections_of, shifts_at
from axformer_passes.integers.rounding import nearest, nearest_table, scaled_down
from axformer_passes.integers.smoothing import by_activation
from axformer_passes.integers.storage import stored_weights
from axformer_passes.integers.tables import table_bits, tables_of
from axformer_passes.precision import Int8
from axformer_passes.probe import Runner
from axformer_passes.recognise import Examined, examine

Rounded = dict[object, ir.Value]
"""What activations are rounded to, by them and `Rounding.key`."""


def simulated(model: ir.Model, int8: Int8, runner: Runner, *, examined: Examined | None = None) -> ir.Model:
    """A new model; what cannot be written as integers stays as it is. `examined` as in `apply_plan`."""
    examined = examined.cloned() if examined else examine(model, runner)
    work, rounded = examined.labelling.model, Rounded()
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            kind = kind_of(block)
            if int8.has(layer.index, kind):
                for output, name in {linear.output: name for name, linear in projections_of(block)}.items():
                    _round_product(examined, output, int8, (layer.index, kind, name), rounded)
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
    examined: Examined, output: str, int8: Int8, where: tuple[int, BlockKind, str], rounded: Rounded
) -> None:
    graph, (layer, kind, name) = examined.labelling.model.graph, where
    node = find(graph, output).producer()
    if node is None or not written_plainly(node):
        return
    try:
        place = projection_at(examined, output, output, ())
    except RecogniseError:
        return
    shifts = shifts_at(examined, int8, where, place)
    _put(place.weight, place.laid_out(nearest(place.weight_matrix(), int8.bits, shifts)))
    value = node.inputs[0]
    assert value is not None
    rounding = Rounding(None if shifts is None else by_activation(place, shifts), int8.scale_of(layer, kind, name))
    key = value, rounding.key
    if key not in rounded:
        rounded[key] = _rounded(graph, value, node, rounding, int8)
    node.replace_input_with(0, rounded[key])


def _rounded(graph: ir.Graph, value: ir.Value, before: ir.Node, rounding: Rounding, int8: Int8) -> ir.Value:
    """`value` as the runtime will round it, made before the first node that reads it."""
    names = [fresh(graph, f"{value.name}_{part}") for part in ("integers", "scale", "zero", "rounded")]
    outputs, shifts = [ir.Value(name=name) for name in names], rounding.shifts
    new, given = list[ir.Node](), value
    if shifts is not None:
        given = _scaled(graph, value, scaled_down(shifts), "smooth", new)
    if int8.is_static:
        step = initializer(graph, f"{value.name}_step", known_step(rounding, anchor(before)))
        zero = initializer(graph, f"{value.name}_zero_point", zero_point(int8))
        new.append(ir.Node("", "QuantizeLinear", [given, step, zero], outputs=outputs[:1], name=names[0]))
        given_back: list[ir.Value | None] = [outputs[0], step, zero]
    else:
        new.append(ir.Node("", "DynamicQuantizeLinear", [given], outputs=outputs[:3], name=names[0]))
        given_back = [*outputs[:3]]
    new.append(ir.Node("", "DequantizeLinear", given_back, outputs=outputs[3:], name=names[3]))
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
