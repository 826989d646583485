"""A speedup that was asked for: what the table promises wrongly is corrected by what is measured, from both sides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from axformer_onnx.search.compensated.goals import MEASURED, _Choosing
from axformer_onnx.search.compensated.levels import Choice


def choosing(true_of: Any, steps: np.ndarray) -> tuple[Any, list[float]]:
    """A search whose choices are the numbers of `steps`, speeds as the table has them; `true_of` says what is measured."""
    found, asked = _Choosing.__new__(_Choosing), list[float]()

    def speed_of(choice: Choice) -> Any:
        asked.append(steps[choice.rungs[0]])
        return SimpleNamespace(value=true_of(asked[-1]))

    def next_choice(tuned: Any, speed: float) -> Choice | None:
        at = int(np.searchsorted(steps, speed - 1e-9))
        return Choice((at,)) if at < len(steps) else None

    found.builder, found.watch = SimpleNamespace(speed_of=speed_of), lambda *args: None
    found._choice = next_choice  # type: ignore[method-assign]
    return found, asked


STEPS = np.arange(1.0, 6.0, 0.02)


@pytest.mark.parametrize("promise", [0.8, 0.9, 0.99, 1.0, 1.05, 1.3])
@pytest.mark.parametrize("speedup", [1.5, 2.0, 2.33])
def test_the_choice_is_fast_enough_and_not_much_faster(promise: float, speedup: float) -> None:
    search, asked = choosing(lambda speed: promise * speed, STEPS)
    first = search._choice(None, speedup)
    found = search._fast_enough(SimpleNamespace(choice=first), speedup, speedup)
    assert speedup <= promise * STEPS[found.rungs[0]] <= 1.03 * speedup
    assert len(asked) <= MEASURED


def test_a_step_in_what_is_measured_is_met_from_its_fast_side() -> None:
    search, _ = choosing(lambda speed: speed - 0.2 if speed < 2.3 else speed + 0.1, STEPS)
    found = search._fast_enough(SimpleNamespace(choice=search._choice(None, 2.15)), 2.15, 2.15)
    assert 2.3 - 1e-9 <= STEPS[found.rungs[0]] <= 2.37


def test_what_is_out_of_reach_ends_with_one_faster_than_what_was_measured() -> None:
    search, asked = choosing(lambda speed: min(speed, 1.7), STEPS)
    found = search._fast_enough(SimpleNamespace(choice=search._choice(None, 2.0)), 2.0, 2.0)
    assert STEPS[found.rungs[0]] >= max(asked) > 4 and len(asked) <= MEASURED


@pytest.mark.parametrize("promise", [0.8, 1.0, 1.3])
def test_tuning_is_for_what_the_table_must_promise(promise: float) -> None:
    search, asked = choosing(lambda speed: promise * speed, STEPS)
    wanted = search._as_promised(2.0)
    assert wanted == pytest.approx(2.0 / promise, rel=0.02) and len(asked) == 1
    found = search._fast_enough(SimpleNamespace(choice=search._choice(None, wanted)), 2.0, wanted)
    assert 2.0 <= promise * STEPS[found.rungs[0]] <= 2.06
    assert len(asked) <= 3, "nothing is left to correct"


def test_what_the_table_cannot_promise_is_tuned_for_what_was_asked() -> None:
    search, _ = choosing(lambda speed: min(speed, 0.5), STEPS)
    assert search._as_promised(4.0) == 4.0
