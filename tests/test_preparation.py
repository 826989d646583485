"""Questions of a search: neighbours share what they can, and every answer comes back to its question."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from axformer_onnx.search.compensated import preparation
from axformer_onnx.search.compensated.divergence import Race
from axformer_onnx.search.compensated.levels import Choice
from axformer_onnx.search.compensated.preparation import Preparation
from axformer_onnx.search.compensated.workers import Task
from axformer_onnx.tasks import CLASSIFICATION


def test_what_is_alike_at_the_bottom_is_asked_one_after_the_other() -> None:
    made, order = Preparation.__new__(Preparation), list[tuple[int, ...]]()

    def scoring(tasks: Sequence[Task]) -> list[Race]:
        order.extend(task.choice.rungs for task in tasks)
        return [Race(np.array([float(sum(task.choice.rungs))]), True) for task in tasks]

    made.asked, made.scoring = 0, scoring
    asked = [(2, 0, 1), (0, 5, 0), (2, 0, 0), (0, 4, 9), (1, 1, 1)]
    found = made.ask([Task(Choice(rungs)) for rungs in asked])
    assert [race.mean for race in found] == [sum(rungs) for rungs in asked]
    assert order == sorted(asked) and made.asked == 5


@pytest.mark.parametrize(("rows", "asked"), [(1000, 300), (120, 120)])
def test_rows_are_drawn_from_a_pool_without_bias(rows: int, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(3).normal(0, 3, (rows, 2))
    divergence = np.random.default_rng(4).lognormal(0, 1, rows)
    means, drawn = [], np.empty(0, dtype=np.int64)
    for seed in range(200):
        made = Preparation.__new__(Preparation)
        made.options, made.watch = SimpleNamespace(seed=seed), lambda *args: None  # type: ignore[assignment]
        made.sessions = SimpleNamespace(settings=lambda plan: [])  # type: ignore[assignment]
        made.given = SimpleNamespace(  # type: ignore[assignment]
            rows={"search": Numbered(rows)}, reading=SimpleNamespace(task=SimpleNamespace(kind=CLASSIFICATION))
        )
        monkeypatch.setattr(preparation, "scorer_of", lambda sessions, at, *rest: Scorer(logits[at]))
        drawn, weights = made._draw(100)
        assert made.stages_drawing == asked and len(set(drawn.tolist())) == len(drawn) == min(
            100, max(96, rows * 2 // 3)
        )
        means.append((weights * divergence[drawn]).mean())
    assert drawn.max() < rows
    assert np.mean(means) == pytest.approx(divergence.mean(), abs=4 * np.std(means) / np.sqrt(len(means)))


class Numbered(list[int]):
    """So many rows; taking some gives their numbers."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count))

    def take(self, at: np.ndarray) -> np.ndarray:
        return at


class Scorer:
    """Knows the outputs, and runs one stage for each row."""

    def __init__(self, outputs: np.ndarray) -> None:
        self._outputs, self.stages_run = outputs, len(outputs)

    def outputs(self, settings: list[object]) -> np.ndarray:
        return self._outputs
