"""Metrics and paired comparisons of arrays: no models, no tasks.

Takes labels and answers of one or two models on the same rows and gives points, intervals and p-values.
"""

from __future__ import annotations

from axformer_onnx.statistics.metrics import class_metric, confusion, number_metric
from axformer_onnx.statistics.paired import (
    McNemar,
    bootstrap_classes,
    bootstrap_numbers,
    mcnemar_exact,
    ratio_of_medians,
)

__all__ = [
    "McNemar",
    "bootstrap_classes",
    "bootstrap_numbers",
    "class_metric",
    "confusion",
    "mcnemar_exact",
    "number_metric",
    "ratio_of_medians",
]
