"""The frontier: score on the select rows against speed, a dot as large as the file, intervals as bars, the answer marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from axformer_onnx.result.page.drawing import (
    Caption,
    Element,
    Place,
    Size,
    dot_element,
    dots,
    drawn,
    plotting,
    settings,
    text_element,
    text_width,
)
from axformer_onnx.result.report import Frontier, FrontierPoint, frontier_axes

_LARGEST = 11.0
"""Radius of the source's dot, in CSS pixels; areas are as sizes of files."""


def frontier_chart(frontier: Frontier, size: Size) -> Element:
    """The plot as an <svg>."""
    speeds, scores = frontier_axes(frontier)
    chart = plotting().XY(
        **settings(size), stroke=False, allow_interruptions=True, xrange=speeds, range=scores,
        x_title=f"speed at {frontier.shape} (source = 1x)", y_title=f"{frontier.metric}, select rows",
        x_value_formatter=lambda x: f"{x:g}x", value_formatter=lambda y: f"{y:g}",
    )  # fmt: skip
    points = frontier.points
    chart.add("source", [(speeds[0], points[0].score), (speeds[1], points[0].score)], stroke=True, show_dots=False)
    chart.add("intervals", _bars(points), stroke=True, show_dots=False)
    order = sorted(points, key=lambda point: (point.kind == "result", -point.size_part))
    chart.add("points", dots([(point.speed, point.score) for point in order]))
    return drawn(chart, size, _caption(frontier), [partial(_marked, point, size) for point in order])


def _bars(points: Sequence[FrontierPoint]) -> list[Any]:
    """Intervals of scores and of speeds, an interruption behind each."""
    bars: list[Any] = []
    for p in points:
        if p.error:
            bars += [(p.speed, p.score - p.error), (p.speed, p.score + p.error), None]
        if p.low is not None and p.high is not None:
            bars += [(p.low, p.score), (p.high, p.score), None]
    return bars


def _marked(point: FrontierPoint, size: Size, place: Place, places: Sequence[Place]) -> list[Element]:
    """The dot of a point, a ring if its speed was not measured; a halo around the answer; a name for it and for the source."""
    (x, y), radius = place, max(4.0, _LARGEST * math.sqrt(point.size_part))
    kinds = dict.fromkeys((point.kind, *([] if point.is_measured else ["expected"])))
    dot = dot_element(place, radius, " ".join(["dot", *kinds]), point.words)
    if point.kind == "source":
        return [
            dot,
            text_element(
                "text", "source", x=str(x), y=str(y + radius + 17), class_="name source", text_anchor="middle"
            ),
        ]
    if point.kind != "result":
        return [dot]
    halo = Element("circle", {"cx": str(x), "cy": str(y), "r": str(radius + 4.5), "class": "halo"})
    return [halo, dot, _name("the result", place, radius + 8, places, size)]


def _name(text: str, place: Place, away: float, places: Sequence[Place], size: Size) -> Element:
    """A name beside a dot, at that of four corners which is farthest from all other dots."""
    width, others = text_width(text), [one for one in places if one != place]
    corners = [(place[0] + right * away, place[1] + down) for down in (away + 10, -away) for right in (1, -1)]

    def room(corner: Place) -> float:
        middle = corner[0] + (width if corner[0] > place[0] else -width) / 2
        outside = abs(middle - size.width / 2) + width / 2 > size.width / 2 - 50
        near = min((math.hypot((middle - x) / 2, corner[1] - 5 - y) for x, y in others), default=0.0)
        return near - 1000 * outside

    x, y = max(corners, key=room)
    return text_element(
        "text", text, x=str(x), y=str(y), class_="name result", text_anchor="start" if x > place[0] else "end"
    )


def _caption(frontier: Frontier) -> Caption:
    said = "; ".join(point.words for point in frontier.points)
    return Caption("frontier", f"The frontier: {frontier.metric} on the select rows against speed", f"{said}.")
