"""Gates on answers: how much worse the task's metric is, and how far outputs are from the baseline's. One look, at all rows."""

from __future__ import annotations

import math

from axformer_onnx.gates.records import Gate, GateName, judged, times_more
from axformer_onnx.records import FloatArray, Interval
from axformer_onnx.statistics import studentised_mean
from axformer_onnx.tasks import Answers, Metric

MOST_ROWS = 10_000_000
"""More are not asked for."""


def drop_gate(
    metric: Metric, a: Answers, b: Answers, allowed: float, *, error: float, seed: int = 0, same: bool = False
) -> Gate:
    """Does b score within `allowed` points of a, on the same rows?

    error   chance that a bound of the drop fails
    same    the two graphs are the same file: there is no drop
    """
    change = Interval(0.0, 0.0, 0.0, 1.0) if same else metric.bounds(a, b, error=error, seed=seed)
    drop = Interval(0.0 - change.value, 0.0 - change.high, 0.0 - change.low, change.level)
    return _gate("max-drop", f"drop of {metric.name}", drop, allowed, len(a.labels), error, " points", same=same)


def divergence_gate(divergence: FloatArray, allowed: float, *, error: float, seed: int = 0, same: bool = False) -> Gate:
    """Is the mean of float64[rows], how far each row's outputs are from the baseline's, at most `allowed`?"""
    found = Interval(0.0, 0.0, 0.0, 1.0) if same else studentised_mean(divergence, error, seed=seed)
    return _gate("max-divergence", "divergence", found, allowed, len(divergence), error, "", same=same)


def _gate(
    name: GateName, what: str, measured: Interval, allowed: float, rows: int, error: float, unit: str, *, same: bool
) -> Gate:
    outcome = judged(measured, allowed, at_least=False)
    if same:
        return Gate(name, what, "", allowed, measured, outcome, "the two graphs are the same")
    low, high, given = (f"{value:.4g}{unit}" for value in (measured.low, measured.high, allowed))
    why = {
        "failed": f"it is at least {low}, {given} allowed",
        "passed": f"it is at most {high}, {given} allowed",
        "undecided": f"{rows} rows leave it between {low} and {high}",
    }[outcome]
    needs = _needs(measured, allowed, rows) if outcome == "undecided" else ""
    return Gate(name, what, "", allowed, measured, outcome, why, needs, error)


def _needs(measured: Interval, allowed: float, rows: int) -> str:
    wanted = rows * times_more(measured, allowed)
    if wanted > MOST_ROWS:
        return (
            "no number of rows would decide it, the figure is too close to what is allowed; allow more than you expect"
        )
    return f"about {rounded_up(wanted):,} rows (--data) would decide it if it stays what it is"


def rounded_up(value: float) -> int:
    """To two digits: 3461.2 -> 3500."""
    step = 10 ** max(0, math.floor(math.log10(max(1.0, value))) - 1)
    return int(math.ceil(value / step) * step)
