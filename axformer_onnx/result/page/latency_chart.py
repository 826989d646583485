"""How long the rounds took: a histogram of both graphs at one shape."""

from __future__ import annotations

from collections.abc import Sequence

from axformer_onnx.result.page.drawing import Caption, Element, Size, drawn, plotting, settings
from axformer_onnx.result.report import HistogramRecord, LatencyRecord, milliseconds


def latency_chart(latency: LatencyRecord, histogram: HistogramRecord, number: int, size: Size) -> Element:
    """The plot as an <svg>: the source's bars behind, the result's before them. `number` tells it from others on the page."""
    low = Size(size.name, size.width, 230, size.ticks)
    chart = plotting().Histogram(
        **settings(low), x_title="milliseconds", y_title="rounds", x_value_formatter=lambda x: f"{x:g}",
        value_formatter=lambda y: f"{y:g}", range=(0, max(*histogram.source, *histogram.candidate, 1) * 1.08),
    )  # fmt: skip
    chart.add("source", _bars(histogram, histogram.source))
    chart.add("result", _bars(histogram, histogram.candidate))
    medians = ", ".join(
        f"{name} {milliseconds(ms, reliable=latency.reliable)}"
        for name, ms in (("source", latency.source_p50_ms), ("result", latency.candidate_p50_ms))
    )
    title = f"Latency at {latency.batch} x {latency.length}"
    said = f"{sum(histogram.source)} rounds of each graph; medians: {medians}."
    return drawn(chart, low, Caption(f"latency-{number}", title, said))


def _bars(histogram: HistogramRecord, counts: Sequence[int]) -> list[tuple[int, float, float]]:
    """(height, from, to) of the bins that are not empty; the last one, of all that took longer, is one bin wide."""
    low, width = histogram.low_ms, histogram.bin_ms
    return [(count, low + i * width, low + (i + 1) * width) for i, count in enumerate(counts) if count]
