"""Carry out the "int8" of a plan on a graph that is cut already: products, tables and stored weights become integers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, FeedForwardBlock
from axformer_passes.blocks import kind_of, linears, projection_at
from axformer_passes.errors import PlanError, RecogniseError
from axformer_passes.integers.products import quantise_products
from axformer_passes.integers.smoothing import IntArray, by_activation, inner_shifts, input_shifts
from axformer_passes.integers.storage import store_weights
from axformer_passes.integers.tables import quantise_tables
from axformer_passes.plan import Plan
from axformer_passes.precision import Int8
from axformer_passes.prepare import isolate
from axformer_passes.recognise import Examined
from axformer_passes.stages import writable

LEAST_OPSET = 11
"""Of DynamicQuantizeLinear."""


def products_of(examined: Examined, plan: Plan, int8: Int8) -> dict[str, IntArray | None]:
    """What `plan` makes products of integers, before it is carried out: by the output of each projection the powers of two for the
    channels of what it will read then (`smoothing`), None for none."""
    found = dict[str, IntArray | None]()
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            if int8.has(layer.index, kind_of(block)):
                found |= _shifts(examined, plan, int8, layer.index, block)
    return found


def quantise(model: ir.Model, products: Mapping[str, IntArray | None], int8: Int8) -> None:
    """Edit `model`, which a plan was carried out on, in place; the caller cleans up. `products`: as `products_of`.

    Raises: PlanError where its operator set is too old.
    """
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise PlanError(f'"int8" needs operator set {LEAST_OPSET} or later, the model has {opset}; export it anew')
    isolate(model)
    quantise_products(model, products, int8.bits)
    if int8.tables:
        quantise_tables(model, int8.tables)
    if int8.stored:
        store_weights(model)


def _shifts(
    examined: Examined, plan: Plan, int8: Int8, layer: int, block: AttentionBlock | FeedForwardBlock
) -> dict[str, IntArray | None]:
    """By the output of each projection: the powers of two for the channels of what it reads once the plan is carried out."""
    kind, found = kind_of(block), dict[str, IntArray | None]()
    *inner, last = (linear.output for linear in linears(block))
    place = writable(examined, layer, kind)
    shifts = inner_shifts(int8, layer, kind, place) if place is not None else None
    if shifts is not None and place is not None:
        gone = [row for i in plan.neurons.get(layer, ()) for row in place.positions[i]]
        found[last] = np.delete(by_activation(place, shifts), place.order[gone])
    for output in (*inner, last):
        if output not in found:
            try:
                reads = projection_at(examined, output, output, ()) if output != last else None
            except RecogniseError:
                reads = None
            moved = input_shifts(int8, layer, kind, reads) if reads is not None else None
            found[output] = by_activation(reads, moved) if reads is not None and moved is not None else None
    return found


__all__ = ["products_of", "quantise"]
