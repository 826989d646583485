"""How much worse is a graph, from a few hundred rows? Two estimates of the drop of a metric (docs/method.md 2.7).

    measured   metric of the source - metric of the graph, on labelled rows. Only rows on which the answers differ tell
               anything, and each counts +1 or -1: 50 such rows of 1,000 make a standard error of 0.7 points
    expected   the same with probabilities p(y | row) in place of the labels, so that a changed answer counts what it is likely to
               cost: those of a mixture of source and graph, fitted to the labels (`statistics/temperature.py`)

The second decides which operating point is the answer, never what a report says of it. Of many points the fastest that passes tends
to be a lucky one, so they are judged together (`together`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from axformer_onnx.records import Scores
from axformer_onnx.scoring.comparison import metric_noise
from axformer_onnx.tasks import LabelMap, Task

ROUNDING = 1e-6
"""Nats of mean loss, and points of score: below this a difference is the order of float32 sums."""
MARGIN, LEAST_MARGIN = 0.3, 0.1
"""Points of the metric; the second where no drop at all is allowed."""


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


def together(drops: Sequence[Drop], divergences: Sequence[float]) -> list[Drop]:
    """The drops of several graphs on the same rows, what is expected of each drawn half-way to a line through all of them.

    divergences   mean over the same rows, from the source's outputs

    What a graph is expected to lose grows with its divergence, which a few rows tell better; the line goes through 0, and through
    the sums of both (docs/method.md 2.7).
    """
    known = [(one.expected, far) for one, far in zip(drops, divergences, strict=True) if one.expected is not None]
    whole = sum(far for _, far in known)
    if whole <= 0:
        return list(drops)
    slope = max(sum(expected for expected, _ in known) / whole, 0.0)
    return [
        one if one.expected is None else dataclasses.replace(one, expected=(one.expected + slope * far) / 2)
        for one, far in zip(drops, divergences, strict=True)
    ]


def holds(drop: Drop, most: float) -> bool:
    """Is it at most so many points? Where the measured one is, too, the judged one may exceed it by its error, at most MARGIN, and
    at most by as much again as is allowed, but for LEAST_MARGIN."""
    margin = min(drop.judged_noise, MARGIN, max(most, LEAST_MARGIN)) if drop.measured <= most + ROUNDING else 0.0
    return drop.judged <= most + margin + ROUNDING


__all__ = ["Drop", "drop_of", "holds", "together"]
