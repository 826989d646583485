"""The frontier as a plot in a terminal, as wide as it is up to a limit; colours are rich's, so that NO_COLOR holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axformer_onnx.result.report.frontier import Frontier, FrontierPoint, frontier_axes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LEAST, MOST = 60, 110
"""Columns: a narrower terminal gets no plot, in a wider one the plot ends there."""
_ROWS, _AROUND = 14, 25
"""Of the plot itself; columns of ticks and of the name of an axis beside it."""
_MARKS = {"source": "■", "measured": "●", "expected": "○", "result": "◆"}
_RESULT_EXPECTED = "◇"
_BLANK = "\u2800"
"""A braille cell without dots, which plotille draws on; not every font leaves it empty."""
_COLOURS = {"■": "bright_black", "●": "blue", "○": "blue", "◆": "bold yellow", "◇": "bold yellow"}


def fits(console: Console) -> bool:
    """Is it a terminal, wide enough, that shows the marks?"""
    if not console.is_terminal or console.is_dumb_terminal or console.width < LEAST:
        return False
    try:
        "".join((*_MARKS.values(), _RESULT_EXPECTED)).encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def terminal_plot(frontier: Frontier, width: int) -> Text:
    """The plot with its legend, at most `width` columns."""
    import plotille
    from rich.text import Text

    speeds, scores = frontier_axes(frontier)
    figure = plotille.Figure()
    figure.width, figure.height, figure.with_colors, figure.origin = min(width, MOST) - _AROUND, _ROWS, False, False
    figure.set_x_limits(*speeds)
    figure.set_y_limits(*scores)
    figure.x_label, figure.y_label = "speed", frontier.metric
    figure.x_ticks_fkt = lambda low, high: f"{low:.2f}x"
    figure.y_ticks_fkt = lambda low, high: f"{low:.1f}"
    for point in sorted(frontier.points, key=lambda point: point.kind == "result"):
        figure.scatter([point.speed], [point.score], marker=_mark(point))
    text = Text(
        "\n".join(line.replace(_BLANK, " ").rstrip() for line in figure.show().split("\n")) + "\n" + _legend(frontier),
        no_wrap=True,
    )
    for mark, colour in _COLOURS.items():
        text.highlight_regex(mark, style=colour)
    return text


def _mark(point: FrontierPoint) -> str:
    return _RESULT_EXPECTED if point.kind == "result" and not point.is_measured else _MARKS[point.kind]


def _legend(frontier: Frontier) -> str:
    names = {
        "■": "source", "●": "a point of the frontier", "◆": "the result", "○": "speed by the latency table alone",
        "◇": "the result, by the table alone",
    }  # fmt: skip
    present = {_mark(point) for point in frontier.points}
    said = [f"{mark} {name}" for mark, name in names.items() if mark in present]
    left = f"   ({frontier.left_out} points without a speed are left out)" if frontier.left_out else ""
    return "   ".join(said) + left
