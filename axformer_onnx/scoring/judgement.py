"""How much worse is a graph, from a few hundred rows? Two estimates of the drop of a metric, and both together.

    measured   metric of the source - metric of the graph, on labelled rows. Only rows on which the answers differ tell
               anything, and each counts +1 or -1: 50 such rows of 1,000 make a standard error of 0.7 points
    expected   the same with the source's own recalibrated probabilities p(y | row) in place of the labels (one temperature,
               `statistics/temperature.py`), so that a changed answer counts what it is likely to cost. Its noise is far smaller;
               it is biased where the source is wrong about its own confidence, or the graph knows something that the source
               does not: mostly to the side of caution, since it is never below 0 for accuracy

    judged     a quarter of the one and three quarters of the other. These are the weights of inverse variances if the
               expected drop has a third of the measured one's noise (a changed answer costs about a third of a point, not
               one) and an error of half of it

The weights are a heuristic. They decide which operating point is the answer, never what a report says of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy.typing as npt

from axformer_onnx.records import Scores
from axformer_onnx.scoring.comparison import metric_noise
from axformer_onnx.tasks import LabelMap, Task

TRUST = 0.75
"""Weight of the expected drop."""


@dataclasses.dataclass(frozen=True)
class Drop:
    """In points of the task's metric. noise: standard error of `measured`; expected None: the task's kind has none."""

    measured: float
    noise: float
    expected: float | None = None


def judged_drop(drop: Drop) -> float:
    """In points; what was measured where nothing can be expected."""
    if drop.expected is None or drop.noise == 0:
        return drop.measured
    return (1 - TRUST) * drop.measured + TRUST * drop.expected


def judged_noise(drop: Drop) -> float:
    """Standard error of a judged drop."""
    return drop.noise if drop.expected is None else drop.noise / 2


def drop_of(source: Scores, found: Scores, labels: npt.NDArray[Any], task: Task, label_map: LabelMap) -> Drop:
    """The drop of `found` below the source, both on these rows."""
    measured = source.value - found.value
    labels = task.kind.truth(labels, source.outputs, label_map)
    noise = metric_noise(source, found, labels, task, label_map)
    expected = task.kind.expected_drop(source.outputs, found.outputs, labels, source.metric, label_map)
    return Drop(measured, noise, expected)


__all__ = ["Drop", "drop_of", "judged_drop", "judged_noise"]

ROUNDING = 1e-6
"""Nats of mean loss, and points of score: below this a difference is the order of float32 sums."""
