"""The classifier's refit against planted truth and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from axformer_onnx.compensate.classifier_fit import _logistic, _ridge, fit_classifier, losses


def rows(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, labels that a true layer draws, and that layer."""
    rng = np.random.default_rng(seed)
    x, w, b = rng.normal(size=(count, 6)) * 2, rng.normal(size=(6, classes)), rng.normal(size=classes)
    p = np.exp(x @ w + b)
    p /= p.sum(axis=1, keepdims=True)
    return x, np.array([rng.choice(classes, p=row) for row in p]), w, b


def test_logistic_fit_towards_zero_is_that_of_scikit_learn() -> None:
    x, y, w, b = rows(400, 0)
    ours, _ = _logistic(x, y, np.zeros_like(w), np.zeros_like(b), 0.01)
    theirs = LogisticRegression(C=1 / (2 * 0.01 * 400), tol=1e-8, max_iter=1000).fit(x, y)
    assert pytest.approx(theirs.coef_, abs=2e-3) == ours.T


def test_ridge_towards_zero_is_that_of_scikit_learn() -> None:
    x, _, w, b = rows(300, 1, classes=1)
    t = (x @ w + b)[:, 0] + np.random.default_rng(2).normal(size=300)
    weight, bias = _ridge(x, t, np.zeros_like(w), 0.05)
    theirs = Ridge(alpha=0.05 * 300).fit(x, t)
    assert weight[:, 0] == pytest.approx(theirs.coef_) and bias[0] == pytest.approx(theirs.intercept_)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared error"])
def test_a_damaged_layer_is_mended_on_rows_that_the_fit_did_not_see(loss: Any) -> None:
    x, y, w, b = rows(600, 3, classes=1 if loss == "squared error" else 3)
    if loss == "squared error":
        y = (x @ w + b)[:, 0]
    damaged = w + np.random.default_rng(4).normal(size=w.shape)
    found = fit_classifier(x[:400], y[:400], damaged, b, loss=loss, seed=0)
    before = losses(x[400:], y[400:], damaged, b, loss=loss).mean()
    after = losses(x[400:], y[400:], found.weight, found.bias, loss=loss).mean()
    assert found.strength is not None and found.gain > 0 and after < before


def test_a_layer_that_is_right_already_stays_as_it_was() -> None:
    kept = 0
    for seed in range(8):
        x, y, w, b = rows(300, 10 + seed)
        found = fit_classifier(x, y, w, b, loss="cross-entropy", seed=0)
        kept += found.strength is None and found.weight is w and found.bias is b
    assert kept >= 6
