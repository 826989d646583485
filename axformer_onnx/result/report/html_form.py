"""The short form of a report for a notebook: one self-contained piece of HTML, every text escaped, no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from axformer_onnx.result.report.record import Report
from axformer_onnx.result.report.words import FRONTIER_HEADER, figure_rows, frontier_rows, headline

_CELL = "padding:2px 8px;text-align:left"


def html(report: Report) -> str:
    """The headline, figures before and after, the frontier and the warnings."""
    parts = [f"<p><b>{escape(headline(report))}</b></p>"]
    parts.append(html_table((report.task, "source", "result", "change"), figure_rows(report)))
    if report.compensation is not None:
        said = f"frontier, on the select rows, at {report.compensation.shape}"
        parts += [f"<p>{escape(said)}</p>", html_table(FRONTIER_HEADER, frontier_rows(report))]
    parts += [f"<p>Warning: {escape(warning)}</p>" for warning in report.warnings]
    return f"<div>{''.join(parts)}</div>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every cell is escaped."""
    head = "".join(f'<th style="{_CELL}">{escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
