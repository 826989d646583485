"""Losses after recalibration by one temperature: how much a model knows, whatever its confidence.

    loss(plan) = cross-entropy of softmax(b x logits),  b = argmin over b > 0 of its mean on the same rows

A fine-tuned classifier is often overconfident, and every part that is taken away makes it less so. Its cross-entropy
then falls although it answers no better: on the CoLA model of the examples the search loss fell by 0.14 nats of 0.69
with the first two blocks, which left room for forty more removals that cost 8 points of MCC. Temperature (Guo et al.,
"On Calibration of Modern Neural Networks", arXiv 1706.04599) has one degree of freedom and changes no answer;
with it, the same first block shows what it costs. Regression has no confidence: its losses stay as they are.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray, PlanScorer, Scores
from axformer_onnx.tasks import LabelMap
from axformer_passes.plan import Plan

_LOG_RANGE = (-6.0, 6.0)
"""Bounds of log b. At the lower one every answer is nearly uniform; the upper one serves models that say very little."""


class OutputScorer(PlanScorer, Protocol):
    """A PlanScorer that can also show the outputs behind its losses; `StageScorer` is one."""

    def scores(self, plan: Plan) -> Scores:
        """All scores under `plan`."""


class Recalibrated:
    """A PlanScorer over another one: the same metric, losses at the plan's own best temperature."""

    def __init__(self, scorer: OutputScorer, labels: npt.NDArray[Any], label_map: LabelMap) -> None:
        self._scorer, self._labels, self._order = scorer, labels, list(label_map.order)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._scorer.rows

    def losses(self, plan: Plan) -> FloatArray:
        """float64[rows]: cross-entropy of each row at the temperature that is best for all rows under `plan`."""
        return recalibrated_losses(self._scorer.scores(plan).outputs[:, self._order], self._labels)

    def metric(self, plan: Plan) -> float:
        """The task's main metric, in points; a temperature does not change it."""
        return self._scorer.metric(plan)

    def metric_noise(self, plan: Plan, base: Plan) -> float:
        """Standard error, in points, of metric(plan) - metric(base)."""
        return self._scorer.metric_noise(plan, base)


def recalibrated_losses(logits: FloatArray, labels: npt.NDArray[Any]) -> FloatArray:
    """float64[rows]: cross-entropy of logits[rows, classes], in the order of the labels, at the best temperature.

    The mean is convex in b, so a bounded one-dimensional search finds the minimum.
    """
    return _losses(logits, labels, best_temperature(logits, labels))


def best_temperature(logits: FloatArray, labels: npt.NDArray[Any]) -> float:
    """b, with which softmax(b x logits[rows, classes]) has the least cross-entropy."""
    from scipy.optimize import minimize_scalar

    def mean(log_b: float) -> float:
        return float(_losses(logits, labels, np.exp(log_b)).mean())

    return float(np.exp(minimize_scalar(mean, bounds=_LOG_RANGE, method="bounded").x))


def _losses(logits: FloatArray, labels: npt.NDArray[Any], b: float) -> FloatArray:
    from scipy.special import log_softmax

    return np.asarray(-log_softmax(b * logits, axis=1)[np.arange(len(labels)), labels])
