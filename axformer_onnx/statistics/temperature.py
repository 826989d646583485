"""Recalibration by one temperature (Guo et al., arXiv 1706.04599), of one model and of two together: pure arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray

_LOG_RANGE = (-6.0, 6.0)
"""Bounds of log b. At the lower one every answer is nearly uniform; the upper one serves models that say very little."""


def recalibrated_losses(logits: FloatArray, labels: npt.NDArray[Any]) -> FloatArray:
    """float64[rows]: cross-entropy of logits[rows, classes], in the order of the labels, at the best temperature.

    The mean is convex in b, so a bounded one-dimensional search finds the minimum.
    """
    return _losses(logits, labels, best_temperature(logits, labels))


def best_temperature(logits: FloatArray, labels: npt.NDArray[Any]) -> float:
    """b, with which softmax(b x logits[rows, classes]) has the least cross-entropy."""
    from scipy.optimize import minimize_scalar

    def mean(log_b: float) -> float:
        return float(_losses(logits, labels, np.exp(log_b)).mean())

    return float(np.exp(minimize_scalar(mean, bounds=_LOG_RANGE, method="bounded").x))


SHARE, SHARE_SPREAD = 0.2, 0.05
"""What a pruned model's share in `best_mixture` is before any row was seen (docs/method.md 2.7): mean and standard deviation."""


def best_mixture(first: FloatArray, second: FloatArray, labels: npt.NDArray[Any]) -> tuple[float, float]:
    """(b, w), with which softmax(b x ((1 - w) first + w second)) is likeliest, both logits[rows, classes].

    w has a normal prior: with few rows, or rows on which both say the same, it stays at SHARE.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows, apart = np.arange(len(labels)), second - first

    def cost(values: FloatArray) -> tuple[float, FloatArray]:
        b, w = np.exp(values[0]), values[1]
        logits = b * (first + w * apart)
        log_p = log_softmax(logits, axis=1)
        slope = np.exp(log_p)
        slope[rows, labels] -= 1
        off = (w - SHARE) / SHARE_SPREAD
        gradient = [(slope * logits).sum(), b * (slope * apart).sum() + off / SHARE_SPREAD]
        return off**2 / 2 - float(log_p[rows, labels].sum()), np.array(gradient)

    start = [np.log(best_temperature(first, labels)), SHARE]
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=[_LOG_RANGE, (None, None)])
    return float(np.exp(found.x[0])), float(found.x[1])


def _losses(logits: FloatArray, labels: npt.NDArray[Any], b: float) -> FloatArray:
    from scipy.special import log_softmax

    return np.asarray(-log_softmax(b * logits, axis=1)[np.arange(len(labels)), labels])
