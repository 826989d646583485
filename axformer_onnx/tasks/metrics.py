"""Metrics as objects: a value on rows, and a paired difference of two models with its interval. One registration makes one known.

All are in points (x 100); larger is better.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import UsageError
from axformer_onnx.records import FloatArray, Interval
from axformer_onnx.statistics import (
    CountsMetric,
    McNemar,
    bootstrap_classes,
    bootstrap_mean,
    bootstrap_numbers,
    bootstrap_sums,
    confusion,
    mcnemar_exact,
    most_unseen,
    number_metric,
    paired_shares,
    set_counts,
    set_metric,
)

Array = npt.NDArray[Any]
DRAWS = 10_000
UNIT = "points"


@dataclasses.dataclass(frozen=True)
class Answers:
    """One model's answers beside the labels, as its task's kind states them for its metrics.

    labels   [N, ...]; given: [N, ...], what the model answered; losses: float64[N]
    classes  number of classes, where answers are classes
    """

    labels: Array
    given: Array
    losses: FloatArray
    classes: int = 0


class Metric(abc.ABC):
    """A figure of a model on rows, and whether another model's is better on the same rows.

    interval   what the interval of `difference` is, for reports
    """

    name: str
    unit: str = UNIT
    interval: str = "interval of the paired bootstrap"

    @abc.abstractmethod
    def value(self, answers: Answers) -> float:
        """The figure."""

    @abc.abstractmethod
    def difference(self, a: Answers, b: Answers, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
        """value(b) - value(a), with the percentile interval of the paired bootstrap."""

    def exact_test(self, a: Answers, b: Answers) -> McNemar | None:
        """The exact paired test that decides in the interval's place, or None."""
        return None

    def bounds(self, a: Answers, b: Answers, *, error: float, seed: int = 0) -> Interval:
        """value(b) - value(a), with one-sided bounds, each of which fails with a probability of about `error`.

        Those of the bootstrap, moved apart by what one row can change, for answers that change one by one leave too few draws in
        a tail. Where no answer differs there is nothing to draw from: as many rows as can differ unseen are taken for the worst.
        """
        found = self.difference(a, b, seed=seed, level=1 - 2 * error)
        unseen = 1 if found.low < found.high else math.ceil(len(b.labels) * most_unseen(len(b.labels), 1 - error))
        step = max(0.0, self.value(b) - self.worst(b, unseen))
        return dataclasses.replace(found, low=found.low - step, high=found.high + step)

    def worst(self, answers: Answers, rows: int) -> float:
        """The figure if so many right answers, the dearest ones, were wrong; the figure itself where answers are no choices."""
        return self.value(answers)

    def words(self, a: Answers, b: Answers, difference: Interval) -> str | None:
        """The difference in words of its own, or None: points with their interval say it all."""
        return None

    def applies(self, answers: Answers) -> bool:
        """Does the figure mean anything on these rows?"""
        return True


@dataclasses.dataclass(frozen=True)
class ClassMetric(Metric):
    """Of classes: `of` gives points of confusion counts[..., K, K] (label, guess). exact: McNemar's test decides."""

    name: str
    of: CountsMetric
    exact: bool = False

    def value(self, answers: Answers) -> float:
        """The figure."""
        return float(self.of(confusion(answers.labels, answers.given, answers.classes)))

    def difference(self, a: Answers, b: Answers, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
        """By multinomial draws of counts."""
        return bootstrap_classes(self.of, a.labels, a.given, b.given, a.classes, draws=draws, seed=seed, level=level)

    def exact_test(self, a: Answers, b: Answers) -> McNemar | None:
        """McNemar's, where it fits the metric."""
        return mcnemar_exact(a.given == a.labels, b.given == b.labels) if self.exact else None

    def bounds(self, a: Answers, b: Answers, *, error: float, seed: int = 0) -> Interval:
        """Of accuracy by the score statistic of two shares, which holds for few differing rows."""
        test = self.exact_test(a, b)
        if test is None:
            return super().bounds(a, b, error=error, seed=seed)
        found = paired_shares(test.only_a, test.only_b, len(a.labels), error)
        return Interval(100 * found.value, 100 * found.low, 100 * found.high, found.level)

    def worst(self, answers: Answers, rows: int) -> float:
        """Those of the rarest label are the dearest."""
        frequency = np.bincount(answers.labels, minlength=answers.classes)[answers.labels]
        right = np.flatnonzero(answers.given == answers.labels)
        some = right[np.argsort(frequency[right], kind="stable")][:rows]
        given = np.array(answers.given)
        given[some] = (given[some] + 1) % answers.classes
        return self.value(dataclasses.replace(answers, given=given))


@dataclasses.dataclass(frozen=True)
class NumberMetric(Metric):
    """Of numbers: pearson, spearman, or pearson_spearman, the mean of both."""

    name: str

    def value(self, answers: Answers) -> float:
        """The figure."""
        return number_metric(self.name, answers.labels, answers.given)

    def difference(self, a: Answers, b: Answers, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
        """By draws of rows."""
        return bootstrap_numbers(self.name, a.labels, a.given, b.given, draws=draws, seed=seed, level=level)

    def applies(self, answers: Answers) -> bool:
        """Where every row has a number."""
        return not np.isnan(answers.labels).any()


@dataclasses.dataclass(frozen=True)
class SetMetric(Metric):
    """Of label sets [N, L] of 0 and 1: micro-f1, macro-f1 or exact-match."""

    name: str

    def value(self, answers: Answers) -> float:
        """The figure."""
        return float(self._of(answers)(set_counts(answers.labels, answers.given).sum(axis=0)))

    def difference(self, a: Answers, b: Answers, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
        """By draws of rows."""
        parts = [set_counts(one.labels, one.given) for one in (a, b)]
        return bootstrap_sums(self._of(a), *parts, draws=draws, seed=seed, level=level)

    def worst(self, answers: Answers, rows: int) -> float:
        """Those with the most labels are the dearest."""
        hits = (answers.given * answers.labels).sum(axis=1)
        given = np.array(answers.given)
        given[np.argsort(-hits, kind="stable")[:rows]] = 0
        return self.value(dataclasses.replace(answers, given=given))

    def _of(self, answers: Answers) -> CountsMetric:
        return partial(set_metric, self.name, rows=len(answers.labels))


@dataclasses.dataclass(frozen=True)
class LikenessMetric(Metric):
    """100 (1 - mean loss), for losses that are distances from the source of at most 2: 100 is the source itself."""

    name: str

    def value(self, answers: Answers) -> float:
        """The figure."""
        return 100 * (1 - float(answers.losses.mean()))

    def difference(self, a: Answers, b: Answers, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
        """Of the mean of paired differences."""
        changes = 100 * (a.losses - b.losses)
        if np.ptp(changes) == 0:
            return Interval(float(changes[0]), float(changes[0]), float(changes[0]), level)
        return bootstrap_mean(changes, draws=draws, seed=seed, level=level)


METRICS: dict[str, dict[str, Metric]] = {}
"""Metrics by kind of task and name."""


def register_metric(kind: str, metric: Metric) -> Metric:
    """Make `metric` known to tasks of the kind with this name; returns it."""
    METRICS.setdefault(kind, {})[metric.name] = metric
    return metric


def metric_named(kind: str, name: str) -> Metric:
    """Raises: UsageError that lists what the kind has."""
    known = METRICS.get(kind, {})
    if name not in known:
        raise UsageError(f"{kind} has no metric {name!r}; metrics: {', '.join(known)}")
    return known[name]
