"""The frontier: score on the select rows against speed, a dot as large as the file, intervals as bars, the answer marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from axformer_onnx.result.page.drawing import Caption, Element, Size, drawn, settings, text_element, text_width
from axformer_onnx.result.report import Frontier, FrontierPoint, frontier_axes

_LARGEST = 11.0
"""Radius of the source's dot, in CSS pixels; areas are as sizes of files."""


def frontier_chart(frontier: Frontier, size: Size) -> Element:
    """The plot as an <svg>."""
    import pygal

    speeds, scores = frontier_axes(frontier)
    chart = pygal.XY(
        **settings(size), stroke=False, allow_interruptions=True, xrange=speeds, range=scores,
        x_title=f"times as fast as the source, at {frontier.shape}", y_title=f"{frontier.metric}, select rows",
        x_value_formatter=lambda x: f"{x:g}x", value_formatter=lambda y: f"{y:g}",
    )  # fmt: skip
    points = frontier.points
    chart.add("source", [(speeds[0], points[0].score), (speeds[1], points[0].score)], stroke=True, show_dots=False)
    chart.add("intervals", _bars(points), stroke=True, show_dots=False)
    order = sorted(range(len(points)), key=lambda i: (points[i].kind == "result", -points[i].size_part))
    chart.add("points", [{"value": (points[i].speed, points[i].score), "node": {"data-mark": str(i)}} for i in order])
    marks: dict[str, Callable[[Element], list[Element]]] = {
        str(i): partial(_dot, point, size) for i, point in enumerate(points)
    }
    return drawn(chart, size, _caption(frontier), marks)


def _bars(points: Sequence[FrontierPoint]) -> list[Any]:
    """Intervals of scores and of speeds, an interruption behind each."""
    bars: list[Any] = []
    for p in points:
        if p.error:
            bars += [(p.speed, p.score - p.error), (p.speed, p.score + p.error), None]
        if p.low is not None and p.high is not None:
            bars += [(p.low, p.score), (p.high, p.score), None]
    return bars


def _dot(point: FrontierPoint, size: Size, place: Element) -> list[Element]:
    """The dot of a point with a tooltip; a ring for a speed that was not measured; a name for the source and the answer."""
    x, y = float(place.get("cx", 0)), float(place.get("cy", 0))
    kind = point.kind if point.is_measured else f"{point.kind} expected"
    radius = max(4.0, _LARGEST * math.sqrt(point.size_part))
    dot = Element("circle", {"cx": str(x), "cy": str(y), "r": str(radius), "class": f"dot {' '.join(dict.fromkeys(kind.split()))}"})
    dot.append(text_element("title", point.words))
    found = [dot]
    if point.kind == "result":
        found.insert(0, Element("circle", {"cx": str(x), "cy": str(y), "r": str(radius + 4.5), "class": "halo"}))
    if point.kind in ("source", "result"):
        said = "source" if point.kind == "source" else "the result"
        right = x + radius + 8 + text_width(said) > size.width - 90
        beside = -(radius + 9) if right else radius + 9
        place_y = y + radius + 18 if point.kind == "result" else y - radius - 6
        label = text_element(
            "text", said, x=str(x + beside), y=str(place_y), class_=f"name {point.kind}", text_anchor="end" if right else "start"
        )
        found.append(label)
    return found


def _caption(frontier: Frontier) -> Caption:
    said = "; ".join(point.words for point in frontier.points)
    return Caption("frontier", f"The frontier: {frontier.metric} on the select rows against speed", f"{said}.")
