"""Two models on the same rows: difference of the metric, its interval, and a verdict (docs/method.md 4)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy.typing as npt

from axformer_onnx.records import Interval, Scores
from axformer_onnx.scoring.outputs import guesses_of
from axformer_onnx.statistics import McNemar, bootstrap_classes, bootstrap_numbers, mcnemar_exact
from axformer_onnx.tasks import LabelMap, Task

Outcome = Literal["better", "worse", "no significant difference"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Model b against model a on the same rows.

    metric      the task's main metric; `value_a` and `value_b` in points
    difference  b - a in points, with its bootstrap interval
    mcnemar     where the main metric is accuracy, else None
    outcome     of b; decided by McNemar's p < 0.05 for accuracy, else by whether the interval leaves out 0
    verdict     the same as a sentence with the numbers
    """

    metric: str
    value_a: float
    value_b: float
    difference: Interval
    mcnemar: McNemar | None
    outcome: Outcome
    verdict: str


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
    mcnemar = None
    if task.regression:
        outputs = scores_a.outputs[:, 0], scores_b.outputs[:, 0]
        difference = bootstrap_numbers(task.metric, labels, *outputs, seed=seed)
    else:
        a = guesses_of(scores_a.outputs, label_map)
        b = guesses_of(scores_b.outputs, label_map_b or label_map)
        difference = bootstrap_classes(task.metric, labels, a, b, len(label_map.order), seed=seed)
        if task.metric == "accuracy":
            mcnemar = mcnemar_exact(a == labels, b == labels)
    outcome = _outcome(difference, mcnemar)
    verdict = _sentence(task.metric, scores_a.value, scores_b.value, difference, mcnemar, outcome)
    return Comparison(task.metric, scores_a.value, scores_b.value, difference, mcnemar, outcome, verdict)


def metric_noise(
    scores_a: Scores, scores_b: Scores, labels: npt.NDArray[Any], task: Task, label_map: LabelMap, seed: int = 0
) -> float:
    """Standard error, in points, of the difference of the task's main metric on paired rows, by bootstrap (1,000 draws).

    Read off the central 68.27 % interval: one standard error to either side of a normal distribution.
    """
    draws, level = 1000, 0.6827
    if task.regression:
        a, b = scores_a.outputs[:, 0], scores_b.outputs[:, 0]
        found = bootstrap_numbers(task.metric, labels, a, b, draws=draws, seed=seed, level=level)
    else:
        guess_a, guess_b = guesses_of(scores_a.outputs, label_map), guesses_of(scores_b.outputs, label_map)
        classes = len(label_map.order)
        found = bootstrap_classes(task.metric, labels, guess_a, guess_b, classes, draws=draws, seed=seed, level=level)
    return (found.high - found.low) / 2


def _outcome(difference: Interval, mcnemar: McNemar | None) -> Outcome:
    if mcnemar is not None:
        clear = mcnemar.p_value < 1 - difference.level
    else:
        clear = difference.low > 0 or difference.high < 0
    if not clear:
        return "no significant difference"
    return "better" if difference.value > 0 else "worse"


def _sentence(metric: str, a: float, b: float, difference: Interval, mcnemar: McNemar | None, outcome: Outcome) -> str:
    test = f"; McNemar p = {mcnemar.p_value:.2g}" if mcnemar else ""
    start = outcome if outcome == "no significant difference" else f"significantly {outcome}"
    return (
        f"{start}: {metric} {a:.2f} -> {b:.2f}, {difference.value:+.2f} points "
        f"({100 * difference.level:.0f} % interval {difference.low:+.2f} to {difference.high:+.2f}{test})"
    )
