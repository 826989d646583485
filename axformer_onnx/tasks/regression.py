"""Regression: one number a row, the model's one output.

loss         squared error                        divergence   squared difference of the outputs
metrics      Pearson's and Spearman's correlation, and their mean
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import DataError, MissingLabels
from axformer_onnx.records import FloatArray
from axformer_onnx.tasks.agreement_metrics import FollowingMetric
from axformer_onnx.tasks.metrics import Answers, NumberMetric, register_metric
from axformer_onnx.tasks.protocol import WITHOUT_LABELS, Array, Kind, LabelColumn, LabelMap, Task, register

ALL = ("pearson_spearman", "pearson", "spearman")


class Regression(Kind):
    """See the module. Labels are float64[N]; NaN stands for none."""

    name = "regression"
    main_metric = "pearson_spearman"
    head_loss = "squared error"
    agreement = (
        FollowingMetric("agreement", "pearson_spearman"),
        *(FollowingMetric(n, n) for n in ("pearson", "spearman")),
    )

    def numbered(self, task: Task, sets: Sequence[LabelColumn]) -> tuple[list[Array], tuple[str, ...]]:
        """Numbers as they are."""
        return [
            np.full(len(one.places), np.nan) if one.labels is None else numbers_of(one, f"task {task.name}")
            for one in sets
        ], ()

    def match(self, task: Task, config: Mapping[str, Any] | None, columns: int | None) -> LabelMap:
        """The one output."""
        if columns not in (None, 1):
            raise DataError(f"task {task.name} is a regression, but the model has {columns} logits, expected 1")
        return LabelMap((0,), ("value",), "Regression: the model's one output is compared with the number.")

    def head_columns(self, task: Task) -> int:
        """One."""
        return 1

    def losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap, source: FloatArray | None) -> FloatArray:
        """Squared error."""
        return np.asarray((outputs[:, 0] - np.asarray(labels, dtype=np.float64)) ** 2)

    def divergence(self, source: FloatArray, found: FloatArray) -> FloatArray:
        """Squared difference."""
        return np.asarray(((found - source) ** 2).sum(axis=1))

    def answers(self, outputs: FloatArray, losses: FloatArray, labels: Array, label_map: LabelMap) -> Answers:
        """given: float64[N], the output."""
        return Answers(np.asarray(labels, dtype=np.float64), outputs[:, 0], losses)

    def in_words(self, outputs: FloatArray, label_map: LabelMap) -> list[str]:
        """The number."""
        return [f"{value:.3f}" for value in outputs[:, 0].tolist()]

    def reported(self, metric: str) -> tuple[str, ...]:
        """All three, the main one first."""
        return (metric, *(name for name in ALL if name != metric))


def numbers_of(one: LabelColumn, whose: str) -> npt.NDArray[np.float64]:
    """float64[N]. Raises: DataError naming the row for what is missing or no finite number."""
    values = one.labels or ()
    numbers = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        try:
            numbers[i] = math.nan if value is None or isinstance(value, bool) else float(value)
        except (OverflowError, ValueError):
            numbers[i] = math.nan
        if not math.isfinite(numbers[i]):
            place, expected = one.places[i], f"expected a number ({whose})"
            if value in (None, ""):
                raise MissingLabels(f"{place}: the label is missing, {expected}{WITHOUT_LABELS}")
            raise DataError(f"{place}: the label is {value!r:.60}, {expected}")
    return numbers


for _name in ALL:
    register_metric("regression", NumberMetric(_name))
REGRESSION = register(Regression())
