"""Two shares of the same rows: how much smaller or larger is the second, where a few rows make all the difference?

Two models on the same rows differ on some of them, often on a handful: then resampling has little to draw from, and a bound of 1 %
is read off the few draws in a tail. The efficient score's bounds hold there, and where no row differs.
"""

from __future__ import annotations

import math

from axformer_onnx.records import Interval

AGAINST, BETWEEN = 1.0, 0.5
"""Rows that the difference is moved by towards what is tested, for counts go in steps: a whole one, as in McNemar's test after
Edwards, where a model is called better or worse than it might be; half a one where it is called no worse."""


def paired_shares(only_a: int, only_b: int, rows: int, error: float) -> Interval:
    """Share of b minus share of a, with one-sided bounds, each of which fails with a probability of about `error`.

    only_a, only_b   rows that count for one model alone, of `rows`

    A bound D is where the score statistic of the difference reaches the normal quantile (Tango, Statistics in Medicine 17, 1998):

        z(D) = (only_b - only_a - rows D) / sqrt(rows (2 q + D - D^2))

    q is the most likely share of rows for a alone, if D is the difference: the larger root of
    2 rows q^2 - (only_a + only_b - (2 rows + only_a - only_b) D) q - only_a D (1 - D). The bound on the side of 0 is corrected by
    AGAINST, the other by BETWEEN.
    """
    from scipy.stats import norm

    value, reach = (only_b - only_a) / rows, float(norm.isf(error))
    lower = _bound(only_a, only_b, rows, reach, AGAINST if value > 0 else BETWEEN)
    upper = -_bound(only_b, only_a, rows, reach, AGAINST if value < 0 else BETWEEN)
    return Interval(value, lower, upper, 1 - 2 * error)


def _bound(only_a: int, only_b: int, rows: int, reach: float, correction: float) -> float:
    """The smallest difference that is not excluded."""
    from scipy.optimize import brentq

    def above(difference: float) -> float:
        moved = only_b - only_a - rows * difference - correction
        return moved - reach * math.sqrt(_variance(only_a, only_b, rows, difference))

    low, high = -1 + 1e-12, (only_b - only_a) / rows
    return float(brentq(above, low, high, xtol=1e-9)) if above(low) > 0 > above(high) else high


def _variance(only_a: int, only_b: int, rows: int, difference: float) -> float:
    """Of only_b - only_a, if `difference` is the true one."""
    linear = (2 * rows + only_a - only_b) * difference - only_a - only_b
    constant = -only_a * difference * (1 - difference)
    q = (math.sqrt(max(0.0, linear**2 - 8 * rows * constant)) - linear) / (4 * rows)
    return max(0.0, rows * (2 * q + difference - difference**2))


__all__ = ["paired_shares"]
