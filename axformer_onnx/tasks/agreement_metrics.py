"""How many of the source's answers a model gives too: metrics whose labels are those answers (`agreement.py`), in points.

Of the two models that are compared, a is the source: its figure is 100, and only b's answers can have changed.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray, Interval
from axformer_onnx.statistics import bootstrap_mean, exact_proportion, most_unseen, number_metric
from axformer_onnx.tasks.metrics import DRAWS, Answers, Metric, NumberMetric


@dataclasses.dataclass(frozen=True)
class UnchangedMetric(Metric):
    """The part of the rows whose answer, as a whole, is the source's. `what`: what an answer is called, in the plural."""

    name: str
    what: str = "answers"
    interval = "exact interval of a share (Clopper-Pearson)"

    def value(self, answers: Answers) -> float:
        """The figure."""
        return 100 * float(1 - changed(answers).mean())

    def difference(self, a: Answers, b: Answers, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
        """The part that changed, with the exact interval of a share: where nothing changed there is nothing to draw from."""
        found = exact_proportion(int(changed(b).sum()), len(b.given), level)
        value, low, high = (0.0 - 100 * share for share in (found.value, found.high, found.low))
        return Interval(value, low, high, level)

    def bounds(self, a: Answers, b: Answers, *, error: float, seed: int = 0) -> Interval:
        """The same: it is exact where nothing changed, too."""
        return self.difference(a, b, seed=seed, level=1 - 2 * error)

    def words(self, a: Answers, b: Answers, difference: Interval) -> str:
        """For example "6 of 500 answers changed: 1.20 % [0.44, 2.59]", "0 of 500 answers changed: at most 0.60 % ..."."""
        count, rows, level = int(changed(b).sum()), len(b.given), difference.level
        share = f"{-difference.value:.2f} % [{-difference.high:.2f}, {-difference.low:.2f}]"
        if not count:
            share = f"at most {100 * most_unseen(rows, level):.2f} % with {100 * level:.0f} % confidence"
        return f"{count} of {rows} {self.what} changed: {share}"


@dataclasses.dataclass(frozen=True)
class DecisionsMetric(Metric):
    """The part of all single decisions, a label of a row each, that are the source's."""

    name: str

    def value(self, answers: Answers) -> float:
        """The figure."""
        return 100 * float(_same(answers).mean())

    def difference(self, a: Answers, b: Answers, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
        """By draws of rows, since the decisions of a row hang together."""
        changes = 100 * (_same(b) - _same(a))
        if np.ptp(changes) == 0:
            return Interval(float(changes[0]), float(changes[0]), float(changes[0]), level)
        return bootstrap_mean(changes, draws=draws, seed=seed, level=level)

    def worst(self, answers: Answers, rows: int) -> float:
        """All decisions of a row are wrong."""
        return self.value(answers) - 100 * rows / len(answers.given)


@dataclasses.dataclass(frozen=True)
class FollowingMetric(Metric):
    """How closely numbers follow the source's: correlation `of` both (pearson, spearman, pearson_spearman).

    Nothing correlates with a source that answers one number for all rows: then it is 100 for that number, and 0 for others.
    """

    name: str
    of: str

    def value(self, answers: Answers) -> float:
        """The figure."""
        if np.array_equal(answers.given, answers.labels):
            return 100.0
        if np.ptp(answers.labels) == 0:
            return 100.0 * bool(np.allclose(answers.given, answers.labels, rtol=1e-3, atol=1e-6))
        return number_metric(self.of, answers.labels, answers.given)

    def difference(self, a: Answers, b: Answers, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
        """By draws of rows."""
        if np.ptp(a.labels) == 0:
            change = self.value(b) - self.value(a)
            return Interval(change, change, change, level)
        return NumberMetric(self.of).difference(a, b, draws=draws, seed=seed, level=level)


def changed(answers: Answers) -> npt.NDArray[np.bool_]:
    """bool[N]: rows whose answer is not the source's."""
    return np.asarray((answers.given != answers.labels).reshape(len(answers.given), -1).any(axis=1))


def _same(answers: Answers) -> FloatArray:
    """float64[N]: the part of the decisions of each row that are the source's."""
    return np.asarray((answers.given == answers.labels).reshape(len(answers.given), -1).mean(axis=1))


__all__ = ["DecisionsMetric", "FollowingMetric", "UnchangedMetric", "changed"]
