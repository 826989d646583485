"""Paired tests against textbook sums, and intervals against a bootstrap that really draws rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from axformer_onnx.records import Scores
from axformer_onnx.scoring.comparison import compare, metric_noise
from axformer_onnx.scoring.outputs import evaluate
from axformer_onnx.statistics.metrics import class_metric
from axformer_onnx.statistics.paired import (
    _correlation,
    _midranks,
    bootstrap_classes,
    bootstrap_mean,
    bootstrap_numbers,
    mcnemar_exact,
)
from axformer_onnx.tasks.definitions import get_task
from axformer_onnx.tasks.labels import LabelMap

THREE = LabelMap((0, 1, 2), ("a", "b", "c"), "")


@given(only_a=st.integers(0, 40), only_b=st.integers(0, 40), both=st.integers(0, 5))
def test_mcnemar_is_the_binomial_sum_of_the_disagreements(only_a: int, only_b: int, both: int) -> None:
    a = np.array([True] * only_a + [False] * only_b + [True] * both, dtype=bool)
    b = np.array([False] * only_a + [True] * only_b + [True] * both, dtype=bool)
    found = mcnemar_exact(a, b)
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1)) / 2**total
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def drawn_rows(metric: Callable[[Any, Any], float], labels: Any, a: Any, b: Any, draws: int) -> tuple[float, float]:
    """The interval of metric(b) - metric(a) by drawing rows one bootstrap sample at a time."""
    generator = np.random.default_rng(99)
    found = []
    for _ in range(draws):
        rows = generator.integers(len(labels), size=len(labels))
        found.append(100 * (metric(labels[rows], b[rows]) - metric(labels[rows], a[rows])))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("accuracy", oracle.accuracy_score),
        ("mcc", oracle.matthews_corrcoef),
        ("macro-f1", lambda y, x: oracle.f1_score(y, x, average="macro")),
    ],
)
def test_drawing_counts_gives_the_interval_of_drawing_rows(name: str, metric: Callable[[Any, Any], float]) -> None:
    generator = np.random.default_rng(5)
    labels = generator.integers(3, size=300)
    a = np.where(generator.random(300) < 0.7, labels, generator.integers(3, size=300))
    b = np.where(generator.random(300) < 0.8, a, generator.integers(3, size=300))
    found = bootstrap_classes(partial(class_metric, name), labels, a, b, 3)
    low, high = drawn_rows(metric, labels, a, b, 1500)
    assert found.value == pytest.approx(100 * (metric(labels, b) - metric(labels, a)))
    # Both ends are random: with 1,500 draws the quantile's own error is about 4 % of the width.
    width = high - low
    assert found.low == pytest.approx(low, abs=0.12 * width)
    assert found.high == pytest.approx(high, abs=0.12 * width)


def test_the_interval_of_a_correlation_is_that_of_drawing_rows() -> None:
    generator = np.random.default_rng(6)
    labels = np.round(generator.normal(size=200) * 3) / 3
    a, b = labels + generator.normal(size=200), labels + 0.7 * generator.normal(size=200)

    def both(y: Any, x: Any) -> float:
        return float(stats.pearsonr(y, x).statistic + stats.spearmanr(y, x).statistic) / 2

    found = bootstrap_numbers("pearson_spearman", labels, a, b)
    low, high = drawn_rows(both, labels, a, b, 1500)
    assert found.value == pytest.approx(100 * (both(labels, b) - both(labels, a)))
    assert found.low == pytest.approx(low, abs=0.12 * (high - low))
    assert found.high == pytest.approx(high, abs=0.12 * (high - low))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=25))
def test_weighted_correlations_equal_those_of_repeated_rows(rows: list[tuple[int, int, int]]) -> None:
    x, y, times = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    repeated_x, repeated_y = (np.repeat(values, times.astype(int)) for values in (x, y))
    if len(repeated_x) < 2 or np.ptp(repeated_x) == 0 or np.ptp(repeated_y) == 0:
        return
    weights = times[None, :]
    assert _correlation(x[None], y[None], weights)[0] == pytest.approx(
        stats.pearsonr(repeated_x, repeated_y).statistic, abs=1e-9
    )
    ranks = _midranks(x, weights)[0]
    np.testing.assert_allclose(np.repeat(ranks, times.astype(int)), stats.rankdata(repeated_x))
    spearman = _correlation(_midranks(x, weights), _midranks(y, weights), weights)[0]
    assert spearman == pytest.approx(stats.spearmanr(repeated_x, repeated_y).statistic, abs=1e-9)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    labels, a = np.arange(100) % 2, np.arange(100) % 3 % 2
    mcc = partial(class_metric, "mcc")
    one, two, other = (bootstrap_classes(mcc, labels, a, labels, 2, seed=seed, draws=500) for seed in (0, 0, 1))
    assert one == two
    assert (one.low, one.high) != (other.low, other.high)


def test_many_rows_and_classes_are_drawn_in_bounded_pieces() -> None:
    generator = np.random.default_rng(7)
    labels, a, b = (generator.integers(20, size=2000) for _ in range(3))
    found = bootstrap_classes(partial(class_metric, "accuracy"), labels, a, b, 20, draws=3000)
    assert found.low < found.value < found.high


def test_the_mean_has_the_interval_of_the_normal_distribution() -> None:
    values = np.random.default_rng(8).normal(2, 1, size=2000)
    found = bootstrap_mean(values)
    error = 1.96 * values.std() / math.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def scores(outputs: Any, labels: Any, task: str = "mnli") -> Scores:
    return evaluate(outputs, labels, get_task(task), THREE if task == "mnli" else LabelMap((0,), ("value",), ""))


def noisy(labels: Any, right: float, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    return np.eye(3)[np.where(generator.random(len(labels)) < right, labels, generator.integers(3, size=len(labels)))]


def test_a_model_compared_with_itself_shows_no_difference() -> None:
    labels = np.arange(90) % 3
    same = scores(noisy(labels, 0.8, 0), labels)
    found = compare(same, same, labels, get_task("mnli"), THREE)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.mcnemar is not None
    assert found.mcnemar.p_value == 1
    assert found.outcome == "no significant difference"


def test_the_noise_of_an_accuracy_is_the_standard_error_of_its_paired_difference() -> None:
    labels = np.arange(900) % 3
    first, second = noisy(labels, 0.9, 1), noisy(labels, 0.6, 2)
    right = (second.argmax(axis=1) == labels).astype(float) - (first.argmax(axis=1) == labels)
    found = metric_noise(scores(first, labels), scores(second, labels), labels, get_task("mnli"), THREE)
    assert found == pytest.approx(100 * stats.sem(right), rel=0.1)  # 1,000 draws: 5 % is two of their own errors


def test_the_noise_of_a_correlation_is_the_spread_of_drawn_rows() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=200)
    outputs = [(labels + generator.normal(size=200) * noise)[:, None] for noise in (0.5, 1.5)]
    task, order = get_task("stsb"), LabelMap((0,), ("value",), "")
    first, second = (scores(x, labels, "stsb") for x in outputs)

    def value(x: Any, rows: Any) -> float:
        pair = x[rows, 0], labels[rows]
        return float(stats.pearsonr(*pair)[0] + stats.spearmanr(*pair)[0]) * 50

    drawn = [generator.integers(200, size=200) for _ in range(400)]
    spread = np.std([value(outputs[1], rows) - value(outputs[0], rows) for rows in drawn])
    assert metric_noise(first, second, labels, task, order) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize(("a", "b", "outcome"), [(0.9, 0.4, "worse"), (0.4, 0.9, "better")])
def test_a_clear_difference_is_called_by_its_name(a: float, b: float, outcome: str) -> None:
    labels = np.arange(600) % 3
    first, second = scores(noisy(labels, a, 1), labels), scores(noisy(labels, b, 2), labels)
    found = compare(first, second, labels, get_task("mnli"), THREE)
    assert found.outcome == outcome
    assert found.verdict.startswith(f"significantly {outcome}: accuracy {first.value:.2f} -> {second.value:.2f}")
    assert "McNemar p = " in found.verdict
    assert found.difference.value == pytest.approx(second.value - first.value)


def test_models_with_different_label_orders_are_compared_by_label() -> None:
    labels = np.arange(90) % 3
    outputs = noisy(labels, 0.8, 3)
    moved = LabelMap((2, 0, 1), THREE.names, "")
    other = evaluate(outputs[:, [1, 2, 0]], labels, get_task("mnli"), moved)
    found = compare(scores(outputs, labels), other, labels, get_task("mnli"), THREE, label_map_b=moved)
    assert found.difference.low == found.difference.high == 0


def test_regressions_are_compared_by_their_interval_alone() -> None:
    generator = np.random.default_rng(4)
    labels = generator.normal(size=150)
    good, bad = (labels + s * generator.normal(size=150) for s in (0.2, 3.0))
    found = compare(scores(good[:, None], labels, "stsb"), scores(bad[:, None], labels, "stsb"), labels,
                    get_task("stsb"), LabelMap((0,), ("value",), ""))  # fmt: skip
    assert found.mcnemar is None
    assert found.outcome == "worse"
    assert "McNemar" not in found.verdict
