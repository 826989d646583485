"""report.html: one self-contained page of a report for a browser, with its plots as SVG; nothing of it is fetched from anywhere."""

from __future__ import annotations

from axformer_onnx.result.page.document import html_page
from axformer_onnx.result.page.picture import frontier_picture

__all__ = ["frontier_picture", "html_page"]
