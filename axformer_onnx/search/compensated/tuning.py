"""From costs and prices to a choice that holds under a budget (docs/method.md 2.3, 2.5).

    sweep      true divergence with one unit on one rung, all others as they were; from the top of the model down, so that
               the hidden states below it are reused
    tune       coefficients are mutated; what they lead to is raced against the best so far
    exchange   one unit up, another down, until none helps

Evaluations are counted, and bounded by an `Effort`. Proposals are drawn GENERATION at a time and raced against the same
incumbent, so that the result does not depend on how many of them run side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from axformer_onnx.options import EffortLevel
from axformer_onnx.records import FloatArray
from axformer_onnx.search.compensated.allocation import allocate, exchanges, mutated
from axformer_onnx.search.compensated.divergence import Race
from axformer_onnx.search.compensated.levels import Choice, Unit
from axformer_passes.blocks import parameters_by_layer

if TYPE_CHECKING:
    from axformer_onnx.inputs import Given
    from axformer_onnx.options import OptimizeOptions

GENERATION = 8
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Effort:
    """The bounds of a search.

    calibration_tokens   tokens of the second moments
    refit_tokens         tokens of the refit, of the first of the same rows: with too few it fits them
    sweep_rows           rows of the sweep
    rungs                rungs of a unit that the sweep evaluates; the others are interpolated by their error
    tune_rows            rows of a race
    evaluations          races of tuning, exchanges included

    Tokens and rows are upper bounds: large models get what the MACS of this module pay for.
    """

    calibration_tokens: int
    refit_tokens: int
    sweep_rows: int
    rungs: int
    tune_rows: int
    evaluations: int


EFFORTS: dict[EffortLevel, Effort] = {
    "low": Effort(25_000, 12_000, 96, 5, 192, 0),
    "medium": Effort(80_000, 80_000, 256, 8, 640, 32),
    "high": Effort(200_000, 160_000, 640, 16, 1280, 160),
}

SWEEP_MACS = 8e12
"""Multiply-accumulates of a sweep: about a minute or two on two cores."""
RACE_MACS = 8e12
"""Of all races at medium effort; of others in proportion to their evaluations."""
TOKEN_MACS = 1.2e12
"""Of one run of the model over the tokens of a refit: a refit takes two, and is made for every point."""
_REFITS = 3.0
"""Runs of the model that a refit is worth: the source's, the pruned one's, and the algebra between."""
LEAST_ROWS = 96
LEAST_TOKENS = 10_000
FEWEST_RUNGS = 5


def affordable_tokens(wanted: int, macs_per_token: float) -> int:
    """As many as wanted, or what TOKEN_MACS pay for."""
    return int(min(wanted, max(LEAST_TOKENS, TOKEN_MACS / max(macs_per_token, 1.0))))


def race_rows(effort: Effort, macs_per_row: float) -> int:
    """As many as `effort` says, or what RACE_MACS pay for; half of the model runs for one candidate."""
    affordable = RACE_MACS / max(EFFORTS["medium"].evaluations * macs_per_row / 2, 1.0)
    return int(max(min(LEAST_ROWS, effort.tune_rows), min(effort.tune_rows, affordable)))


def thinned(effort: Effort, units: Sequence[Unit], macs_per_row: float) -> Effort:
    """The same with fewer rungs, not below FEWEST_RUNGS, where all of them on LEAST_ROWS are more than SWEEP_MACS pay for."""
    rungs = effort.rungs
    while rungs > FEWEST_RUNGS and _swept(units, rungs) * LEAST_ROWS * macs_per_row / 2 > SWEEP_MACS:
        rungs -= 1
    return dataclasses.replace(effort, rungs=rungs)


def _swept(units: Sequence[Unit], rungs: int) -> int:
    """Candidates of a sweep."""
    return sum(len(swept_rungs(unit, rungs)) for unit in units)


def sweep_rows(effort: Effort, units: Sequence[Unit], macs_per_row: float) -> int:
    """As many as `effort` says, or what SWEEP_MACS pay for; half of the model runs for one rung."""
    affordable = SWEEP_MACS / max(_swept(units, effort.rungs) * macs_per_row / 2, 1.0)
    return int(max(min(LEAST_ROWS, effort.sweep_rows), min(effort.sweep_rows, affordable)))


def expected_tokens(options: OptimizeOptions, given: Given, points: int) -> float:
    """Tokens through the whole model that the search will take, with so many operating points; a part counts as that part."""
    effort, tokens = EFFORTS[options.effort], given.encoded["search"]
    macs, mean = float(sum(parameters_by_layer(given.source.anatomy))), float(tokens.row_lengths.mean())
    ladders = 2 if options.int8 else 1
    rungs = ladders * effort.rungs * sum(len(layer.blocks) for layer in given.source.anatomy.layers)
    affordable = SWEEP_MACS / max(rungs * macs * mean / 2, 1.0)
    sweep = rungs * min(effort.sweep_rows, len(tokens), affordable) * mean / 2
    tunings = 2 if options.goal.kind == "drop" else 1  # once more near the answer
    races = tunings * effort.evaluations * min(race_rows(effort, macs * mean), len(tokens)) * mean / 2
    compensation = affordable_tokens(effort.calibration_tokens, macs) + points * _REFITS * affordable_tokens(
        effort.refit_tokens, macs
    )
    select = points * float(given.encoded["select"].row_lengths.sum())
    return sweep + races + select + (0.0 if options.is_whole else compensation)


Evaluate = Callable[[Sequence[Choice], FloatArray | None], list[Race]]
"""(choices, the incumbent's rows or None) -> a race for each."""


def swept_rungs(unit: Unit, most: int) -> list[int]:
    """The rungs that the sweep evaluates: evenly spaced, the first removal and the empty one of each ladder among them, and of
    integers the whole one."""
    height = unit.height
    spaced = sorted({int(r) for r in np.linspace(1, height - 1, min(most, height - 1)).round()})
    return [ladder[r] for ladder in unit.ladders for r in ([0] if ladder.start else []) + spaced]


def filled(unit: Unit, swept: dict[int, float]) -> FloatArray:
    """float64[rungs]: the divergence of every rung, from those that were evaluated.

    Between two of them log(divergence) is linear in log(error): both are squares of the same small change. Never falling from rung
    to rung of a ladder, since noise alone would say that less costs less.
    """
    found = []
    for ladder in unit.ladders:
        errors = [unit.rungs[r].error for r in ladder]
        found.append(_filled(errors, {r - ladder.start: swept[r] for r in ladder if r in swept}))
    return np.concatenate(found)


def _filled(errors: Sequence[float], swept: Mapping[int, float]) -> FloatArray:
    """float64[rungs of one ladder]: as `swept` has them, between them by their errors; the first is 0 unless it is there."""
    from scipy.optimize import isotonic_regression

    floor, first = 1e-12, swept.get(0, 0.0)
    at = sorted(swept.keys() - {0})
    if not at:
        return np.array([first])
    rising = np.maximum(isotonic_regression([swept[r] for r in at]).x, floor)
    logs = np.log(np.maximum(errors, floor))
    between = np.exp(np.interp(logs[1:], logs[at], np.log(rising)))
    between[: at[0] - 1] = np.minimum(between[: at[0] - 1], rising[0])
    result = np.concatenate([[first], between])
    for rung, value in zip(at, rising, strict=True):
        result[rung] = value
    return np.asarray(np.maximum.accumulate(result))


@dataclasses.dataclass
class Tuned:
    """The best choice so far under a budget, its rows, the coefficients that led to it, and how many races it took."""

    choice: Choice
    rows: FloatArray
    coefficients: FloatArray
    evaluations: int = 0

    @property
    def divergence(self) -> float:
        """Mean over the rows."""
        return float(self.rows.mean())


def tune(
    costs: Sequence[FloatArray],
    prices: Sequence[FloatArray],
    budget: float,
    evaluate: Evaluate,
    *,
    evaluations: int,
    seed: int,
    heights: Sequence[int] | None = None,
    start: FloatArray | None = None,
    progress: Callable[[int, int], None] = lambda done, left: None,
) -> Tuned | None:
    """The choice of least true divergence that was found within the budget; None where nothing fits it.

    heights   as `exchanges` takes them
    start     float64[units]: coefficients to begin with; None: 1
    """
    start = np.ones(len(costs)) if start is None else start
    first = allocate(costs, prices, budget, start)
    if first is None:
        return None
    (race,) = evaluate([Choice(first)], None)
    best = Tuned(Choice(first), race.divergence, start)
    generator, seen = np.random.default_rng(seed), {first}
    half = evaluations // 2
    while best.evaluations < half:
        drawn = [mutated(best.coefficients, generator) for _ in range(GENERATION)]
        found = [(allocate(costs, prices, budget, c), c) for c in drawn]
        fresh = {rungs: c for rungs, c in found if rungs is not None and rungs not in seen}
        best.evaluations += GENERATION
        seen |= fresh.keys()
        winner = _race(best, list(fresh), evaluate)
        if winner is not None:
            best.choice, best.rows, best.coefficients = Choice(winner[0]), winner[1], fresh[winner[0]]
        progress(best.evaluations, evaluations)
    _exchange(best, costs, prices, budget, evaluate, evaluations, seen, heights, progress)
    return best


def _exchange(
    best: Tuned,
    costs: Sequence[FloatArray],
    prices: Sequence[FloatArray],
    budget: float,
    evaluate: Evaluate,
    evaluations: int,
    seen: set[tuple[int, ...]],
    heights: Sequence[int] | None,
    progress: Callable[[int, int], None],
) -> None:
    """Neighbours of the best, the most promising first, until none helps or the evaluations are used up."""
    weighted = [c * cost for c, cost in zip(best.coefficients, costs, strict=True)]
    improved = True
    while improved and best.evaluations < evaluations:
        improved = False
        found = exchanges(weighted, prices, budget, best.choice.rungs, heights)
        neighbours = (r for r in found if r not in seen)
        for some in chunks(neighbours, GENERATION):
            seen.update(some)
            best.evaluations += len(some)
            winner = _race(best, some, evaluate)
            progress(min(best.evaluations, evaluations), evaluations)
            if winner is not None:
                best.choice, best.rows, improved = Choice(winner[0]), winner[1], True
                break
            if best.evaluations >= evaluations:
                break


def _race(
    best: Tuned, rungs: Sequence[tuple[int, ...]], evaluate: Evaluate
) -> tuple[tuple[int, ...], FloatArray] | None:
    """The proposal that beats the incumbent by most, and its rows; None where none does."""
    if not rungs:
        return None
    races = evaluate([Choice(r) for r in rungs], best.rows)
    won = [(race.mean, i) for i, race in enumerate(races) if race.finished and race.mean < best.divergence]
    return (rungs[min(won)[1]], races[min(won)[1]].divergence) if won else None


def chunks(items: Iterable[Item], size: int) -> Iterable[list[Item]]:
    """`size` items at a time."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


__all__ = [
    "EFFORTS",
    "GENERATION",
    "LEAST_ROWS",
    "Effort",
    "Evaluate",
    "Tuned",
    "affordable_tokens",
    "chunks",
    "expected_tokens",
    "filled",
    "race_rows",
    "sweep_rows",
    "swept_rungs",
    "thinned",
    "tune",
]
