"""Differences from the source on the report rows with their paired intervals: the result's, and that of a random plan of equal size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from axformer_onnx.result.page.drawing import Caption, Element, Size, drawn, settings, text_element
from axformer_onnx.result.report import ComparisonRecord, Report, axis_limits, paired


def score_chart(report: Report, size: Size) -> Element:
    """The plot as an <svg>: a line for each graph, zero is the source."""
    import pygal

    shown = compared(report)
    values = [x for _, _, one in shown for x in (one.difference.low, one.difference.high)]
    across = axis_limits([*values, 0.0], 0.08)
    low = Size(size.name, size.width, 66 + 42 * len(shown), size.ticks)
    chart = pygal.XY(
        **settings(low), stroke=False, allow_interruptions=True, xrange=across, range=(0.4, len(shown) + 0.6),
        y_labels=[{"value": len(shown) - i, "label": name} for i, (name, _, _) in enumerate(shown)],
        x_title=f"points of {report.metric} above the source, report rows", x_value_formatter=lambda x: f"{x:+g}" if x else "0",
    )  # fmt: skip
    chart.add("source", [(0, 0.4), (0, len(shown) + 0.6)], stroke=True, show_dots=False)
    bars: list[Any] = []
    for i, (_, _, one) in enumerate(shown):
        bars += [(one.difference.low, len(shown) - i), (one.difference.high, len(shown) - i), None]
    chart.add("intervals", bars, stroke=True, show_dots=False)
    chart.add(
        "points",
        [{"value": (one.difference.value, len(shown) - i), "node": {"data-mark": str(i)}} for i, (_, _, one) in enumerate(shown)],
    )
    marks: dict[str, Callable[[Element], list[Element]]] = {
        str(i): partial(_dot, kind, f"{name}: {paired(one)}") for i, (name, kind, one) in enumerate(shown)
    }
    said = "; ".join(f"{name}: {paired(one)}" for name, _, one in shown)
    return drawn(chart, low, Caption("scores", f"{report.metric} against the source, on the report rows", f"{said}."), marks)


def compared(report: Report) -> list[tuple[str, str, ComparisonRecord]]:
    """(name, class, comparison) of each graph that was compared with the source."""
    found = [("the result", "result", report.comparison)]
    return found + ([("random plan", "control", report.control_comparison)] if report.control_comparison else [])


def _dot(kind: str, words: str, place: Element) -> list[Element]:
    dot = Element("circle", {"cx": place.get("cx", "0"), "cy": place.get("cy", "0"), "r": "6", "class": f"dot {kind}"})
    dot.append(text_element("title", words))
    return [dot]
