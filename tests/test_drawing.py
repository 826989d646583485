"""Rows drawn in proportion to a size: each as often as its inclusion says, the weighted mean without bias and with less noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from axformer_onnx.search.compensated.row_sampling import FLOOR, drawn_rows, inclusion, sizes_of
from axformer_onnx.tasks import CLASSIFICATION


def test_size_is_the_gini_impurity_and_a_floor() -> None:
    p = np.array([[0.5, 0.25, 0.25], [1.0, 1e-12, 1e-12], [1 / 3, 1 / 3, 1 / 3]])
    assert sizes_of(np.log(p), CLASSIFICATION) == pytest.approx([0.625 + FLOOR, FLOOR, 2 / 3 + FLOOR])
    assert sizes_of(np.array([[np.nan, 0.0], [np.inf, 0.0], [0.0, 0.0]]), CLASSIFICATION) == pytest.approx(
        [1, 1, 0.5 + FLOOR]
    )


@pytest.mark.parametrize("count", [1, 7, 50, 99])
def test_inclusions_sum_to_the_count_in_proportion_up_to_one(count: int) -> None:
    sizes = np.random.default_rng(0).lognormal(0, 2, 100)
    chances = inclusion(sizes, count)
    assert chances.sum() == pytest.approx(count) and chances.max() <= 1 and chances.min() > 0
    free = chances < 1
    assert np.ptp(chances[free] / sizes[free]) < 1e-9
    assert free.all() or sizes[~free].min() >= sizes[free].max()


def test_every_row_is_drawn_as_often_as_its_inclusion_says_and_never_twice() -> None:
    sizes = np.random.default_rng(1).lognormal(0, 1.5, 40)
    chances, seen, times = inclusion(sizes, 12), np.zeros(40), 4000
    for seed in range(times):
        rows, weights = drawn_rows(sizes, 12, seed)
        assert len(set(rows.tolist())) == len(rows) == 12
        assert weights == pytest.approx(12 / (40 * chances[rows]))
        seen[rows] += 1
    assert np.abs(seen / times - chances).max() < 4 * np.sqrt(0.25 / times)


def test_the_weighted_mean_is_that_of_all_rows_with_half_of_the_noise_and_so_is_the_mean_of_its_first_part() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 4, (2000, 3))
    moved = logits + rng.normal(0, 0.3, (2000, 3))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, moved))
    divergence = np.array([entropy(a, b) for a, b in zip(p, q, strict=True)])
    found, first, even = [], [], []
    for seed in range(600):
        rows, weights = drawn_rows(sizes_of(logits, CLASSIFICATION), 256, seed)
        found.append((weights * divergence[rows]).mean())
        first.append((weights * divergence[rows])[:64].mean())
        even.append(divergence[drawn_rows(np.ones(2000), 256, seed)[0]].mean())
    for means in (found, first):
        assert np.mean(means) == pytest.approx(divergence.mean(), abs=4 * np.std(means) / np.sqrt(len(means)))
    assert np.var(found) < np.var(even) / 2


def test_all_rows_weigh_the_same_where_all_are_drawn() -> None:
    rows, weights = drawn_rows(np.array([1.0, 5.0, 2.0]), 3, 0)
    assert sorted(rows.tolist()) == [0, 1, 2] and (weights == 1).all()
    rows, weights = drawn_rows(np.ones(10), 4, 0)
    assert weights == pytest.approx(np.ones(4)) and len(set(rows.tolist())) == 4
