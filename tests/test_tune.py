"""Tuning on a divergence that is known in closed form, with interactions that the single costs do not show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from axformer_onnx.records import FloatArray
from axformer_onnx.search.compensated.allocation import allocate, price_of
from axformer_onnx.search.compensated.divergence import Race
from axformer_onnx.search.compensated.levels import Choice, Rung, Unit
from axformer_onnx.search.compensated.tuning import (
    EFFORTS,
    FEWEST_RUNGS,
    GENERATION,
    LEAST_ROWS,
    LEAST_TOKENS,
    affordable_tokens,
    filled,
    race_rows,
    sweep_rows,
    swept_rungs,
    thinned,
    tune,
)

UNITS, RUNGS = 6, 5
PRICES = [np.linspace(1.0, 0.0, RUNGS)] * UNITS
COSTS = [np.linspace(0.0, 1.0, RUNGS) ** 2 * (1 + u) for u in range(UNITS)]


def truth(rungs: Sequence[int]) -> float:
    """The sum of the costs, and much more where neighbours shrink together."""
    part = np.array(rungs) / (RUNGS - 1)
    return float(sum(cost[r] for cost, r in zip(COSTS, rungs, strict=True)) + 8 * (part[:-1] * part[1:]).sum())


class Asked:
    """Evaluates choices and remembers them."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []

    def __call__(self, choices: Sequence[Choice], incumbent: FloatArray | None) -> list[Race]:
        self.choices += choices
        return [Race(np.full(10, truth(choice.rungs)), True) for choice in choices]


@pytest.mark.parametrize("evaluations", [0, 16, 64, 200])
def test_tuning_stays_in_the_budget_and_within_its_evaluations_and_never_gets_worse(evaluations: int) -> None:
    asked = Asked()
    found = tune(COSTS, PRICES, 3.0, asked, evaluations=evaluations, seed=0)
    first = allocate(COSTS, PRICES, 3.0)
    assert found is not None and first is not None
    assert price_of(PRICES, found.choice.rungs) <= 3.0 + 1e-9
    assert found.divergence == pytest.approx(truth(found.choice.rungs))
    assert found.divergence <= truth(first)
    assert len(asked.choices) <= 1 + evaluations + GENERATION
    assert len(set(asked.choices)) == len(asked.choices), "a choice was asked twice"


def test_tuning_begins_with_the_coefficients_that_it_is_given() -> None:
    start = np.array([8.0, 1.0, 1.0, 1.0, 1.0, 0.1])
    found = tune(COSTS, PRICES, 3.0, Asked(), evaluations=0, seed=0, start=start)
    assert found is not None and found.choice.rungs == allocate(COSTS, PRICES, 3.0, start)
    assert found.choice.rungs != allocate(COSTS, PRICES, 3.0) and (found.coefficients == start).all()


def test_tuning_finds_what_the_single_costs_do_not_show() -> None:
    found = tune(COSTS, PRICES, 3.0, Asked(), evaluations=200, seed=0)
    first = allocate(COSTS, PRICES, 3.0)
    assert found is not None and first is not None and found.divergence < 0.9 * truth(first)


def test_equal_seeds_find_the_same_and_a_budget_out_of_reach_finds_nothing() -> None:
    one, two = (tune(COSTS, PRICES, 2.5, Asked(), evaluations=40, seed=3) for _ in range(2))
    assert one is not None and two is not None and one.choice == two.choice
    assert (one.coefficients == two.coefficients).all()
    assert tune(COSTS, PRICES, -0.1, Asked(), evaluations=40, seed=3) is None


def test_rungs_that_were_not_asked_lie_between_their_neighbours_along_the_error() -> None:
    errors = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    unit = Unit("feed_forward", (0,), 5, tuple(Rung(tuple(range(5 - i)), e) for i, e in enumerate(errors)))
    assert swept_rungs(unit, 3) == [1, 3, 5] and swept_rungs(unit, 99) == [1, 2, 3, 4, 5]
    known = {1: 0.1, 3: 0.4, 5: 1.6}  # divergence = error / 10
    assert filled(unit, known) == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8, 1.6])


def test_divergence_never_falls_from_rung_to_rung() -> None:
    unit = Unit("attention", (0,), 4, tuple(Rung(tuple(range(4 - i)), float(i)) for i in range(5)))
    found = filled(unit, {1: 0.3, 2: 0.1, 3: 0.2, 4: 0.9})
    assert (np.diff(found) >= 0).all() and found[0] == 0.0 and found[4] == pytest.approx(0.9)


def test_large_models_are_swept_on_fewer_rows_but_never_on_too_few() -> None:
    units = [Unit("attention", (i,), 4, tuple(Rung(tuple(range(4 - j)), float(j)) for j in range(5))) for i in range(6)]
    medium = EFFORTS["medium"]
    found = [sweep_rows(medium, units, macs) for macs in (1e6, 1e9, 2e9, 1e10, 1e12)]
    assert found[0] == medium.sweep_rows and found[-1] == LEAST_ROWS and found == sorted(found, reverse=True)
    assert LEAST_ROWS < sweep_rows(medium, units, 4e9) < medium.sweep_rows
    assert thinned(medium, units, 1e6) == medium and thinned(medium, units, 1e12).rungs == FEWEST_RUNGS
    assert FEWEST_RUNGS <= thinned(medium, units, 2e10).rungs <= medium.rungs


def test_races_and_refits_take_what_they_may_cost() -> None:
    medium = EFFORTS["medium"]
    rows = [race_rows(medium, macs) for macs in (1e6, 1e9, 2e9, 1e12)]
    assert rows[0] == medium.tune_rows and rows[-1] == LEAST_ROWS and rows == sorted(rows, reverse=True)
    tokens = [affordable_tokens(80_000, macs) for macs in (1e6, 5e7, 1e12)]
    assert tokens == [80_000, 24_000, LEAST_TOKENS] and affordable_tokens(3, 1e6) == 3
