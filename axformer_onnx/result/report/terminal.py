"""The short form of a report for the terminal, with rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axformer_onnx.result.report.frontier import frontier_of
from axformer_onnx.result.report.layers import head_picture, head_words, integer_words, neuron_picture, neuron_words
from axformer_onnx.result.report.terminal_plot import fits, terminal_plot
from axformer_onnx.result.report.words import (
    FRONTIER_HEADER,
    control_sentence,
    figure_rows,
    frontier_rows,
    headline,
    majority_sentence,
    runtime_form_sentences,
    search_sentence,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from axformer_onnx.result.report.record import Report


def print_report(report: Report, console: Console) -> None:
    """Print the headline, the main table, the layers, the control and the warnings."""
    from rich.markup import escape

    console.print(figure_table(report))
    console.print(layer_table(report))
    if report.compensation is not None:
        console.print(frontier_table(report))
    frontier = frontier_of(report)
    if frontier is not None and fits(console):
        console.print(terminal_plot(frontier, console.width))
    said = (control_sentence(report), majority_sentence(report), report.labels, search_sentence(report))
    for line in (*said, *runtime_form_sentences(report)):
        if line:
            console.print(escape(line), highlight=False)
    for note in report.notes:
        console.print(f"[dim]Note: {escape(note)}[/dim]", highlight=False)
    for warning in report.warnings:
        console.print(f"[yellow]Warning: {escape(warning)}[/yellow]", highlight=False)
    console.print(f"[bold]{escape(headline(report))}[/bold]", highlight=False)


def figure_table(report: Report) -> Table:
    """Figures before and after."""
    table = _table(report.task, "", ">source", ">result", "change")
    for row in figure_rows(report):
        table.add_row(*row)
    return table


def layer_table(report: Report) -> Table:
    """One row a layer: which heads and how many neurons stay."""
    columns = ["layer", "heads kept", "", "neurons kept", ""]
    hard = any(x.hard_attention for x in report.layers)
    integers = any(x.int8 for x in report.layers)
    table = _table("", *columns, *(["hard attention"] if hard else []), *(["integers"] if integers else []))
    for x in report.layers:
        row = [str(x.layer), head_picture(x), head_words(x), neuron_picture(x), neuron_words(x)]
        more = [*([x.hard_attention or ""] if hard else []), *([integer_words(x)] if integers else [])]
        table.add_row(*row, *more)
    return table


def frontier_table(report: Report) -> Table:
    """Operating points on the select rows."""
    shape = report.compensation.shape if report.compensation else ""
    table = _table(f"frontier, on the select rows, at {shape}", *FRONTIER_HEADER)
    for row in frontier_rows(report):
        table.add_row(*row)
    return table


def _table(title: str, *columns: str) -> Table:
    """A plain table; a column that starts with '>' is aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    return table
