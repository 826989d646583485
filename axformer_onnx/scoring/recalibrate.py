"""Losses after recalibration by one temperature: how much a model knows, whatever its confidence.

    loss(plan) = cross-entropy of softmax(b x logits),  b = argmin over b > 0 of its mean on the same rows

A fine-tuned classifier is often overconfident, and every part that is taken away makes it less so. Its cross-entropy
then falls although it answers no better: on the CoLA model of the examples the search loss fell by 0.14 nats of 0.69
with the first two blocks, which left room for forty more removals that cost 8 points of MCC. Temperature (Guo et al.,
"On Calibration of Modern Neural Networks", arXiv 1706.04599) has one degree of freedom and changes no answer;
with it, the same first block shows what it costs. Where answers have no confidence (`Kind.recalibrates`) losses stay as they are.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy.typing as npt

from axformer_onnx.records import FloatArray, PlanScorer, Scores
from axformer_onnx.tasks import Kind, LabelMap
from axformer_passes.plan import Plan


class OutputScorer(PlanScorer, Protocol):
    """A PlanScorer that can also show the outputs behind its losses; `StageScorer` is one."""

    def scores(self, plan: Plan) -> Scores:
        """All scores under `plan`."""


class Recalibrated:
    """A PlanScorer over another one: the same metric, losses at the plan's own best temperature."""

    def __init__(self, scorer: OutputScorer, labels: npt.NDArray[Any], label_map: LabelMap, kind: Kind) -> None:
        self._scorer, self._labels, self._label_map, self._kind = scorer, labels, label_map, kind

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._scorer.rows

    def losses(self, plan: Plan) -> FloatArray:
        """float64[rows]: loss of each row at the temperature that is best for all rows under `plan`."""
        return self._kind.recalibrated_losses(self._scorer.scores(plan).outputs, self._truth, self._label_map)

    @cached_property
    def _truth(self) -> npt.NDArray[Any]:
        """What answers are held against; the source runs for it only where it is not the labels."""
        if not self._kind.needs_source:
            return self._labels
        return self._kind.truth(self._labels, self._scorer.scores(Plan()).outputs, self._label_map)

    def metric(self, plan: Plan) -> float:
        """The task's main metric, in points; a temperature does not change it."""
        return self._scorer.metric(plan)

    def metric_noise(self, plan: Plan, base: Plan) -> float:
        """Standard error, in points, of metric(plan) - metric(base)."""
        return self._scorer.metric_noise(plan, base)
