"""Which runs were left alone, and is that enough to say how fast a model is?

A run was disturbed where its threads waited for a core (the system tells), or where it took longer than the model does at its best
steady pace (its own times tell): a neighbour that shares a core's execution units or the memory of a virtual machine is seen in
nothing else, and it slows one arithmetic down more than another, so that a ratio from such rounds is another ratio. Rounds in
which a model was disturbed are left out, not averaged; with too few of the others there is no figure.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray, Interval
from axformer_onnx.runtime.rounds import Rounds

BoolArray = npt.NDArray[np.bool_]
WAITED = 0.03
"""Of a run's time: so long its threads may have waited for a core, and the run still counts."""
BAND = 0.10
"""Half the width of a steady pace, in the logarithm of the time."""
ENOUGH = 12
"""Undisturbed rounds that a figure needs, of many; of few rounds three fifths."""
SHARE = 0.1
"""Of all rounds: so many at least are a pace, and not luck."""
PACE = 0.15
"""Standard error of the logarithm of a speed for each unit of the logarithm of how much slower than at its fastest the machine
was: a neighbour slows one arithmetic down more than another. From thirty comparisons of three pairs of graphs, at 65 to 100 % of
the pace; others are judged by it in bench/results/busy.json."""
MIX = 0.7
"""Share of the spread of undisturbed rounds, in the logarithm of their time, by which a speed moves from one comparison to the
next: within a band there still are several paces, and how often each is met differs. Measured on a machine with neighbours."""
SESSIONS = 0.005
"""By which it moves from one pair of sessions to the next, whose weights lie elsewhere: measured on a free machine."""
WIDEST = 1.35
"""Upper over lower end of an interval that is still a figure."""
_FAST = 1.2
"""Times as long: while it takes longer, rounds go on for as long as they may, for a better moment."""
SLOWEST = math.exp(math.log(WIDEST) / (2 * 1.96 * PACE))
"""Times as long as at its fastest that the fixed arithmetic may take: from there on the pace alone makes an interval too wide."""
CROWDED = 0.5
"""Cores by which others may exceed their room, in the mean over all rounds: up to there it was bursts, and the rounds tell. Beyond,
a thread may wait for a whole run without being counted, since the system counts a wait when it ends."""


@dataclasses.dataclass(frozen=True)
class Alone:
    """What was left alone.

    runs   bool[models, rounds]
    free   bool[models, rounds]: did not wait for a core, whatever else
    """

    runs: BoolArray
    free: BoolArray

    def pairs(self, i: int) -> BoolArray:
        """bool[rounds]: those in which both the first model and model i were left alone; of the first its own."""
        return np.asarray(self.runs[0] & self.runs[i])


def left_alone(rounds: Rounds) -> Alone:
    """Judge every run by its waiting, then by the model's best steady pace."""
    free = rounds.wait_ms <= WAITED * rounds.wall_ms
    runs = np.array([_at_pace(wall, ok) for wall, ok in zip(rounds.wall_ms, free, strict=True)])
    return Alone(runs, free)


def needed(rounds: int) -> int:
    """Undisturbed rounds that a figure needs, of so many made."""
    return max(min(ENOUGH, math.ceil(0.6 * rounds)), math.ceil(SHARE * rounds))


def _at_pace(wall_ms: FloatArray, free: BoolArray) -> BoolArray:
    """bool[rounds]: free runs within BAND of the fastest pace that `needed` of them kept; none where there is no such pace.

    That pace: of the times in ascending order the first that many that lie within BAND of each other, then the median of what is
    within BAND of the last estimate, until it stays.
    """
    logs, wanted = np.log(wall_ms), needed(len(wall_ms))
    ascending = np.sort(logs[free])
    if len(ascending) < wanted:
        return np.zeros_like(free)
    dense = np.flatnonzero(ascending[wanted - 1 :] - ascending[: len(ascending) - wanted + 1] <= BAND)
    if not len(dense):
        return np.zeros_like(free)
    centre = float(np.median(ascending[dense[0] : dense[0] + wanted]))
    for _ in range(10):
        centre = float(np.median(ascending[np.abs(ascending - centre) <= BAND]))
    return np.asarray(free & (np.abs(logs - centre) <= BAND))


def is_enough(rounds: Rounds) -> bool:
    """Are there enough undisturbed rounds of every model, on a machine about as fast as it can be?"""
    alone, wanted = left_alone(rounds), needed(rounds.wall_ms.shape[1])
    pairs = [alone.pairs(i) for i in range(len(rounds.wall_ms))]
    return all(kept.sum() >= wanted and slowness(rounds, kept) <= _FAST for kept in pairs)


def slowness(rounds: Rounds, kept: BoolArray) -> float:
    """How many times as long as at its fastest the machine took for the fixed arithmetic, in the median of the rounds `kept`."""
    return max(1.0, float(np.median(rounds.slowness[kept])))


def unseen(rounds: Rounds, kept: BoolArray, i: int) -> float:
    """Standard error of the logarithm of model i's speed that the rounds `kept` cannot show by themselves."""
    spread = float(np.log(rounds.wall_ms[[0, i]][:, kept]).mean(axis=0).std())
    return math.hypot(SESSIONS, MIX * spread, pace_error(rounds, kept))


def pace_error(rounds: Rounds, kept: BoolArray) -> float:
    """The part of it that comes from a machine that was slow, and that comparisons on the same machine have in common."""
    return PACE * math.log(slowness(rounds, kept))


def doubt(rounds: Rounds, alone: Alone, i: int, threads: int, ratio: Interval | None) -> str:
    """Why what these rounds say of model i does not hold, or an empty string.

    threads   that the models run on
    ratio     of the first model to it; None for the first itself
    """
    pairs = alone.pairs(i)
    count, kept = len(pairs), int(pairs.sum())
    seen = rounds.load.words
    if kept < needed(count):
        if int((alone.free[0] & alone.free[i]).sum()) < needed(count):
            return _with(seen, f"threads waited for a core in all but {int(alone.free[i].sum())} of {count} rounds")
        return _with(seen, f"only {kept} of {count} rounds ran at a steady pace")
    if rounds.load.crowds(threads, CROWDED if rounds.told else 0.0):
        return seen
    slow = slowness(rounds, pairs)
    if slow > SLOWEST:
        return _with(seen, f"the machine ran at {100 / slow:.0f} % of the pace that it has when nothing disturbs it")
    if ratio is not None and ratio.high > WIDEST * ratio.low:
        return _with(seen, f"undisturbed rounds disagree, from {ratio.low:.2f} to {ratio.high:.2f} times as fast")
    return ""


def _with(seen: str, what: str) -> str:
    return f"{seen}; {what}" if seen else what
