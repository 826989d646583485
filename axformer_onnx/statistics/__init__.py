"""Metrics and paired comparisons of arrays: no models, no tasks.

Takes labels and answers of one or two models on the same rows and gives points, intervals and p-values.
"""

from __future__ import annotations

from axformer_onnx.statistics.metrics import class_metric, confusion, number_metric, set_counts, set_metric
from axformer_onnx.statistics.paired import (
    CountsMetric,
    McNemar,
    bootstrap_classes,
    bootstrap_mean,
    bootstrap_numbers,
    bootstrap_sums,
    mcnemar_exact,
    studentised_mean,
)
from axformer_onnx.statistics.paired_proportions import paired_shares
from axformer_onnx.statistics.paired_times import averaged, paired_ratio, ratio_interval
from axformer_onnx.statistics.proportion import exact_proportion, most_unseen
from axformer_onnx.statistics.temperature import best_mixture, best_temperature, recalibrated_losses

__all__ = [
    "CountsMetric",
    "McNemar",
    "averaged",
    "best_mixture",
    "best_temperature",
    "bootstrap_classes",
    "bootstrap_mean",
    "bootstrap_numbers",
    "bootstrap_sums",
    "class_metric",
    "confusion",
    "exact_proportion",
    "mcnemar_exact",
    "most_unseen",
    "number_metric",
    "paired_ratio",
    "paired_shares",
    "ratio_interval",
    "recalibrated_losses",
    "set_counts",
    "set_metric",
    "studentised_mean",
]
