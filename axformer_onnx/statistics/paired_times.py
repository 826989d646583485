"""How many times as fast is one model as another? Times of both from the same short rounds (docs/method.md 4).

What slows a machine down comes in bursts, so neighbouring rounds are alike and drawing them one by one would take them for more
than they are. The stationary bootstrap (Politis and Romano 1994) draws runs of neighbours of random length, whose mean is chosen
from the autocorrelation of the data (Politis and White 2004, corrected by Patton, Politis and White 2009). The library that has
both, arch, needs pandas and statsmodels; the few lines that are needed of it are here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray, Interval, LogRatio

DRAWS = 500
LONGER = 4.0
"""Times the length that is best for the mean squared error of a variance: it comes out too small with that, and an interval that is
too narrow is a worse error than one that varies."""


def paired_ratio(
    a_ms: FloatArray,
    b_ms: FloatArray,
    seed: int = 0,
    *,
    floor: float = 0.0,
    draws: int = DRAWS,
) -> LogRatio:
    """Median of log(a / b) over rounds: how many times as fast b is.

    a_ms, b_ms  float[rounds], in the order in which they were measured
    floor       standard error of the logarithm that rounds of one pair of sessions cannot show, added in squares

    The logarithm's standard error is that of the medians of `draws` resamples; it has as many degrees of freedom as there are
    independent blocks.
    """
    logs = np.log(np.asarray(a_ms, dtype=float)) - np.log(np.asarray(b_ms, dtype=float))
    value, rounds = float(np.median(logs)), len(logs)
    if rounds < 2:
        return LogRatio(value, 0.0, 2.0)
    length = max(1.0, min(max(LONGER * block_length(logs), rounds ** (1 / 3)), rounds / 4))
    drawn = stationary_resamples(rounds, length, draws, np.random.default_rng(seed))
    error = math.hypot(float(np.median(logs[drawn], axis=1).std()), floor)
    return LogRatio(value, error, max(2.0, rounds / length - 1))


def ratio_interval(found: LogRatio, level: float = 0.95) -> Interval:
    """exp(value) with its interval, normal in the logarithm, by Student's t."""
    from scipy.stats import t

    reach = float(t.ppf((1 + level) / 2, found.freedom)) * found.error
    return Interval(math.exp(found.value), math.exp(found.value - reach), math.exp(found.value + reach), level)


def averaged(found: Sequence[LogRatio]) -> LogRatio:
    """The mean of repetitions, each with sessions of its own.

    Its standard error is that of the repetitions' own errors, or of their spread where that is larger, and what they share, added
    in squares; degrees of freedom add up.
    """
    values, count = np.array([one.value for one in found]), len(found)
    within = math.fsum(one.error**2 - one.shared**2 for one in found) / count
    between = float(values.var(ddof=1)) if count > 1 else 0.0
    shared = math.sqrt(math.fsum(one.shared**2 for one in found) / count)
    error = math.sqrt(max(within, between) / count + shared**2)
    return LogRatio(float(values.mean()), error, math.fsum(one.freedom for one in found), shared)


def stationary_resamples(
    rounds: int, length: float, draws: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """int64[draws, rounds]: indices, in circular runs of neighbours whose lengths are geometric with mean `length`."""
    begins = generator.random((draws, rounds)) < 1 / max(length, 1.0)
    begins[:, 0] = True
    places = np.arange(rounds)
    begin = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    first = np.take_along_axis(generator.integers(rounds, size=(draws, rounds)), begin, axis=1)
    return np.asarray((first + places - begin) % rounds)


def block_length(values: FloatArray) -> float:
    """The mean length that is best for the mean of a series with this autocorrelation; at least 1, at most a quarter of it.

    Where |autocorrelation| stays below 2 sqrt(log10(n) / n) for 5 lags from m on, with g(k) its covariances and the flat-top window
    h(x) = min(1, 2 (1 - |x|)):  G = sum h(k / 2m) |k| g(k),  D = 2 (sum h(k / 2m) g(k))^2,  length = (2 G^2 n / D)^(1/3).
    """
    n = len(values)
    centred = values - values.mean()
    variance = float(centred @ centred) / n
    most = min(n - 2, math.ceil(math.sqrt(n)) + 5)
    if most < 1 or variance < 1e-20:
        return 1.0
    covariance = np.array([float(centred[: n - k] @ centred[k:]) / n for k in range(most + 1)])
    small = np.abs(covariance[1:]) < 2 * math.sqrt(math.log10(n) / n) * variance
    last = next((m for m in range(len(small)) if small[m : m + 5].all()), len(small))
    width = max(1, min(2 * last, most))
    lags = np.arange(1, width + 1)
    window = np.minimum(1.0, 2 * (1 - lags / width)) * covariance[1 : width + 1] * 2
    g, d = float((lags * window).sum()), 2 * float(covariance[0] + window.sum()) ** 2
    if last == 0 or d <= 0:
        return 1.0
    return float(np.clip((2 * g * g * n / d) ** (1 / 3), 1.0, max(1.0, n / 4)))
