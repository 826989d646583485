"""What is known of each operator, one file a kind: what it does to channels, and which tokens it needs.

A file registers its rules (`axformer_passes.registry`); whoever walks a graph imports this room and asks `record_of(node)`.
"""

from __future__ import annotations

from axformer_passes.operators import (  # noqa: F401  (their rules enter the registry)
    contraction,
    einsum,
    elementwise,
    normalisation,
    quantised,
    reshaping,
    rotary,
    selection,
    shapes,
)
from axformer_passes.operators.contraction import OPERANDS, data_side, float_matrix, operands
from axformer_passes.operators.einsum import letters_of, spread_rows, summed_width
from axformer_passes.operators.normalisation import NORMS, REDUCTIONS, adds_up, softmax_axes
from axformer_passes.operators.quantised import INTEGER_PRODUCTS, LINEAR, QUANTISE, SCALED, rescaled, unquantised
from axformer_passes.operators.reshaping import retargeted
from axformer_passes.registry import (
    OPERATORS,
    Carrier,
    IntArray,
    Operator,
    Probes,
    Product,
    Stop,
    TokenRows,
    Walk,
    distinct,
    labels_in,
    probes_of,
    record_of,
)

__all__ = [
    "INTEGER_PRODUCTS",
    "LINEAR",
    "NORMS",
    "OPERANDS",
    "OPERATORS",
    "QUANTISE",
    "REDUCTIONS",
    "SCALED",
    "Carrier",
    "IntArray",
    "Operator",
    "Probes",
    "Product",
    "Stop",
    "TokenRows",
    "Walk",
    "adds_up",
    "data_side",
    "distinct",
    "float_matrix",
    "labels_in",
    "letters_of",
    "operands",
    "probes_of",
    "record_of",
    "rescaled",
    "retargeted",
    "softmax_axes",
    "spread_rows",
    "summed_width",
    "unquantised",
]
