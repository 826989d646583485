"""Refit of the classifier: the last linear layer anew on what the pruned model gives it, with labels (`--refit-classifier`).

    cross-entropy          mean of softmax(X W' + b') on the labels    + s |W' - W|^2 -> min     (L-BFGS; convex)
    binary cross-entropy   the same of sigmoids, summed over labels
    squared error          mean of (X W' + b' - labels)^2              + s |W' - W|^2 -> min     (normal equations)

X float64[rows, R] are the inputs of the layer on the search rows, W, b what it had. The strength s is that of LADDER, in
units of the mean variance of X, which does best on rows left out (5 folds, seeded). Keeping W and b is one of the candidates,
and is kept unless another is better by more than a standard error: labels of a few hundred rows are soon fitted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray
from axformer_onnx.tasks import HeadLoss

LADDER = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Fitted:
    """weight float64[R, C], bias float64[C]; strength None: they are as they were. gain: mean loss saved on rows left out."""

    weight: FloatArray
    bias: FloatArray
    strength: float | None
    gain: float


def fit_classifier(
    inputs: FloatArray, labels: npt.NDArray[Any], weight: FloatArray, bias: FloatArray, *, loss: HeadLoss, seed: int
) -> Fitted:
    """The layer refitted, or as it was where nothing is surely better. `labels`: as the task's kind gives them for its loss."""
    scale = float(inputs.var(axis=0).mean()) or 1.0
    parts = np.array_split(np.random.default_rng(seed).permutation(len(inputs)), min(FOLDS, len(inputs)))
    before = losses(inputs, labels, weight, bias, loss=loss)
    best, best_gain = None, 0.0
    for strength in LADDER:
        after = np.empty_like(before)
        for part in parts:
            rest = np.setdiff1d(np.arange(len(inputs)), part)
            fitted = _solved(inputs[rest], labels[rest], weight, bias, strength * scale, loss)
            after[part] = losses(inputs[part], labels[part], *fitted, loss=loss)
        saved = before - after
        noise = float(saved.std(ddof=1)) / np.sqrt(len(saved)) if len(saved) > 1 else np.inf
        if saved.mean() > max(noise, best_gain):
            best, best_gain = strength, float(saved.mean())
    if best is None:
        return Fitted(weight, bias, None, 0.0)
    return Fitted(*_solved(inputs, labels, weight, bias, best * scale, loss), best, best_gain)


def losses(
    inputs: FloatArray, labels: npt.NDArray[Any], weight: FloatArray, bias: FloatArray, *, loss: HeadLoss
) -> FloatArray:
    """float64[rows]: cross-entropy in nats, or squared error."""
    outputs = inputs @ weight + bias
    if loss == "binary cross-entropy":
        return np.asarray((np.logaddexp(0, outputs) - labels * outputs).sum(axis=1))
    if loss == "squared error":
        return np.asarray((outputs[:, 0] - labels) ** 2)
    from scipy.special import log_softmax

    return np.asarray(-log_softmax(outputs, axis=1)[np.arange(len(labels)), labels])


def _solved(
    inputs: FloatArray, labels: npt.NDArray[Any], weight: FloatArray, bias: FloatArray, s: float, loss: HeadLoss
) -> tuple[FloatArray, FloatArray]:
    if loss == "squared error":
        return _ridge(inputs, labels, weight, s)
    return _logistic(inputs, labels, weight, bias, s, sigmoids=loss == "binary cross-entropy")


def _ridge(inputs: FloatArray, labels: FloatArray, weight: FloatArray, s: float) -> tuple[FloatArray, FloatArray]:
    centre, target = inputs.mean(axis=0), labels.mean()
    z, t = inputs - centre, (labels - target)[:, None]
    left = z.T @ z / len(z) + s * np.eye(z.shape[1])
    solved = np.linalg.solve(left, z.T @ t / len(z) + s * weight)
    return solved, np.asarray(target - centre @ solved).reshape(-1)


def _logistic(
    inputs: FloatArray,
    labels: npt.NDArray[Any],
    weight: FloatArray,
    bias: FloatArray,
    s: float,
    *,
    sigmoids: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """By L-BFGS. labels: the column of each row, or with `sigmoids` float64[rows, C] of 0 and 1."""
    from scipy.optimize import minimize
    from scipy.special import expit, log_softmax

    rows, (size, classes) = np.arange(len(inputs)), weight.shape

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        w, b = flat[: size * classes].reshape(size, classes), flat[size * classes :]
        if sigmoids:
            logits = inputs @ w + b
            error = expit(logits) - labels
            loss = (np.logaddexp(0, logits) - labels * logits).sum(axis=1).mean()
        else:
            logs = log_softmax(inputs @ w + b, axis=1)
            error = np.exp(logs)
            error[rows, labels] -= 1
            loss = -logs[rows, labels].mean()
        value = loss + s * float(np.sum((w - weight) ** 2))
        gradient = inputs.T @ error / len(rows) + 2 * s * (w - weight)
        return float(value), np.concatenate([gradient.reshape(-1), error.mean(axis=0)])

    start = np.concatenate([weight.reshape(-1), bias])
    found = minimize(objective, start, jac=True, method="L-BFGS-B").x
    return found[: size * classes].reshape(size, classes), found[size * classes :]


__all__ = ["Fitted", "fit_classifier", "losses"]
