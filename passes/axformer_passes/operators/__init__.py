"""What each operator does to channels: one rule a kind of operator, registered by name.

A walk carries label arrays through a graph and asks the table; the rules import the walk, and whoever drives it imports the rules.
"""

from __future__ import annotations

from axformer_passes.operators import contraction, einsum, elementwise, movement, normalisation, quantised, rotary  # noqa: F401  (their rules enter the table)
from axformer_passes.operators.channels import RULES, Carrier, Product, Walk
from axformer_passes.operators.classes import IntArray, distinct, labels_in
from axformer_passes.operators.contraction import BEARERS, FOLLOWING, OPERANDS, data_side, operands
from axformer_passes.operators.einsum import letters_of, spread_rows, summed_width
from axformer_passes.operators.elementwise import NARY, UNARY
from axformer_passes.operators.normalisation import NORMS, REDUCTIONS, softmax_axes
from axformer_passes.operators.quantised import INTEGER_PRODUCTS, LINEAR, rescaled, unquantised

__all__ = [
    "BEARERS",
    "FOLLOWING",
    "INTEGER_PRODUCTS",
    "LINEAR",
    "NARY",
    "NORMS",
    "OPERANDS",
    "REDUCTIONS",
    "RULES",
    "UNARY",
    "Carrier",
    "IntArray",
    "Product",
    "Walk",
    "data_side",
    "distinct",
    "labels_in",
    "letters_of",
    "operands",
    "rescaled",
    "softmax_axes",
    "spread_rows",
    "summed_width",
    "unquantised",
]
