"""What a latency table is wrong by.

Single rungs: `believed` weighs what was measured of each against what its multiply-accumulates say.

Plans that change all units at once: their bias, which is taken off, and what is left. Prices come from models in which one class of
units is changed. Of plans that change them all a few are timed, too (`mixed`), made as a search makes them: by dynamic programming,
with costs that are drawn. Against what their prices add up to

    summed     x = what prices add up to save / what the model without any unit saves, between 0 and 1
    measured   y = what is saved / the same

Both ends are right: at 0 nothing is removed, and prices are scaled to the model without any unit. Between them the corrected saving
is the parabola through both ends, its one coefficient fitted to the timed plans by least squares of the errors in speed:

    g(x) = x + a x (1 - x),  -1 <= a <= 1, so that it rises

It is a function of the sum alone, so the prices still add up under a budget: it is the budget that is translated. The error is what
a plan's speed is off by, with a fitted to the others.

(Of ten finished runs on four models, fitted to their own points: speeds by the sum were 8 % off in the median, with one factor on
all savings 2.8 %, with the parabola 2.2 %, with a second coefficient 2.0 %. A broken line through a few plans follows their noise.
Plans in which every unit keeps the same part of its price are no such choices: with integers they were up to 30 % faster than their
sum, where choices of a search were 4 % faster.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from axformer_onnx.records import FloatArray
from axformer_onnx.search.compensated.allocation import allocate, price_of
from axformer_onnx.search.compensated.levels import Unit

SPREAD = 0.3
"""Standard deviation of what a rung saves about what its multiply-accumulates say, as a part of that: at least."""
_WIDEST, _FITS = 10.0, 5
PARTS = (0.75, 0.5, 0.25)
"""Of the price of all units: what the timed plans keep."""
DRAWS = 2
"""Plans for each of PARTS."""
_MOST_BENT = 0.999
"""Of a: every saving has one inverse."""
_UNLIKE = 1.0
"""Standard deviation of the logarithm of a unit's weight where parts are drawn."""
_INTEGERS = 0.03
"""Cost of a whole unit in integers beside that of an empty one in float32, in plans that are drawn: both occur."""


def believed(measured: FloatArray, errors: FloatArray, design: FloatArray, overhead: float) -> FloatArray:
    """Measured savings, drawn towards `design` times rates that are fitted to them all, by precision: float64[variants].

    errors    standard errors of what was measured
    overhead  standard deviation of what a block costs beside its multiply-accumulates

    Truths spread about such a prediction p with the standard deviation spread * p, at least SPREAD: as much as explains what is
    left of the measured ones (Paule and Mandel, J. Res. NBS 87, 1982). So nothing is drawn where costs do not follow the
    multiply-accumulates, nor where they were measured well.
    """
    from scipy.optimize import brentq

    design = design[:, design.any(axis=0)]
    free: int = max(1, len(measured) - design.shape[1])

    def predicted(spread: float) -> tuple[FloatArray, FloatArray]:
        """(savings, variances of the true ones about them)."""
        variance = overhead**2 + (spread * measured) ** 2
        for _ in range(_FITS):
            weight = 1 / np.sqrt(errors**2 + variance)
            rates = np.linalg.lstsq(design * weight[:, None], measured * weight, rcond=None)[0]
            variance = overhead**2 + (spread * (design @ rates)) ** 2
        return design @ rates, variance

    def excess(spread: float) -> float:
        """Of what is left over what `errors` and this spread explain."""
        prediction, variance = predicted(spread)
        return float(((measured - prediction) ** 2 / (errors**2 + variance)).sum()) - free

    spread = SPREAD
    if excess(SPREAD) > 0:
        spread = _WIDEST if excess(_WIDEST) > 0 else float(brentq(excess, SPREAD, _WIDEST, xtol=1e-3))
    prediction, variance = predicted(spread)
    return np.asarray(prediction + variance / (variance + errors**2) * (measured - prediction))


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A plan of all units together: what is saved against the model by the sum of prices, and measured, both in milliseconds."""

    summed_ms: float
    measured_ms: float


@dataclasses.dataclass(frozen=True)
class Correction:
    """The parabola from what prices add up to, to what is saved.

    whole_ms   what the model saves without any unit
    bend       a: negative where sums promise too much
    """

    whole_ms: float
    bend: float = 0.0

    def saved_ms(self, summed_ms: float) -> float:
        """What is saved where prices add up to this; what costs more than the model (hard attention) is left as it is."""
        if not 0 < summed_ms < self.whole_ms:
            return summed_ms
        x = summed_ms / self.whole_ms
        return self.whole_ms * (x + self.bend * x * (1 - x))

    def summed_ms(self, saved_ms: float) -> float:
        """What prices must add up to for this to be saved: the inverse; more than `whole_ms` where it cannot be."""
        if not 0 < saved_ms < self.whole_ms or self.bend == 0:
            return saved_ms
        y, b = saved_ms / self.whole_ms, 1 + self.bend
        return (
            self.whole_ms * 2 * y / (b + math.sqrt(b * b - 4 * self.bend * y))
        )  # of a x^2 - b x + y = 0 the root below 1


def correction(mixed: Sequence[Mixed], model_ms: float, whole_ms: float) -> Correction:
    """Fitted to plans of all units; nothing is corrected where there are none."""
    inner = [one for one in mixed if 0 < one.summed_ms < whole_ms]
    if not inner:
        return Correction(whole_ms)
    x = np.array([one.summed_ms / whole_ms for one in inner])
    y = np.array([one.measured_ms / whole_ms for one in inner])
    weight = (
        1 / np.array([max(model_ms - one.measured_ms, 1e-9) for one in inner]) ** 2
    )  # errors in ms to errors in speed
    u = x * (1 - x)
    bend = float((weight * u * (y - x)).sum() / (weight * u * u).sum())
    return Correction(whole_ms, min(max(bend, -_MOST_BENT), _MOST_BENT))


@dataclasses.dataclass(frozen=True)
class TableError:
    """What a table is off by in the speed of plans of all units, as parts of it: 0.03 is 3 %.

    plans          how many were timed; none: all figures are 0
    bias           median of what sums of prices promise too much (negative: too little); the correction takes it off
    median, worst  of the size of what is left, of each plan with the correction fitted to the others
    """

    plans: int = 0
    bias: float = 0.0
    median: float = 0.0
    worst: float = 0.0


def error_of(mixed: Sequence[Mixed], model_ms: float, whole_ms: float) -> TableError:
    """How wrong the sums are, and how wrong the corrected ones."""
    if not mixed:
        return TableError()
    biases, left = [], []
    for number, one in enumerate(mixed):
        measured = model_ms - one.measured_ms
        others = correction([*mixed[:number], *mixed[number + 1 :]], model_ms, whole_ms)
        biases.append(measured / max(model_ms - one.summed_ms, 1e-9) - 1)
        left.append(abs(measured / max(model_ms - others.saved_ms(one.summed_ms), 1e-9) - 1))
    return TableError(len(mixed), float(np.median(biases)), float(np.median(left)), float(max(left)))


def mixed_rungs(units: Sequence[Unit], prices: Sequence[FloatArray], seed: int) -> list[tuple[int, ...]]:
    """Plans to time: dynamic programming shares each of PARTS of all prices out among units of drawn importance, DRAWS times."""
    generator, found = np.random.default_rng(seed), list[tuple[int, ...]]()
    whole = sum(float(price[0]) for price in prices)
    for part in PARTS * DRAWS:
        costs = [np.exp(generator.normal(0.0, _UNLIKE)) * _made_up(unit) for unit in units]
        drawn = allocate(costs, prices, part * whole)
        found += [drawn] if drawn is not None else []
    return [rungs for rungs in dict.fromkeys(found) if 0 < price_of(prices, rungs) < whole]


def _made_up(unit: Unit) -> FloatArray:
    """float64[rungs]: costs that rise as divergences do."""
    kept = np.array(unit.counts) / unit.size
    integers = np.array([rung.int8 for rung in unit.rungs])
    return np.asarray((1 - kept) ** 2 + _INTEGERS * integers * kept)


__all__ = ["PARTS", "Correction", "Mixed", "TableError", "believed", "correction", "error_of", "mixed_rungs"]
