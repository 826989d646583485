"""Is one model better than another on the same rows? Paired tests and intervals (docs/method.md 4).

The bootstrap draws rows with replacement. For class metrics it draws counts instead of rows: a resample of
n rows is a multinomial draw of n over the observed (label, guess a, guess b) triples. The distribution is the
same, and a draw is a few dozen numbers instead of thousands. For correlations it draws how often each row
occurs and computes weighted correlations, Spearman's from the midranks that the repeated rows would have.
scipy.stats.bootstrap serves where the statistic is a mean; on the metrics of 10,000 rows it
would take minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray, Interval
from axformer_onnx.statistics.metrics import confusion, number_metric

DRAWS = 10_000
_CHUNK = 4_000_000  # numbers held at once while drawing: 32 MB an array
IntArray = npt.NDArray[np.int64]
CountsMetric = Callable[[FloatArray], FloatArray]
"""Points of counts or sums with any leading axes."""


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Exact McNemar test: only_a and only_b count rows that one model alone got right; two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar_exact(correct_a: npt.NDArray[np.bool_], correct_b: npt.NDArray[np.bool_]) -> McNemar:
    """Exact two-sided test that bool[rows] `correct_a` and `correct_b` are right equally often."""
    from scipy.stats import binomtest

    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(~correct_a & correct_b))
    both = only_a + only_b
    p_value = float(binomtest(only_a, both, 0.5).pvalue) if both else 1.0
    return McNemar(only_a, only_b, p_value)


def bootstrap_classes(
    metric: CountsMetric,
    labels: IntArray,
    guesses_a: IntArray,
    guesses_b: IntArray,
    classes: int,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """metric(b) - metric(a) in points, with the percentile interval of `draws` paired resamples.

    metric  points of confusion counts[..., K, K], for example `functools.partial(class_metric, "accuracy")`
    """
    joint = (labels * classes + guesses_a) * classes + guesses_b
    cells, counts = np.unique(joint, return_counts=True)
    label, a, b = cells // classes**2, cells // classes % classes, cells % classes

    def change(generator: np.random.Generator, size: int) -> FloatArray:
        times = generator.multinomial(len(labels), counts / len(labels), size=size).astype(np.float64)
        both = [_confusions(label, guess, classes, times) for guess in (a, b)]
        return metric(both[1]) - metric(both[0])

    value = metric(confusion(labels, guesses_b, classes)) - metric(confusion(labels, guesses_a, classes))
    return _bootstrap(float(value), change, max(len(cells), classes**2), draws, seed, level)


def bootstrap_numbers(
    metric: str,
    labels: FloatArray,
    outputs_a: FloatArray,
    outputs_b: FloatArray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """correlation(b) - correlation(a) with `labels`, in points, with the percentile interval as above.

    metric  pearson, spearman or pearson_spearman (their mean)
    """
    rows = len(labels)
    kinds = {"pearson": (_same,), "spearman": (_midranks,)}.get(metric, (_same, _midranks))

    def change(generator: np.random.Generator, size: int) -> FloatArray:
        drawn = generator.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        found = np.zeros(size)
        for kind in kinds:
            y, a, b = (kind(values, times) for values in (labels, outputs_a, outputs_b))
            found += _correlation(y, b, times) - _correlation(y, a, times)
        return 100 * found / len(kinds)

    value = number_metric(metric, labels, outputs_b) - number_metric(metric, labels, outputs_a)
    return _bootstrap(value, change, rows, draws, seed, level)


def bootstrap_sums(
    metric: CountsMetric,
    parts_a: FloatArray,
    parts_b: FloatArray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """metric(b) - metric(a) in points, of metrics that are functions of sums over rows, with the percentile interval.

    metric            points of sums[..., P]
    parts_a, parts_b  float64[rows, P]: what each row adds to the sums, for each model
    """
    rows = len(parts_a)

    def change(generator: np.random.Generator, size: int) -> FloatArray:
        times = generator.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
        return metric(times @ parts_b) - metric(times @ parts_a)

    value = float(metric(parts_b.sum(axis=0)) - metric(parts_a.sum(axis=0)))
    return _bootstrap(value, change, max(rows, parts_a.shape[1]), draws, seed, level)


def bootstrap_mean(values: FloatArray, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of float[rows] with its percentile interval: for paired differences of losses."""
    return _scipy_bootstrap((values,), np.mean, draws, seed, level)


def studentised_mean(values: FloatArray, error: float, *, draws: int = 4000, seed: int = 0) -> Interval:
    """Mean of float[rows] with one-sided bounds, each of which fails with a probability of about `error`, for skewed values.

    By the bootstrap of (mean* - mean) / standard error* (DiCiccio and Efron, Statistical Science 11, 1996): where a few rows make
    much of the mean, means and their standard errors rise together, and a percentile's upper bound is too low.
    """
    rows, value = len(values), float(values.mean())
    if rows < 2 or np.ptp(values) == 0:
        return Interval(value, value, value, 1.0)
    generator, most = np.random.default_rng(seed), max(1, min(draws, _CHUNK // rows))
    found = list[FloatArray]()
    for start in range(0, draws, most):
        drawn = values[generator.integers(rows, size=(min(most, draws - start), rows))]
        spread = drawn.std(axis=1)
        found.append((drawn.mean(axis=1) - value)[spread > 0] / spread[spread > 0])
    low, high = np.quantile(np.concatenate(found), [error, 1 - error])
    spread = float(values.std())
    return Interval(value, value - float(high) * spread, value - float(low) * spread, 1 - 2 * error)


def _bootstrap(
    value: float,
    change: Callable[[np.random.Generator, int], FloatArray],
    width: int,
    draws: int,
    seed: int,
    level: float,
) -> Interval:
    """`value` with the percentile interval of change(generator, size) float64[size], drawn so that no array is too large.

    width  numbers that a draw holds at once
    """
    generator, most = np.random.default_rng(seed), max(1, min(draws, _CHUNK // max(1, width)))
    found = np.concatenate([change(generator, min(most, draws - start)) for start in range(0, draws, most)])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def _confusions(label: IntArray, guess: IntArray, classes: int, times: FloatArray) -> FloatArray:
    """float64[draws, K, K] of cells that occur `times`[draws, cells]."""
    member = np.zeros((len(label), classes**2))
    member[np.arange(len(label)), label * classes + guess] = 1
    return (times @ member).reshape(len(times), classes, classes)


def _same(values: FloatArray, times: FloatArray) -> FloatArray:
    return np.broadcast_to(values, times.shape)


def _midranks(values: FloatArray, times: FloatArray) -> FloatArray:
    """Midrank of each row in each resample, where row i occurs times[draw, i] times.

    A group of equal values that occurs c times after s smaller ones has the ranks s + 1 to s + c; their mean is
    s + (c + 1) / 2.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    occur = np.add.reduceat(times[:, order], starts, axis=1)
    ranks = np.cumsum(occur, axis=1) - occur + (occur + 1) / 2
    return np.asarray(ranks[:, group])


def _correlation(x: FloatArray, y: FloatArray, times: FloatArray) -> FloatArray:
    """float64[draws]: Pearson's correlation of rows that occur `times`; 0 where a side is constant."""
    total = times.sum(axis=1, keepdims=True)
    x = x - (times * x).sum(axis=1, keepdims=True) / total
    y = y - (times * y).sum(axis=1, keepdims=True) / total
    above = (times * x * y).sum(axis=1)
    below = np.sqrt((times * x * x).sum(axis=1) * (times * y * y).sum(axis=1))
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def _scipy_bootstrap(
    data: tuple[FloatArray, ...], statistic: Callable[..., Any], draws: int, seed: int, level: float
) -> Interval:
    """scipy's percentile bootstrap, paired; one observation has no interval but itself."""
    from scipy import stats

    value = float(statistic(*data, axis=-1))
    if len(data[0]) < 2:
        return Interval(value, value, value, level)
    result = stats.bootstrap(
        data,
        statistic,
        n_resamples=draws,
        batch=max(1, _CHUNK // len(data[0])),
        vectorized=True,
        paired=True,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return Interval(value, float(interval.low), float(interval.high), level)
