"""Within a drop, coefficients are tuned once more near the answer: on a divergence that is known in closed form."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_tune import COSTS, PRICES, UNITS, Asked, truth

from axformer_onnx.records import Interval
from axformer_onnx.scoring.judgement import Drop
from axformer_onnx.search.compensated import goals
from axformer_onnx.search.compensated.latency_table import LatencyTable
from axformer_onnx.search.compensated.levels import Choice
from axformer_onnx.search.compensated.operating_points import Point
from axformer_passes.plan import Plan

REST = 1.0
TABLE = LatencyTable(1, 8, UNITS + REST, UNITS + REST, tuple(tuple(prices.tolist()) for prices in PRICES))


class Built:
    """Points whose drop is their true divergence."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def point(self, choice: Choice, predicted: float) -> Point:
        lost = truth(choice.rungs)
        speed, drop = Interval(predicted, predicted, predicted), Drop(lost, 0.0)
        self.points.append(Point(choice, Plan(), Path(), predicted, speed, 90 - lost, drop, lost, 1))
        self.points.sort(key=lambda point: point.predicted)
        return self.points[-1]

    def keep_graphs(self, points: Any) -> None:
        """There are none."""


def searched(drop: float, evaluations: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Point, list[str]]:
    """(the answer, the names under which was tuned)."""
    monkeypatch.setattr(goals, "FEWEST", 4)
    names, built = list[str](), Built()
    options = SimpleNamespace(goal=SimpleNamespace(kind="drop", value=drop), seed=0, is_whole=False)
    inputs = SimpleNamespace(options=options, watch=lambda what, done, of: names.append(what))
    prepared = SimpleNamespace(
        table=TABLE,
        costs=COSTS,
        levels=SimpleNamespace(int8=None, units=[SimpleNamespace(kind="feed_forward", layers=(), height=5)] * UNITS),
        evaluator=SimpleNamespace(races=Asked()),
        scored=SimpleNamespace(
            divergence=SimpleNamespace(forget=lambda: None), effort=SimpleNamespace(evaluations=evaluations)
        ),
    )
    exact = built.point(Choice((0,) * UNITS), TABLE.speedup(TABLE.whole_ms))
    choosing = goals._Choosing(inputs, prepared, built, exact, [])  # type: ignore[arg-type]
    answer, reached = choosing._decide()
    assert reached and answer.drop.measured <= drop
    return answer, list(dict.fromkeys(name for name in names if name.startswith("tuning")))


@pytest.mark.parametrize("drop", [1.0, 12.0])
def test_coefficients_are_tuned_again_where_the_answer_lies(drop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, tuned = searched(drop, 64, monkeypatch)
    assert len(tuned) == 2 and tuned[0] == "tuning at x2"
    assert float(tuned[1].removeprefix("tuning at x")) == pytest.approx(answer.predicted, rel=0.25)


def test_answers_are_faster_than_with_the_first_coefficients_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drops = np.linspace(0.5, 14.0, 8)
    found = [searched(float(drop), 64, monkeypatch)[0].predicted for drop in drops]
    monkeypatch.setattr(goals, "NEAR", np.inf)
    once = [searched(float(drop), 64, monkeypatch)[0].predicted for drop in drops]
    assert all(np.array(found) >= once) and np.mean(found) > 1.05 * np.mean(once)


def test_low_effort_tunes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert searched(2.0, 0, monkeypatch)[1] == []


def test_points_are_built_until_one_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [searched(drop, 64, monkeypatch)[0].predicted for drop in (45.0, 55.0, 1000.0)]
    assert max(goals.LADDER) < found[0] < found[1] < found[2]
    assert found[2] * goals.ONWARD >= TABLE.speedup(0.0), "all of it passes"
