"""What each command does, without the terminal: optimize, apply, score, compare, inspect, report."""

from __future__ import annotations

from axformer_onnx.commands.comparison import CompareResult, compare
from axformer_onnx.commands.inspection import Inspection, inspect_model
from axformer_onnx.commands.optimization import optimize, run
from axformer_onnx.commands.pages import read_report, write_page
from axformer_onnx.commands.preview import Preview, preview
from axformer_onnx.commands.replay import apply
from axformer_onnx.commands.results import OperatingPoint, OptimizeResult, ScorePair
from axformer_onnx.commands.scores import ScoreResult, score

__all__ = [
    "CompareResult",
    "Inspection",
    "OperatingPoint",
    "OptimizeResult",
    "Preview",
    "ScorePair",
    "ScoreResult",
    "apply",
    "compare",
    "inspect_model",
    "optimize",
    "preview",
    "read_report",
    "run",
    "score",
    "write_page",
]
