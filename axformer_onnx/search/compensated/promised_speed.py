"""A speedup that must be measured, not only promised: the table's budget is corrected until it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from axformer_onnx.search.compensated.levels import Choice

MEASURED = 6
"""Choices that are measured to find one that is fast enough."""
CLOSE = 0.02
"""Relative difference of two speedups that are as good as equal."""
ChoiceAt = Callable[[float], Choice | None]
"""The choice that the table promises a speedup for; None: it is out of reach."""
SpeedOf = Callable[[Choice], float]
"""What is measured."""


def as_promised(speedup: float, first: Choice, choice_at: ChoiceAt, speed_of: SpeedOf) -> float:
    """What the table must promise for a graph that is measured to have `speedup`; `first` is a choice that it promises that for."""
    wanted = speedup * speedup / speed_of(first)
    return wanted if choice_at(wanted) is not None else speedup


def fast_enough(
    choice: Choice,
    speedup: float,
    wanted: float,
    choice_at: ChoiceAt,
    speed_of: SpeedOf,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Choice:
    """The slowest choice that is measured fast enough: what the table promised, corrected by what was measured.

    choice, wanted   where to begin, and what the table promises for it
    """
    slow, fast = 0.0, dict[float, Choice]()
    for number in range(MEASURED):
        progress(number, MEASURED)
        found = speed_of(choice)
        if found >= speedup:
            fast[wanted] = choice
        else:
            slow = max(slow, wanted)
        if fast and (found <= speedup * (1 + CLOSE) or (slow and min(fast) / slow < 1 + CLOSE / 2)):
            break
        wanted = float(np.sqrt(slow * min(fast))) if slow and fast else wanted * speedup / found
        further = choice_at(wanted)
        if further is None:
            break
        choice = further
    return fast[min(fast)] if fast else choice


__all__ = ["CLOSE", "MEASURED", "as_promised", "fast_enough"]
