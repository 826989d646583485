"""Carry out the "int8" of a plan on a graph that is cut already: products, tables and stored weights become integers."""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.blocks import kind_of, linears
from axformer_passes.errors import PlanError
from axformer_passes.integers.products import quantise_products
from axformer_passes.integers.storage import store_weights
from axformer_passes.integers.tables import quantise_tables
from axformer_passes.precision import Int8
from axformer_passes.prepare import isolate
from axformer_passes.recognise import Examined

LEAST_OPSET = 11
"""Of DynamicQuantizeLinear."""


def quantise(model: ir.Model, examined: Examined, int8: Int8) -> None:
    """Edit `model`, which a plan was carried out on, in place; the caller cleans up. `examined`: of the model before the cut.

    Raises: PlanError where its operator set is too old.
    """
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise PlanError(f'"int8" needs operator set {LEAST_OPSET} or later, the model has {opset}; export it anew')
    wanted = {
        linear.output
        for layer in examined.anatomy.layers
        for block in layer.blocks
        if int8.has(layer.index, kind_of(block))
        for linear in linears(block)
    }
    isolate(model)
    quantise_products(model, wanted, int8.bits)
    if int8.tables:
        quantise_tables(model, int8.tables)
    if int8.stored:
        store_weights(model)


__all__ = ["quantise"]
