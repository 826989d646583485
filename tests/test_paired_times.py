"""Speeds from times of the same rounds: planted speeds, planted autocorrelation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from axformer_onnx.records import LogRatio
from axformer_onnx.statistics.paired_times import (
    averaged,
    block_length,
    paired_ratio,
    ratio_interval,
    stationary_resamples,
)


def autoregressive(n: int, rho: float, generator: np.random.Generator) -> Any:
    """float64[n] of variance 1 whose neighbours correlate by rho."""
    steps = generator.normal(size=n) * np.sqrt(1 - rho**2)
    values = np.empty(n)
    values[0] = generator.normal()
    for i in range(1, n):
        values[i] = rho * values[i - 1] + steps[i]
    return values


def test_what_slows_both_models_down_in_a_round_cancels() -> None:
    noise = np.random.default_rng(9).lognormal(0, 0.3, size=60)
    found = ratio_interval(paired_ratio(10 * noise, 4 * noise))
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5, 2.5))
    one = ratio_interval(paired_ratio(np.array([6.0]), np.array([3.0])))
    assert (one.low, one.value, one.high) == pytest.approx((2, 2, 2))


def test_a_standard_error_that_rounds_cannot_show_is_added_in_squares() -> None:
    noise = np.ones(400)
    found = ratio_interval(paired_ratio(3 * noise, noise, floor=0.01))
    assert found.low == pytest.approx(
        3 * np.exp(-0.01 * 2.0057), rel=1e-4
    )  # t of 400 / 400^(1/3) - 1 degrees of freedom
    assert found.high == pytest.approx(3 * np.exp(0.01 * 2.0057), rel=1e-4)


def test_resamples_are_runs_of_neighbours_of_the_mean_length_and_every_round_is_drawn_equally_often() -> None:
    drawn = stationary_resamples(50, 8.0, 4000, np.random.default_rng(1))
    assert drawn.shape == (4000, 50)
    follows = np.mean((np.diff(drawn, axis=1) % 50) == 1)
    assert follows == pytest.approx(1 - 1 / 8 + 1 / 8 / 50, abs=0.005)
    assert np.bincount(drawn.ravel(), minlength=50) == pytest.approx(np.full(50, 4000), rel=0.1)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_the_block_length_of_an_autoregression_is_the_one_of_its_formula(rho: float) -> None:
    n, generator = 5000, np.random.default_rng(2)
    found = [block_length(autoregressive(n, rho, generator)) for _ in range(10)]
    assert np.median(found) == pytest.approx((2 * rho / (1 - rho**2)) ** (2 / 3) * n ** (1 / 3), rel=0.2)


def test_rounds_that_have_nothing_to_do_with_each_other_are_drawn_nearly_one_by_one() -> None:
    generator = np.random.default_rng(3)
    assert np.median([block_length(generator.normal(size=200)) for _ in range(50)]) < 2
    assert block_length(np.ones(30)) == 1 and block_length(np.array([1.0, 2.0])) == 1


def test_intervals_hold_where_neighbouring_rounds_are_alike_and_those_of_single_rounds_do_not() -> None:
    generator, hits, naive = np.random.default_rng(4), 0, 0
    for seed in range(300):
        a = 8 * np.exp(0.1 * autoregressive(150, 0.6, generator))
        found = ratio_interval(paired_ratio(a, np.full(150, 4.0), seed))
        hits += found.low <= 2 <= found.high
        drawn = generator.integers(150, size=(300, 150))
        low, high = np.quantile(np.median(a[drawn], axis=1) / 4, [0.025, 0.975])
        naive += bool(low <= 2 <= high)
    assert hits >= 0.88 * 300
    assert naive < 0.85 * 300


def test_the_mean_of_repetitions_is_as_sure_as_their_errors_or_their_spread_allow() -> None:
    alike = averaged([LogRatio(0.1, 0.02, 10.0)] * 4)
    assert (alike.value, alike.error, alike.freedom) == pytest.approx((0.1, 0.01, 40.0))
    apart = averaged([LogRatio(value, 0.001, 10.0) for value in (0.0, 0.2)])
    assert apart.error == pytest.approx(np.std([0.0, 0.2], ddof=1) / np.sqrt(2))
    one = LogRatio(0.3, 0.05, 7.0, shared=0.03)
    alone = averaged([one])
    assert (alone.value, alone.error, alone.freedom, alone.shared) == pytest.approx((0.3, 0.05, 7.0, 0.03))


def test_an_error_that_repetitions_share_is_not_averaged_out() -> None:
    many = averaged([LogRatio(0.3, 0.05, 7.0, shared=0.03)] * 400)
    assert many.error == pytest.approx(np.hypot(0.04 / 20, 0.03)) and many.shared == pytest.approx(0.03)
