"""A model on rows of a task: outputs, losses, metrics, stage by stage or whole, alone or against another.

Takes sessions and encoded rows; gives `Scores` and comparisons of them.
"""

from __future__ import annotations

from axformer_onnx.scoring.activation_reach import outliers, static_steps
from axformer_onnx.scoring.comparison import Comparison, compare, paired_answers
from axformer_onnx.scoring.evaluation import (
    Machine,
    Reading,
    default_shapes,
    latency_of,
    latency_warnings,
    placement_of,
    provider_warnings,
    reading_of,
    score_file,
    score_warnings,
    truncation_notes,
)
from axformer_onnx.scoring.half_fit import half_for
from axformer_onnx.scoring.judgement import ROUNDING, Drop, drop_of, holds, together
from axformer_onnx.scoring.outputs import score_session
from axformer_onnx.scoring.padding_gain import SIZES as PADDING_SIZES
from axformer_onnx.scoring.padding_gain import PaddingGain, padding_gains
from axformer_onnx.scoring.plan_clock import PlanClock, PlanTimes
from axformer_onnx.scoring.recalibrate import Recalibrated
from axformer_onnx.scoring.stage_scorer import StageScorer
from axformer_onnx.scoring.stage_sessions import BATCH_SIZE, BATCH_TOKENS, Setting, StageSessions

__all__ = [
    "BATCH_SIZE",
    "BATCH_TOKENS",
    "PADDING_SIZES",
    "ROUNDING",
    "Comparison",
    "Drop",
    "Machine",
    "PaddingGain",
    "PlanClock",
    "PlanTimes",
    "Reading",
    "Recalibrated",
    "Setting",
    "StageScorer",
    "StageSessions",
    "compare",
    "default_shapes",
    "drop_of",
    "half_for",
    "holds",
    "latency_of",
    "latency_warnings",
    "outliers",
    "padding_gains",
    "paired_answers",
    "placement_of",
    "provider_warnings",
    "reading_of",
    "score_file",
    "score_session",
    "score_warnings",
    "static_steps",
    "together",
    "truncation_notes",
]
