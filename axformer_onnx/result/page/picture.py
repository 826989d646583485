"""The frontier as an SVG file of its own, as a README shows it: light or dark as the reader's browser is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from axformer_onnx.errors import AxformerError
from axformer_onnx.result.page.drawing import WIDE, Element, as_text, text_element
from axformer_onnx.result.page.frontier_chart import frontier_chart
from axformer_onnx.result.report import Report, frontier_of

_MARGIN = 10
_PAPER = {
    "x": str(-_MARGIN), "y": str(-_MARGIN), "width": str(WIDE.width + 2 * _MARGIN), "height": str(WIDE.height + 2 * _MARGIN),
}  # fmt: skip


def frontier_picture(report: Report) -> str:
    """The text of an SVG file. Raises: AxformerError where the run has no frontier."""
    frontier = frontier_of(report)
    if frontier is None:
        raise AxformerError("the report has no frontier: only a compensated search makes one")
    root = frontier_chart(frontier, WIDE)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("viewBox", f"{-_MARGIN} {-_MARGIN} {WIDE.width + 2 * _MARGIN} {WIDE.height + 2 * _MARGIN}")
    root.insert(2, text_element("style", style_sheet("colours.css") + style_sheet("plots.css")))
    root.insert(3, Element("rect", {**_PAPER, "rx": "10", "class": "paper"}))
    return f"{as_text(root)}\n"


def style_sheet(name: str) -> str:
    """The text of a file in this room."""
    return Path(str(files("axformer_onnx.result.page") / name)).read_text(encoding="utf-8")
