"""A speedup that was asked for: what the table promises wrongly is corrected by what is measured, from both sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from axformer_onnx.search.compensated.levels import Choice
from axformer_onnx.search.compensated.promised_speed import MEASURED, as_promised, fast_enough

STEPS = np.arange(1.0, 6.0, 0.02)
"""The choices: each has its number for a rung, and the speedup that the table promises for it stands here."""


def choice_at(speedup: float) -> Choice | None:
    at = int(np.searchsorted(STEPS, speedup - 1e-9))
    return Choice((at,)) if at < len(STEPS) else None


def first_at(speedup: float) -> Choice:
    found = choice_at(speedup)
    assert found is not None
    return found


class Speeds:
    """What is measured of a choice, by what the table promises for it; `asked`: the promises that were measured."""

    def __init__(self, true_of: Callable[[float], float]) -> None:
        self._true_of, self.asked = true_of, list[float]()

    def __call__(self, choice: Choice) -> float:
        self.asked.append(STEPS[choice.rungs[0]])
        return self._true_of(self.asked[-1])


@pytest.mark.parametrize("promise", [0.8, 0.9, 0.99, 1.0, 1.05, 1.3])
@pytest.mark.parametrize("speedup", [1.5, 2.0, 2.33])
def test_the_choice_is_fast_enough_and_not_much_faster(promise: float, speedup: float) -> None:
    speeds = Speeds(lambda speed: promise * speed)
    found = fast_enough(first_at(speedup), speedup, speedup, choice_at, speeds)
    assert speedup <= promise * STEPS[found.rungs[0]] <= 1.03 * speedup
    assert len(speeds.asked) <= MEASURED


def test_a_step_in_what_is_measured_is_met_from_its_fast_side() -> None:
    speeds = Speeds(lambda speed: speed - 0.2 if speed < 2.3 else speed + 0.1)
    found = fast_enough(first_at(2.15), 2.15, 2.15, choice_at, speeds)
    assert 2.3 - 1e-9 <= STEPS[found.rungs[0]] <= 2.37


def test_what_is_out_of_reach_ends_with_one_faster_than_what_was_measured() -> None:
    speeds = Speeds(lambda speed: min(speed, 1.7))
    found = fast_enough(first_at(2.0), 2.0, 2.0, choice_at, speeds)
    assert STEPS[found.rungs[0]] >= max(speeds.asked) > 4 and len(speeds.asked) <= MEASURED


@pytest.mark.parametrize("promise", [0.8, 1.0, 1.3])
def test_tuning_is_for_what_the_table_must_promise(promise: float) -> None:
    speeds = Speeds(lambda speed: promise * speed)
    wanted = as_promised(2.0, first_at(2.0), choice_at, speeds)
    assert wanted == pytest.approx(2.0 / promise, rel=0.02) and len(speeds.asked) == 1
    found = fast_enough(first_at(wanted), 2.0, wanted, choice_at, speeds)
    assert 2.0 <= promise * STEPS[found.rungs[0]] <= 2.06
    assert len(speeds.asked) <= 3, "nothing is left to correct"


def test_what_the_table_cannot_promise_is_tuned_for_what_was_asked() -> None:
    assert as_promised(4.0, first_at(4.0), choice_at, Speeds(lambda speed: min(speed, 0.5))) == 4.0
