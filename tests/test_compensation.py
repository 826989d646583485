"""Levels and refit against planted truth and against brute-force least squares on the tokens themselves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from axformer_onnx.compensate.algebra import levels, refit, refit_without_bias

Array = npt.NDArray[np.float64]
TOKENS, DAMPING = 400, 1e-4


def inputs(rows: int, seed: int = 0) -> Array:
    """[TOKENS, rows]: correlated, of uneven size, with means that are not zero."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(TOKENS, rows)) @ rng.normal(size=(rows, rows)) / np.sqrt(rows)
    return mixed * rng.uniform(0.3, 3, rows) + rng.normal(size=rows)


def with_one(z: Array) -> Array:
    return np.hstack([z, np.ones((len(z), 1))])


def moments(z: Array) -> Array:
    return with_one(z).T @ with_one(z)


def least_squares(z: Array, target: Array, towards: Array, held: float) -> tuple[Array, Array]:
    """(weight, bias) of |Z W + b - target|^2 + held |W - towards|^2 -> min, by one tall lstsq over all tokens."""
    rows = z.shape[1]
    pull = np.hstack([np.sqrt(held) * np.eye(rows), np.zeros((rows, 1))])
    tall = np.vstack([with_one(z), pull])
    found = np.linalg.lstsq(tall, np.vstack([target, np.sqrt(held) * towards]), rcond=None)[0]
    return found[:-1], found[-1]


def singles(count: int) -> list[tuple[int, ...]]:
    return [(i,) for i in range(count)]


def heads(count: int, size: int) -> list[tuple[int, ...]]:
    return [tuple(range(h * size, (h + 1) * size)) for h in range(count)]


def projection(rows: int, columns: int, seed: int = 1) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, columns)), rng.normal(size=columns)


GROUPS = {
    "neurons": singles(24),
    "heads": heads(6, 4),
    "interleaved heads": [tuple(range(h, 24, 6)) for h in range(6)],
    "uneven groups": [(0, 5), (1, 2, 3, 4), (6,), tuple(range(7, 24))],
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("damping", [DAMPING, 0.0])
def test_every_level_is_the_least_squares_solution_on_its_kept_rows(
    groups: Sequence[tuple[int, ...]], damping: float
) -> None:
    z, (weight, bias) = inputs(24), projection(24, 7)
    full = z @ weight + bias
    held = damping * float(np.mean(np.sum(z**2, axis=0)))
    for level in levels(weight, bias, moments(z), groups, range(len(groups) + 1), damping=damping):
        rows = sorted(p for unit in level.kept for p in groups[unit])
        expected = least_squares(z[:, rows], full, weight[rows], held)
        np.testing.assert_allclose(level.weight, expected[0], atol=1e-8)
        np.testing.assert_allclose(level.bias, expected[1], atol=1e-8)
        error = np.mean(np.sum((z[:, rows] @ level.weight + level.bias - full) ** 2, axis=1))
        assert level.cost == pytest.approx(error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_the_unit_that_leaves_is_the_cheapest_of_all_that_could(groups: Sequence[tuple[int, ...]]) -> None:
    z, (weight, bias) = inputs(24, 3), projection(24, 5, 4)
    full = z @ weight + bias
    held = DAMPING * float(np.mean(np.sum(z**2, axis=0)))

    def damped_error(kept: tuple[int, ...]) -> float:
        rows = sorted(p for unit in kept for p in groups[unit])
        w, b = least_squares(z[:, rows], full, weight[rows], held)
        change = -weight.copy()
        change[rows] += w
        return float(np.sum((z[:, rows] @ w + b - full) ** 2) + held * np.sum(change**2))

    found = levels(weight, bias, moments(z), groups, range(len(groups) + 1), damping=DAMPING, chunk=1)
    for above, below in itertools.pairwise(found):
        costs = {gone: damped_error(tuple(u for u in above.kept if u != gone)) for gone in above.kept}
        (left,) = set(above.kept) - set(below.kept)
        assert costs[left] == pytest.approx(min(costs.values()), rel=1e-9)


def test_a_neuron_that_others_express_leaves_first_and_is_compensated_exactly() -> None:
    z, (weight, bias) = inputs(16, 5), projection(16, 6, 6)
    z[:, 9] = 0.5 * z[:, 2] - 2 * z[:, 11] + 3  # an affine combination: the constant takes part
    (level,) = levels(weight, bias, moments(z), singles(16), [15], damping=1e-12)
    assert level.kept in [tuple(i for i in range(16) if i != gone) for gone in (2, 9, 11)]
    assert level.cost < 1e-9
    rows = list(level.kept)
    np.testing.assert_allclose(z[:, rows] @ level.weight + level.bias, z @ weight + bias, atol=1e-5)


def test_a_head_that_another_one_repeats_leaves_first_and_costs_nothing() -> None:
    z, (weight, bias) = inputs(20, 7), projection(20, 6, 8)
    z[:, 8:12] = z[:, 0:4] @ np.random.default_rng(9).normal(size=(4, 4)) - 1
    full, one_less = levels(weight, bias, moments(z), heads(5, 4), [5, 4], damping=1e-12)
    assert set(full.kept) - set(one_less.kept) in ({0}, {2})
    assert one_less.cost < 1e-9 * np.mean(np.sum((z @ weight + bias) ** 2, axis=1))


def test_all_units_kept_is_the_projection_itself_and_none_is_its_mean_output() -> None:
    z, (weight, bias) = inputs(12), projection(12, 5)
    full, empty = levels(weight, bias, moments(z), heads(3, 4), [0, 3])
    np.testing.assert_array_equal(full.weight, weight)
    np.testing.assert_array_equal(full.bias, bias)
    assert full.cost == 0
    assert empty.kept == ()
    assert empty.weight.shape == (0, 5)
    np.testing.assert_allclose(empty.bias, (z @ weight + bias).mean(axis=0), atol=1e-12)
    assert empty.cost == pytest.approx(float((z @ weight).var(axis=0).sum()), rel=1e-9)


def test_kept_sets_are_nested_and_do_not_depend_on_which_levels_are_asked_for() -> None:
    z, (weight, bias) = inputs(30), projection(30, 4)
    every = {len(x.kept): x for x in levels(weight, bias, moments(z), singles(30), range(31), chunk=1)}
    for count in range(30):
        assert set(every[count].kept) < set(every[count + 1].kept)
    for level in levels(weight, bias, moments(z), singles(30), [22, 6, 0], chunk=1):
        assert level.kept == every[len(level.kept)].kept
        np.testing.assert_array_equal(level.weight, every[len(level.kept)].weight)


def test_chunks_of_neurons_end_at_the_levels_that_are_asked_for() -> None:
    z, (weight, bias) = inputs(40), projection(40, 4)
    found = levels(weight, bias, moments(z), singles(40), [33, 11, 0], chunk=16)
    assert [len(level.kept) for level in found] == [33, 11, 0]
    assert set(found[1].kept) < set(found[0].kept)


def test_a_projection_without_bias_is_one_with_a_bias_of_zeros() -> None:
    z, (weight, _) = inputs(12), projection(12, 5)
    (without,) = levels(weight, None, moments(z), singles(12), [6])
    (zeros,) = levels(weight, np.zeros(5), moments(z), singles(12), [6])
    np.testing.assert_array_equal(without.weight, zeros.weight)
    np.testing.assert_array_equal(without.bias, zeros.bias)
    assert np.abs(without.bias).max() > 0.1  # compensation brings one


def test_inputs_that_are_always_zero_or_constant_leave_for_nothing() -> None:
    z, (weight, bias) = inputs(10), projection(10, 4)
    z[:, 3], z[:, 7] = 0, 2.5
    (level,) = levels(weight, bias, moments(z), singles(10), [8])
    assert set(range(10)) - set(level.kept) == {3, 7}
    assert level.cost < 1e-6
    (nothing,) = levels(weight, bias, moments(np.zeros((5, 10))), singles(10), [2])
    assert nothing.cost == 0
    np.testing.assert_array_equal(nothing.bias, bias)


@settings(max_examples=40, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
@given(
    rows=st.integers(1, 14),
    columns=st.integers(1, 6),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    chunk=st.integers(1, 5),
)
def test_drawn_levels_are_least_squares_even_with_fewer_tokens_than_rows(
    rows: int, columns: int, tokens: int, seed: int, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    z, weight, bias = rng.normal(size=(tokens, rows)), rng.normal(size=(rows, columns)), rng.normal(size=columns)
    full, held = z @ weight + bias, DAMPING * float(np.mean(np.sum(z**2, axis=0)))
    for level in levels(weight, bias, moments(z), singles(rows), range(rows + 1), damping=DAMPING, chunk=chunk):
        kept = list(level.kept)
        expected = least_squares(z[:, kept], full, weight[kept], held)
        np.testing.assert_allclose(level.weight, expected[0], atol=1e-6)
        np.testing.assert_allclose(level.bias, expected[1], atol=1e-6)


def test_refit_is_ridge_regression_towards_the_weights_that_were_given() -> None:
    z, (weight, bias) = inputs(15, 2), projection(15, 6)
    target = np.random.default_rng(3).normal(size=(TOKENS, 6)) + z @ weight
    for ridge in (1e-2, 1e-6, 10.0):
        held = ridge * float(np.mean(np.sum(z**2, axis=0)))
        found = refit(moments(z), with_one(z).T @ target, weight, bias, ridge)
        expected = least_squares(z, target, weight, held)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-8)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-8)


@pytest.mark.parametrize(
    ("tokens", "of_levels", "of_refit"), [(30, 0.4, 0.4), (2000, 0.006, 1e-2), (200_000, 1e-4, 1e-2)]
)
def test_weights_are_held_by_half_a_row_a_token(tokens: int, of_levels: float, of_refit: float) -> None:
    rng = np.random.default_rng(5)
    z, (weight, bias) = rng.normal(size=(tokens, 24)), projection(24, 3)
    diagonal = float(np.mean(np.sum(z**2, axis=0)))
    (level,) = levels(weight, bias, moments(z), singles(24), [9])
    rows = list(level.kept)
    expected = least_squares(z[:, rows], z @ weight + bias, weight[rows], of_levels * diagonal)
    np.testing.assert_allclose(level.weight, expected[0], atol=1e-7)
    target = rng.normal(size=(tokens, 3))
    expected = least_squares(z, target, weight, of_refit * diagonal)
    np.testing.assert_allclose(refit(moments(z), with_one(z).T @ target, weight, bias)[0], expected[0], atol=1e-7)
    pull = np.sqrt(of_refit * diagonal)
    tall, right = np.vstack([z, pull * np.eye(24)]), np.vstack([target, pull * weight])
    found = refit_without_bias(moments(z), z.T @ target, weight)
    np.testing.assert_allclose(found, np.linalg.lstsq(tall, right, rcond=None)[0], atol=1e-7)


def test_a_refit_to_few_tokens_does_not_fit_their_noise() -> None:
    rng = np.random.default_rng(6)
    (weight, bias), tokens = projection(40, 3), 60
    z, noise = rng.normal(size=(tokens, 40)), rng.normal(size=(tokens, 3))
    cross = with_one(z).T @ (z @ weight + bias + noise)
    far = [np.square(refit(moments(z), cross, weight, bias, ridge)[0] - weight).sum() for ridge in (None, 1e-2)]
    assert far[0] < 0.5 * far[1]


def test_refit_to_the_own_output_changes_nothing() -> None:
    z, (weight, bias) = inputs(15, 2), projection(15, 6)
    found = refit(moments(z), with_one(z).T @ (z @ weight + bias), weight, bias)
    np.testing.assert_allclose(found[0], weight, atol=1e-9)
    np.testing.assert_allclose(found[1], bias, atol=1e-9)


def test_refit_without_rows_is_the_mean_of_the_target_and_without_tokens_the_level() -> None:
    target = np.random.default_rng(0).normal(size=(9, 4))
    weight, bias = refit(np.full((1, 1), 9.0), target.sum(axis=0)[None], np.empty((0, 4)), np.zeros(4))
    assert weight.shape == (0, 4)
    np.testing.assert_allclose(bias, target.mean(axis=0))
    given_weight, given_bias = projection(3, 4)
    weight, bias = refit(np.zeros((4, 4)), np.zeros((4, 4)), given_weight, given_bias)
    np.testing.assert_array_equal(weight, given_weight)
    np.testing.assert_array_equal(bias, given_bias)
