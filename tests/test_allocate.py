"""Dynamic programming against every choice there is, and what mutations and exchanges promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axformer_onnx.search.compensated.allocation import STEPS, allocate, exchanges, mutated, price_of


def drawn(seed: int, units: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Costs that rise and prices that fall from rung to rung, as those of real ladders."""
    rng = np.random.default_rng(seed)
    rungs = rng.integers(1, 5, units)
    costs = [np.concatenate([[0.0], np.cumsum(rng.exponential(size=n))]) for n in rungs]
    prices = [np.concatenate([np.cumsum(rng.exponential(size=n))[::-1], [0.0]]) for n in rungs]
    return costs, prices


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), units=st.integers(1, 5), part=st.floats(0.0, 1.2))
def test_choice_is_the_cheapest_of_all_within_the_budget(seed: int, units: int, part: float) -> None:
    costs, prices = drawn(seed, units)
    budget = part * sum(float(p[0]) for p in prices)
    found = allocate(costs, prices, budget)
    assert found is not None and price_of(prices, found) <= budget + 1e-9
    rounding = units * budget / STEPS  # every price is rounded up to a whole bucket
    best = min(
        price_of(costs, rungs)
        for rungs in itertools.product(*(range(len(p)) for p in prices))
        if price_of(prices, rungs) <= budget - rounding or not any(p[r] for p, r in zip(prices, rungs, strict=True))
    )
    assert price_of(costs, found) <= best + 1e-9


def test_where_even_the_cheapest_do_not_fit_there_is_no_choice() -> None:
    prices = [np.array([3.0, 2.0]), np.array([3.0, 1.0])]
    costs = [np.array([0.0, 1.0])] * 2
    assert allocate(costs, prices, 2.9) is None and allocate(costs, prices, -1.0) is None
    assert allocate(costs, prices, 3.0) == (1, 1)


def test_coefficients_shift_the_choice() -> None:
    costs, prices = [np.array([0.0, 1.0])] * 2, [np.array([1.0, 0.0])] * 2
    assert allocate(costs, prices, 1.0, np.array([1.0, 9.0])) == (1, 0)
    assert allocate(costs, prices, 1.0, np.array([9.0, 1.0])) == (0, 1)


@pytest.mark.parametrize(("units", "moved"), [(1, 1), (3, 1), (12, 4), (24, 8)])
def test_mutation_moves_a_third_of_the_coefficients_and_keeps_them_positive(units: int, moved: int) -> None:
    before = np.ones(units)
    after = mutated(before, np.random.default_rng(1))
    assert (before == 1).all() and (after > 0).all() and int((after != 1).sum()) == moved


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), units=st.integers(2, 5))
def test_exchanges_keep_the_budget_and_move_one_unit_up_and_at_most_one_down(seed: int, units: int) -> None:
    costs, prices = drawn(seed, units)
    budget = 0.5 * sum(float(p[0]) for p in prices)
    rungs = allocate(costs, prices, budget)
    assert rungs is not None
    gains = []
    for other in exchanges(costs, prices, budget, rungs):
        steps = sorted(b - a for a, b in zip(rungs, other, strict=True) if a != b)
        assert steps in ([-1], [-1, 1])
        assert price_of(prices, other) <= budget + 1e-9
        gains.append(price_of(costs, other) - price_of(costs, rungs))
    assert gains == sorted(gains)
