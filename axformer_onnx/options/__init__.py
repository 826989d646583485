"""The options of every command as pydantic models: defaults, bounds, choices, help, and what contradicts what, stated once.

Both faces are made of them: the command line's options and `--help`, and the keyword arguments of `import axformer_onnx`. Nothing
heavy is imported here, so that help and mistakes are quick.
"""

from __future__ import annotations

from axformer_onnx.options.base import AnyOptions, Options, fields_of, flag, make, mark
from axformer_onnx.options.comparing import CompareOptions
from axformer_onnx.options.deploying import DeployOptions
from axformer_onnx.options.goal import Goal
from axformer_onnx.options.optimizing import MAX_SEARCH_ROWS, Backend, EffortLevel, OptimizeOptions, names_the_hub
from axformer_onnx.options.others import ApplyOptions, ExportOptions, InspectOptions, ReportOptions, ScoreOptions
from axformer_onnx.options.registry import Registry
from axformer_onnx.options.search_kinds import SEARCHES, SearchKind
from axformer_onnx.options.serving import ServeOptions
from axformer_onnx.options.spelling import in_python
from axformer_onnx.options.target_kinds import TARGETS, TargetKind

__all__ = [
    "MAX_SEARCH_ROWS",
    "SEARCHES",
    "TARGETS",
    "AnyOptions",
    "ApplyOptions",
    "Backend",
    "CompareOptions",
    "DeployOptions",
    "EffortLevel",
    "ExportOptions",
    "Goal",
    "InspectOptions",
    "OptimizeOptions",
    "Options",
    "Registry",
    "ReportOptions",
    "ScoreOptions",
    "SearchKind",
    "ServeOptions",
    "TargetKind",
    "fields_of",
    "flag",
    "in_python",
    "make",
    "mark",
    "names_the_hub",
]
