"""Two models on the same rows: difference of the metric, its interval, and a verdict (docs/method.md 4)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy.typing as npt

from axformer_onnx.records import Interval, Scores
from axformer_onnx.statistics import McNemar
from axformer_onnx.tasks import Answers, LabelMap, Metric, Task, metric_named

Outcome = Literal["better", "worse", "no significant difference"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Model b against model a on the same rows.

    metric      the task's main metric; `value_a` and `value_b` in points
    difference  b - a in points, with its bootstrap interval
    mcnemar     where the main metric is accuracy, else None
    outcome     of b; decided by McNemar's p < 0.05 for accuracy, else by whether the interval leaves out 0
    verdict     the same as a sentence with the numbers
    words       the difference in the metric's own words, where it has any
    interval    what the interval of the difference is
    """

    metric: str
    value_a: float
    value_b: float
    difference: Interval
    mcnemar: McNemar | None
    outcome: Outcome
    verdict: str
    words: str | None = None
    interval: str = "interval of the paired bootstrap"


def compare(
    scores_a: Scores,
    scores_b: Scores,
    labels: npt.NDArray[Any],
    task: Task,
    label_map: LabelMap,
    seed: int = 0,
    label_map_b: LabelMap | None = None,
) -> Comparison:
    """Model b (the candidate) against model a (the source) on the rows of `labels`.

    label_map_b  where b's logits stand in another order than a's
    """
    metric, a, b = paired_answers(scores_a, scores_b, labels, task, label_map, label_map_b)
    difference, mcnemar = metric.difference(a, b, seed=seed), metric.exact_test(a, b)
    outcome = _outcome(difference, mcnemar)
    verdict = _sentence(metric, scores_a.value, scores_b.value, difference, mcnemar, outcome)
    words = metric.words(a, b, difference)
    return Comparison(
        metric.name, scores_a.value, scores_b.value, difference, mcnemar, outcome, verdict, words, metric.interval
    )


def paired_answers(
    scores_a: Scores,
    scores_b: Scores,
    labels: npt.NDArray[Any],
    task: Task,
    label_map: LabelMap,
    label_map_b: LabelMap | None = None,
) -> tuple[Metric, Answers, Answers]:
    """The task's main metric on these rows, and what both models answered."""
    kind = task.kind
    labels = kind.truth(labels, scores_a.outputs, label_map)
    a = kind.answers(scores_a.outputs, scores_a.loss_per_row, labels, label_map)
    b = kind.answers(scores_b.outputs, scores_b.loss_per_row, labels, label_map_b or label_map)
    return metric_named(kind.name, scores_a.metric), a, b


def metric_noise(
    scores_a: Scores, scores_b: Scores, labels: npt.NDArray[Any], task: Task, label_map: LabelMap, seed: int = 0
) -> float:
    """Standard error, in points, of the difference of the task's main metric on paired rows, by bootstrap (1,000 draws).

    labels   as `Kind.truth` gives them
    Read off the central 68.27 % interval: one standard error to either side of a normal distribution.
    """
    kind, metric = task.kind, metric_named(task.kind.name, scores_a.metric)
    both = [kind.answers(one.outputs, one.loss_per_row, labels, label_map) for one in (scores_a, scores_b)]
    found = metric.difference(*both, draws=1000, seed=seed, level=0.6827)
    return (found.high - found.low) / 2


def _outcome(difference: Interval, mcnemar: McNemar | None) -> Outcome:
    if mcnemar is not None:
        clear = mcnemar.p_value < 1 - difference.level
    else:
        clear = difference.low > 0 or difference.high < 0
    if not clear:
        return "no significant difference"
    return "better" if difference.value > 0 else "worse"


def _sentence(
    metric: Metric, a: float, b: float, difference: Interval, mcnemar: McNemar | None, outcome: Outcome
) -> str:
    test = f"; McNemar p = {mcnemar.p_value:.2g}" if mcnemar else ""
    start = outcome if outcome == "no significant difference" else f"significantly {outcome}"
    return (
        f"{start}: {metric.name} {a:.2f} -> {b:.2f}, {difference.value:+.2f} {metric.unit} "
        f"({100 * difference.level:.0f} % interval {difference.low:+.2f} to {difference.high:+.2f}{test})"
    )
