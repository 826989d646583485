"""How much worse is a graph, from a few hundred rows? Two estimates of the drop of a metric (docs/method.md 2.7).

    measured   metric of the source - metric of the graph, on labelled rows. Only rows on which the answers differ tell
               anything, and each counts +1 or -1: 50 such rows of 1,000 make a standard error of 0.7 points
    expected   the same with probabilities p(y | row) in place of the labels, so that a changed answer counts what it is likely to
               cost: those of a mixture of source and graph, fitted to the labels (`statistics/temperature.py`)

The second decides which operating point is the answer, never what a report says of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy.typing as npt

from axformer_onnx.records import Scores
from axformer_onnx.scoring.comparison import metric_noise
from axformer_onnx.tasks import LabelMap, Task


@dataclasses.dataclass(frozen=True)
class Drop:
    """In points of the task's metric. noise: standard error of `measured`; expected None: the task's kind has none."""

    measured: float
    noise: float
    expected: float | None = None

    @property
    def judged(self) -> float:
        """What decides: what was measured where nothing can be expected, or no answer differs."""
        return self.measured if self.expected is None or self.noise == 0 else self.expected

    @property
    def judged_noise(self) -> float:
        """Its standard error; of an expected drop a rough one: half of what counting has."""
        return self.noise if self.expected is None else self.noise / 2


def drop_of(source: Scores, found: Scores, labels: npt.NDArray[Any], task: Task, label_map: LabelMap) -> Drop:
    """The drop of `found` below the source, both on these rows."""
    measured = source.value - found.value
    labels = task.kind.truth(labels, source.outputs, label_map)
    noise = metric_noise(source, found, labels, task, label_map)
    expected = task.kind.expected_drop(source.outputs, found.outputs, labels, source.metric, label_map)
    return Drop(measured, noise, expected)


__all__ = ["Drop", "drop_of"]

ROUNDING = 1e-6
"""Nats of mean loss, and points of score: below this a difference is the order of float32 sums."""
