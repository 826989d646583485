"""Metrics, in points (x 100): of confusion counts for classes, of correlations for numbers, of counts by label for label sets.

Every class metric is a function of confusion counts[..., K, K] (label, guess) with any leading axes, so that
the same line of code gives the figure of a report and ten thousand bootstrap draws of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def confusion(labels: IntArray, guesses: IntArray, classes: int) -> FloatArray:
    """float64[K, K]: number of rows by label and guess."""
    return np.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def class_metric(name: str, counts: FloatArray) -> FloatArray:
    """float64[...]: the metric `name` of counts[..., K, K], in points.

    Raises: DataError for f1 of other than two classes.
    """
    if name == "f1" and counts.shape[-1] != 2:
        raise DataError(f"metric f1 is for 2 classes, the model has {counts.shape[-1]}; use --metric macro-f1")
    return 100 * _CLASS_METRICS[name](counts)


def number_metric(name: str, labels: FloatArray, outputs: FloatArray) -> float:
    """Pearson's or Spearman's correlation, or their mean, in points; 0 where either side is constant."""
    from scipy import stats

    if np.ptp(labels) == 0 or np.ptp(outputs) == 0:
        return 0.0
    pearson = float(stats.pearsonr(labels, outputs).statistic)
    spearman = float(stats.spearmanr(labels, outputs).statistic)
    return 100 * {"pearson": pearson, "spearman": spearman, "pearson_spearman": (pearson + spearman) / 2}[name]


def set_counts(labels: FloatArray, guesses: FloatArray) -> FloatArray:
    """float64[rows, 3 L + 1] of label sets[rows, L] of 0 and 1: hits, labels and guesses by label, and 1 for equal sets."""
    equal = (labels == guesses).all(axis=1, keepdims=True)
    return np.concatenate([labels * guesses, labels, guesses, equal], axis=1).astype(np.float64)


def set_metric(name: str, sums: FloatArray, rows: int) -> FloatArray:
    """float64[...]: micro-f1, macro-f1 or exact-match of sums[..., 3 L + 1] of `set_counts` over `rows` rows, in points.

    An F1 without labels and guesses is 0. macro-f1 is the mean over all L labels, as scikit-learn's.
    """
    if name == "exact-match":
        return np.asarray(100 * sums[..., -1] / rows)
    right, labels, guesses = np.split(sums[..., :-1], 3, axis=-1)
    if name == "micro-f1":
        return 100 * _ratio(2 * right.sum(axis=-1), labels.sum(axis=-1) + guesses.sum(axis=-1))
    return np.asarray(100 * _ratio(2 * right, labels + guesses).mean(axis=-1))


def _accuracy(counts: FloatArray) -> FloatArray:
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))


def _f1_per_class(counts: FloatArray) -> FloatArray:
    """2 tp / (labels + guesses) of each class; 0 where it has neither."""
    both = counts.sum(axis=-1) + counts.sum(axis=-2)
    return _ratio(2 * np.diagonal(counts, axis1=-2, axis2=-1), both)


def _f1(counts: FloatArray) -> FloatArray:
    return _f1_per_class(counts)[..., 1]


def _macro_f1(counts: FloatArray) -> FloatArray:
    """Mean over the classes that are a label or a guess of some row."""
    present = (counts.sum(axis=-1) + counts.sum(axis=-2)) > 0
    return _ratio((_f1_per_class(counts) * present).sum(axis=-1), present.sum(axis=-1).astype(np.float64))


def _macro_recall(counts: FloatArray) -> FloatArray:
    """Mean over the classes that are a label of some row of the part of them that is guessed."""
    labels = counts.sum(axis=-1)
    right = _ratio(np.diagonal(counts, axis1=-2, axis2=-1), labels)
    return _ratio(right.sum(axis=-1), (labels > 0).sum(axis=-1).astype(np.float64))


def _mcc(counts: FloatArray) -> FloatArray:
    """Matthews' correlation for K classes (Gorodkin 2004); 0 where labels or guesses are all one class."""
    labels, guesses = counts.sum(axis=-1), counts.sum(axis=-2)
    rows = counts.sum(axis=(-2, -1))
    right = np.trace(counts, axis1=-2, axis2=-1)
    covariance = right * rows - (labels * guesses).sum(axis=-1)
    spread = (rows**2 - (labels**2).sum(axis=-1)) * (rows**2 - (guesses**2).sum(axis=-1))
    return _ratio(covariance, np.sqrt(spread))


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros_like(above, dtype=np.float64), where=below != 0)


_CLASS_METRICS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro-f1": _macro_f1,
    "macro-recall": _macro_recall,
    "mcc": _mcc,
}
