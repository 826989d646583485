"""What a run is given: options, the source model, rows and tokens by role."""

from __future__ import annotations

from axformer_onnx.inputs.given import Given, Source, open_source, read_rows, shared_weights, with_integers
from axformer_onnx.inputs.located import Located, left_beside, likely_tasks, locate, not_stated, stated_task
from axformer_onnx.inputs.refusals import NOTHING, Placed, left_whole, placed
from axformer_onnx.options import MAX_SEARCH_ROWS, Backend, Goal, OptimizeOptions

__all__ = [
    "MAX_SEARCH_ROWS",
    "NOTHING",
    "Backend",
    "Given",
    "Goal",
    "Located",
    "OptimizeOptions",
    "Placed",
    "Source",
    "left_beside",
    "left_whole",
    "likely_tasks",
    "locate",
    "not_stated",
    "open_source",
    "placed",
    "read_rows",
    "shared_weights",
    "stated_task",
    "with_integers",
]
