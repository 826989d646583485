"""A share with its exact interval: how many answers changed, where every change counts against the same side.

A bootstrap of rows has nothing to draw from where no answer changed: its interval is [0, 0], however few rows there were. The
binomial distribution knows better.
"""

from __future__ import annotations

from axformer_onnx.records import Interval


def exact_proportion(count: int, rows: int, level: float = 0.95) -> Interval:
    """count / rows with the exact two-sided interval of Clopper and Pearson (Biometrika 26, 1934).

    Its ends are the shares under which so many or more (so many or fewer) have the probability (1 - level) / 2.
    """
    from scipy.stats import binomtest

    found = binomtest(count, rows).proportion_ci(confidence_level=level, method="exact")
    return Interval(count / rows, float(found.low), float(found.high), level)


def most_unseen(rows: int, level: float = 0.95) -> float:
    """The largest share of which none in `rows` rows is seen with a probability of 1 - level: about 3 / rows at 95 %.

    (1 - share)^rows = 1 - level. One-sided, since nothing lies below none.
    """
    return float(1 - (1 - level) ** (1 / rows))


__all__ = ["exact_proportion", "most_unseen"]
