"""Which rung for which unit under a budget: pure functions of arrays (docs/method.md 2.5).

    minimise  sum over units u of c_u x cost_u[rung_u]     subject to  sum of price_u[rung_u] <= budget

Costs are divergences with only that unit changed, prices are milliseconds or bytes. They are not additive: c_u, one
coefficient for a unit, takes up what they get wrong about each other; `mutated` draws other ones, and the true divergence of
what they lead to decides (SPDY, arXiv 2201.13096). `exchanges` proposes to move one unit down and another up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from axformer_onnx.records import FloatArray

STEPS = 2000
"""Buckets of the budget: each price is rounded up to a whole one, so that a solution never exceeds the budget."""
SPREAD, PART = 0.6, 1 / 3
"""Standard deviation of the logarithm of a mutated coefficient, and the part of the units that mutate at a time."""


def allocate(
    costs: Sequence[FloatArray], prices: Sequence[FloatArray], budget: float, coefficients: FloatArray | None = None
) -> tuple[int, ...] | None:
    """The rungs of least cost within the budget, by dynamic programming; None where even the cheapest do not fit.

    Time O(units x rungs x STEPS).
    """
    if budget < 0 or sum(float(p.min()) for p in prices) > budget:
        return None
    weight = np.ones(len(costs)) if coefficients is None else coefficients
    unit = max(budget, 1e-12) / STEPS
    best = np.zeros(STEPS + 1)
    taken = []
    for cost, price, c in zip(costs, prices, weight, strict=True):
        buckets = np.ceil(np.maximum(price, 0.0) / unit - 1e-9).astype(np.int64)
        table = np.full((len(cost), STEPS + 1), np.inf)
        for rung, width in enumerate(buckets.tolist()):
            if width <= STEPS:
                table[rung, width:] = best[: STEPS + 1 - width] + c * cost[rung]
        taken.append((table.argmin(axis=0), buckets))
        best = table.min(axis=0)
    if not np.isfinite(best[-1]):
        return cheapest(prices)
    rungs, left = list[int](), STEPS
    for chosen, buckets in reversed(taken):
        rung = int(chosen[left])
        rungs.append(rung)
        left -= int(buckets[rung])
    return tuple(reversed(rungs))


def cheapest(prices: Sequence[FloatArray]) -> tuple[int, ...]:
    """The rung of least price for every unit."""
    return tuple(int(p.argmin()) for p in prices)


def price_of(prices: Sequence[FloatArray], rungs: Sequence[int]) -> float:
    """What a choice of rungs costs."""
    return float(sum(p[r] for p, r in zip(prices, rungs, strict=True)))


def mutated(coefficients: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Other coefficients: a third of them, at least one, times a log-normal factor."""
    count = max(1, round(len(coefficients) * PART))
    chosen = generator.choice(len(coefficients), size=count, replace=False)
    result = coefficients.copy()
    result[chosen] *= np.exp(generator.normal(0.0, SPREAD, size=count))
    return result


def exchanges(
    costs: Sequence[FloatArray],
    prices: Sequence[FloatArray],
    budget: float,
    rungs: Sequence[int],
    heights: Sequence[int] | None = None,
) -> Iterator[tuple[int, ...]]:
    """Neighbours of a choice that keep the budget, the most promising first.

    One unit goes a rung up, or from integers to float32, and another the other way where it must. Promising by the costs: how much
    they would fall. `heights`: rungs of one ladder of each unit; None: it has only one.
    """
    heights = [len(p) for p in prices] if heights is None else heights
    spent = price_of(prices, rungs)
    found: list[tuple[float, tuple[int, ...]]] = []
    for up, height in enumerate(heights):
        for target in _richer(rungs[up], height):
            richer = _moved(rungs, up, target)
            gain = float(costs[up][rungs[up]] - costs[up][target])
            rise = float(prices[up][target] - prices[up][rungs[up]])
            if spent + rise <= budget:
                found.append((-gain, richer))
                continue
            for down in range(len(rungs)):
                for lower in _poorer(rungs[down], heights[down], len(prices[down])) if down != up else ():
                    both = _moved(richer, down, lower)
                    if price_of(prices, both) <= budget:
                        loss = float(costs[down][lower] - costs[down][rungs[down]])
                        found.append((loss - gain, both))
    yield from (neighbour for _, neighbour in sorted(found))


def _richer(rung: int, height: int) -> list[int]:
    """One rung up in its ladder, and the same rung of the float32 one."""
    return [*([rung - 1] if rung % height else []), *([rung - height] if rung >= height else [])]


def _poorer(rung: int, height: int, rungs: int) -> list[int]:
    """One rung down in its ladder, and the same rung of the one of integers."""
    return [*([rung + 1] if (rung + 1) % height else []), *([rung + height] if rung + height < rungs else [])]


def _moved(rungs: Sequence[int], unit: int, to: int) -> tuple[int, ...]:
    return (*rungs[:unit], to, *rungs[unit + 1 :])


__all__ = ["allocate", "cheapest", "exchanges", "mutated", "price_of"]
