"""Numbers of few bits: products and tables of integers in standard operators, and the float32 model that computes the same.

`quantise` writes the integers into a graph that a plan was carried out on; `simulated` is what searches, refits and gates work
on; `nearest` is what a matrix becomes in both.
"""

from __future__ import annotations

from axformer_passes.integers.ranges import projections_of, with_steps
from axformer_passes.integers.rounding import nearest, rounded_columns
from axformer_passes.integers.simulation import simulated
from axformer_passes.integers.smoothing import Reach, inner_shifts, input_shifts, read_by_products, smoothed
from axformer_passes.integers.storage import stored_weights
from axformer_passes.integers.tables import BYTES_OF_TABLES, tables_of
from axformer_passes.integers.writing import least_opset, products_of, quantise

__all__ = [
    "BYTES_OF_TABLES",
    "Reach",
    "inner_shifts",
    "input_shifts",
    "least_opset",
    "nearest",
    "products_of",
    "projections_of",
    "quantise",
    "read_by_products",
    "rounded_columns",
    "simulated",
    "smoothed",
    "stored_weights",
    "tables_of",
    "with_steps",
]
