"""Carry out the "int8" of a plan on a graph that is cut already: products, tables and stored weights become integers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, FeedForwardBlock
from axformer_passes.blocks import kind_of
from axformer_passes.errors import PlanError
from axformer_passes.integers.products import Rounding, quantise_products
from axformer_passes.integers.ranges import projections_of, rounding_at
from axformer_passes.integers.smoothing import by_activation, inner_shifts
from axformer_passes.integers.storage import store_weights
from axformer_passes.integers.tables import quantise_tables
from axformer_passes.plan import Plan
from axformer_passes.precision import Int8
from axformer_passes.prepare import isolate
from axformer_passes.recognise import Examined
from axformer_passes.stages import writable

_DYNAMIC_OPSET, _STATIC_OPSET = 11, 13
"""Of DynamicQuantizeLinear; of DequantizeLinear by column."""


def least_opset(int8: Int8) -> int:
    """The oldest operator set that has what is written."""
    return _STATIC_OPSET if int8.is_static else _DYNAMIC_OPSET


def products_of(examined: Examined, plan: Plan, int8: Int8) -> dict[str, Rounding]:
    """What `plan` makes products of integers, before it is carried out: by the output of each projection how what it will read
    then is rounded."""
    found = dict[str, Rounding]()
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            if int8.has(layer.index, kind_of(block)):
                found |= _roundings(examined, plan, int8, layer.index, block)
    return found


def quantise(model: ir.Model, products: Mapping[str, Rounding], int8: Int8) -> None:
    """Edit `model`, which a plan was carried out on, in place; the caller cleans up. `products`: as `products_of`.

    Raises: PlanError where its operator set is too old, or the step of a static range is missing.
    """
    opset, least = model.opset_imports.get("", 0), least_opset(int8)
    if opset < least:
        raise PlanError(f'"int8" needs operator set {least} or later, the model has {opset}; export it anew')
    isolate(model)
    quantise_products(model, products, int8)
    if int8.tables:
        quantise_tables(model, int8.tables)
    if int8.stored:
        store_weights(model)


def _roundings(
    examined: Examined, plan: Plan, int8: Int8, layer: int, block: AttentionBlock | FeedForwardBlock
) -> dict[str, Rounding]:
    """By the output of each projection: how what it reads is rounded once the plan is carried out."""
    kind, found = kind_of(block), dict[str, Rounding]()
    *inner, (last, down) = projections_of(block)
    place = writable(examined, layer, kind)
    shifts = inner_shifts(int8, layer, kind, place) if place is not None else None
    if shifts is not None and place is not None:
        gone = [row for i in plan.neurons.get(layer, ()) for row in place.positions[i]]
        shifts = np.delete(by_activation(place, shifts), place.order[gone])
    for name, linear in inner:
        found[linear.output] = rounding_at(examined, int8, (layer, kind, name), linear)
    found[down.output] = Rounding(shifts, int8.scale_of(layer, kind, last))
    return found


__all__ = ["least_opset", "products_of", "quantise"]
