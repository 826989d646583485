"""What a run is given: options, the source model, rows and tokens by role."""

from __future__ import annotations

from axformer_onnx.inputs.given import Given, Source, open_source, read_rows, shared_weights
from axformer_onnx.inputs.goal import Goal
from axformer_onnx.inputs.options import MAX_SEARCH_ROWS, Backend, Level, OptimizeOptions
from axformer_onnx.inputs.refusals import NOTHING, Placed, left_whole, placed

__all__ = [
    "MAX_SEARCH_ROWS",
    "NOTHING",
    "Backend",
    "Given",
    "Goal",
    "Level",
    "OptimizeOptions",
    "Placed",
    "Source",
    "left_whole",
    "open_source",
    "placed",
    "read_rows",
    "shared_weights",
]
