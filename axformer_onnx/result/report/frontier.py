"""The frontier as points of a plot: score on the select rows against speed, for the page, its picture and the terminal.

A speed that could not be measured is not drawn as one: its point stands where the latency table expects it and says so, and where
the table was not kept it is left out, and counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from axformer_onnx.result.report.record import PointRecord, Report
from axformer_onnx.result.report.words import megabytes, speed

STANDARD_ERRORS = 1.96
"""Of the drop, on either side of a score: 95 %."""
Kind = Literal["source", "measured", "expected", "result"]


@dataclasses.dataclass(frozen=True)
class FrontierPoint:
    """One dot.

    kind       measured; expected: its speed by the latency table alone; result: the answer, whichever of both; source
    speed      times the source's; `low`, `high`: its interval, None where it was not measured
    score      in points; `error`: on either side of it
    size_part  of the source's file
    words      all of it in one line
    """

    kind: Kind
    speed: float
    low: float | None
    high: float | None
    score: float
    error: float
    size_part: float
    words: str
    is_measured: bool = True


@dataclasses.dataclass(frozen=True)
class Frontier:
    """The points, the source first, then by speed; how many have no speed at all; the shape that they were measured at."""

    points: tuple[FrontierPoint, ...]
    left_out: int
    shape: str
    metric: str


def frontier_of(report: Report) -> Frontier | None:
    """What there is to plot; None where the run has no frontier."""
    found = report.compensation
    if found is None or not found.frontier:
        return None
    dots = [_dot(point, report) for point in found.frontier]
    shown = sorted((dot for dot in dots if dot is not None), key=lambda dot: dot.speed)
    points = (_source(found.frontier, report), *shown)
    return Frontier(points, len(dots) - len(shown), found.shape, report.metric)


def axis_limits(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """Bounds of an axis around these values, with some air."""
    low, high = min(values), max(values)
    air = pad * (high - low) or max(1.0, abs(high)) * pad
    return low - air, high + air


def frontier_axes(frontier: Frontier) -> tuple[tuple[float, float], tuple[float, float]]:
    """Bounds of speeds and of scores, error bars included."""
    points = frontier.points
    speeds = [x for p in points for x in (p.speed, p.low, p.high) if x is not None]
    scores = [x for p in points for x in (p.score - p.error, p.score + p.error)]
    return axis_limits(speeds), axis_limits(scores)


def _source(points: Sequence[PointRecord], report: Report) -> FrontierPoint:
    score = points[0].score + points[0].drop
    words = f"the source: 1.00x, {score:.2f}, {megabytes(report.source.size_bytes)}"
    return FrontierPoint("source", 1.0, None, None, score, 0.0, 1.0, words)


def _dot(point: PointRecord, report: Report) -> FrontierPoint | None:
    value = point.speedup.value if point.reliable else point.predicted
    if value is None or not math.isfinite(value):
        return None
    said = (
        speed(point.speedup)
        if point.reliable
        else f"speed not measured ({point.why}); the latency table expects {value:.2f}x"
    )
    name = f"{point.folder}, the result" if point.chosen else point.folder
    words = f"{name}: {said}, {report.metric} {point.score:.2f}, {point.drop:+.2f} below the source (SE {point.noise:.2f}), "
    return FrontierPoint(
        kind="result" if point.chosen else "measured" if point.reliable else "expected",
        speed=value,
        low=point.speedup.low if point.reliable else None,
        high=point.speedup.high if point.reliable else None,
        score=point.score,
        error=STANDARD_ERRORS * point.noise if math.isfinite(point.noise) else 0.0,
        size_part=point.size_bytes / max(1, report.source.size_bytes),
        words=words + megabytes(point.size_bytes),
        is_measured=point.reliable,
    )
