"""Differences from the source on the report rows, with paired intervals: the result's, and that of a random plan of equal size."""

from __future__ import annotations

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
)
from axformer_onnx.result.report import ComparisonRecord, Report, axis_limits, paired


def score_chart(report: Report, size: Size) -> Element:
    """The plot as an <svg>: a line for each graph, zero is the source."""
    shown = compared(report)
    values = [x for _, _, one in shown for x in (one.difference.low, one.difference.high)]
    across = axis_limits([*values, 0.0], 0.08)
    low = Size(size.name, size.width, 66 + 42 * len(shown), size.ticks)
    chart = plotting().XY(
        **settings(low), stroke=False, allow_interruptions=True, xrange=across, range=(0.4, len(shown) + 0.6),
        y_labels=[{"value": len(shown) - i, "label": name} for i, (name, _, _) in enumerate(shown)],
        x_title=f"points of {report.metric} above the source, report rows",
        x_value_formatter=lambda x: f"{x:+g}" if x else "0",
    )  # fmt: skip
    chart.add("source", [(0, 0.4), (0, len(shown) + 0.6)], stroke=True, show_dots=False)
    bars: list[Any] = []
    for i, (_, _, one) in enumerate(shown):
        bars += [(one.difference.low, len(shown) - i), (one.difference.high, len(shown) - i), None]
    chart.add("intervals", bars, stroke=True, show_dots=False)
    chart.add("points", dots([(one.difference.value, len(shown) - i) for i, (_, _, one) in enumerate(shown)]))
    marks = [partial(_marked, kind, f"{name}: {paired(one)}") for name, kind, one in shown]
    said = "; ".join(f"{name}: {paired(one)}" for name, _, one in shown)
    return drawn(
        chart, low, Caption("scores", f"{report.metric} against the source, on the report rows", f"{said}."), marks
    )


def compared(report: Report) -> list[tuple[str, str, ComparisonRecord]]:
    """(name, class, comparison) of each graph that was compared with the source."""
    found = [("the result", "result", report.comparison)]
    return found + ([("random plan", "control", report.control_comparison)] if report.control_comparison else [])


def _marked(kind: str, words: str, place: Place, places: Sequence[Place]) -> list[Element]:
    return [dot_element(place, 6.0, f"dot {kind}", words)]
