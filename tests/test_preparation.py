"""Questions of a search: neighbours share what they can, and every answer comes back to its question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from axformer_onnx.search.divergence import Race
from axformer_onnx.search.preparation import Preparation
from axformer_onnx.search.units import Choice
from axformer_onnx.search.workers import Task


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
