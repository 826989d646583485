"""What may be stated of an operator, and the registry where it is: the state that its rules see, one record an operator.

Takes what the files of `axformer_passes.operators` state; whoever walks a graph asks it, and imports those files' room.
"""

from __future__ import annotations

from axformer_passes.registry.additive import Shifting, Stuck, least
from axformer_passes.registry.classes import Classes, IntArray, distinct, labels_in
from axformer_passes.registry.cut_edits import Cutting, follow_all, follow_beside
from axformer_passes.registry.number_moves import AffineRule, Array, FloatArray, Moving
from axformer_passes.registry.record import (
    OPERATORS,
    Operator,
    affine,
    channels,
    cost,
    cut_edit,
    moves,
    raises,
    record_of,
    record_of_proto,
    row_shifts,
    scales,
    shifts,
    tokens,
    unrounded,
)
from axformer_passes.registry.scaling import Edit, Scaling
from axformer_passes.registry.token_rows import Probes, Shapes, Stop, TokenRows, aligned, probes_of
from axformer_passes.registry.unrounding import Unrounding
from axformer_passes.registry.walk import Carrier, Product, Walk, any_along

__all__ = [
    "OPERATORS",
    "AffineRule",
    "Array",
    "Carrier",
    "Classes",
    "Cutting",
    "Edit",
    "FloatArray",
    "IntArray",
    "Moving",
    "Operator",
    "Probes",
    "Product",
    "Scaling",
    "Shapes",
    "Shifting",
    "Stop",
    "Stuck",
    "TokenRows",
    "Unrounding",
    "Walk",
    "affine",
    "aligned",
    "any_along",
    "channels",
    "cost",
    "cut_edit",
    "distinct",
    "follow_all",
    "follow_beside",
    "labels_in",
    "least",
    "moves",
    "probes_of",
    "raises",
    "record_of",
    "record_of_proto",
    "row_shifts",
    "scales",
    "shifts",
    "tokens",
    "unrounded",
]
