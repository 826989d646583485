"""Losses after recalibration by one temperature (Guo et al., arXiv 1706.04599): pure arrays."""

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


def _losses(logits: FloatArray, labels: npt.NDArray[Any], b: float) -> FloatArray:
    from scipy.special import log_softmax

    return np.asarray(-log_softmax(b * logits, axis=1)[np.arange(len(labels)), labels])
