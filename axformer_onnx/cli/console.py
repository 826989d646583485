"""What the command line prints on stdout: the tables of inspect, score and compare. Nothing is computed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from axformer_onnx.errors import printable
from axformer_onnx.gates import HEADER, gate_row, headline, rates, sentence
from axformer_onnx.inputs import NOTHING, left_whole, placed
from axformer_onnx.result.report import count, megabytes, paired
from axformer_passes.blocks import words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from axformer_onnx.commands import Inspection, Preview, ScoreResult
    from axformer_onnx.gates import Verdict
    from axformer_onnx.inputs import Placed
    from axformer_passes.anatomy import Layer

_WIDTH = 120  # where stdout is no terminal
_TEXT = 100
"""Characters of a text that is shown."""
_COLOURS = {"passed": "green", "failed": "red", "undecided": "yellow"}


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr; wide enough for the tables where that is a pipe or a file."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _WIDTH, highlight=False, soft_wrap=False)


def print_preview(seen: Preview, out: Console, *, notes: bool) -> None:
    """What was found, line by line; where something is missing, the command that goes on. `notes`: what the report says, too."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for what, said in seen.rows():
        table.add_row(what, Text(printable(said)))
    out.print(table)
    for note in seen.notes if notes else ():
        _say(out, f"Note: {note}")
    if seen.problem is not None and seen.command:
        _say(out, "To go on:")
        out.print(Text(f"  {printable(seen.command)}"), soft_wrap=True)


def print_inspection(found: Inspection, out: Console) -> None:
    """The anatomy as a table, what was not recognised marked in its place; then the reasons, in the order of the graph."""
    anatomy = found.anatomy
    table = plain_table("layer", ">heads", ">neurons", "activation", ">parameters", ">share of compute")
    for cells in _layer_rows(found):
        table.add_row(*cells)
    rest = [found.parameters - sum(x.parameters for x in found.layers), found.macs - sum(x.macs for x in found.layers)]
    table.add_row("rest", "", "", "embeddings, norms, head", count(rest[0]), _percent(rest[1], found.macs), style="dim")
    table.add_row("all", str(anatomy.heads), str(anatomy.neurons), "", count(found.parameters), "100 %")
    _say(
        out,
        f"{found.path}: opset {anatomy.opset}, {anatomy.exporter_hint or 'unknown exporter'}, "
        f"{megabytes(found.size_bytes)}, {count(found.macs)} multiply-accumulates at 1 x {found.length}",
    )
    out.print(table)
    for line in _remarks(found):
        _say(out, line)


def _remarks(found: Inspection) -> list[str]:
    anatomy = found.anatomy
    if not anatomy.layers and not anatomy.refused:
        return [NOTHING[0].upper() + NOTHING[1:]]
    lines = [f"{note[0].upper()}{note[1:]}." for note in found.notes]
    lines += [
        f"layer {layer.index}: a block cannot be taken out as a whole: {block.why}"
        for layer in anatomy.layers
        for block in layer.blocks
        if block.why
    ]
    lines += [f"{words(group)}; they are counted in layer {group.layers[0]}" for group in found.shared_weights]
    if anatomy.refused:
        lines += [
            "Not recognised (?), left as it is:",
            *(f"  {x}" for x in left_whole(anatomy)),
        ]
    return lines


def _layer_rows(found: Inspection) -> list[tuple[str, ...]]:
    """The cells of each layer; "?" for a part that was not recognised, in a row of its own where nothing of its layer was."""
    refusals, rows = placed(found.anatomy), list[tuple[str, ...]]()
    missing = {(x.layer, x.part) for x in refusals}
    for layer, cost in zip(found.anatomy.layers, found.layers, strict=True):
        rows += _lost_rows(refusals, layer.index)
        absent = ["?" if (layer.index, part) in missing else "-" for part in ("heads", "neurons")]
        share = _percent(cost.macs, found.macs)
        rows.append((*_anatomy_cells(layer, *absent), count(cost.parameters), share))
    return rows + _lost_rows(refusals, len(found.anatomy.layers))


def _lost_rows(refusals: list[Placed], before: int) -> list[tuple[str, ...]]:
    """A row for each attention block, and for feed-forward blocks alone, of which no layer is left."""
    rows: list[list[str]] = []
    for x in refusals:
        if x.refusal.before != before or x.layer is not None or not x.part:
            continue
        if x.part == "heads" or not rows:
            rows.append(["?", "", "", "", "", ""])
        rows[-1][1 if x.part == "heads" else 2] = "?"
    return [tuple(row) for row in rows]


def _anatomy_cells(layer: Layer, no_heads: str, no_neurons: str) -> tuple[str, str, str, str]:
    attention, feed_forward = layer.attention, layer.feed_forward
    heads = f"{attention.heads} x {attention.head_size}" if attention else no_heads
    if feed_forward is None:
        return str(layer.index), heads, no_neurons, ""
    return str(layer.index), heads, str(feed_forward.neurons), feed_forward.activation


def print_scores(result: ScoreResult, out: Console) -> None:
    """One column a model, then the paired test and the warnings."""
    table = plain_table("", *(f">{name}" for name in result.models))
    for figure in result.figures():
        table.add_row(*figure)
    _say(out, f"{result.task}: {result.rows} rows of {result.source}")
    out.print(table)
    if result.comparison:
        _say(out, f"{result.metric}, second against first: {paired(result.comparison)}")
    for row in result.changed:
        answers = f": {row.first} -> {row.second}" if row.first else ""
        _say(out, f"  {' | '.join(map(_shortened, row.texts))}{answers} (divergence {row.divergence:.3f})")
    if result.majority_rate is not None:
        _say(
            out,
            f"Always answering the most frequent label scores {result.majority_rate:.2f} in {result.majority_metric}.",
        )
    for line in (*result.labels, *(f"Note: {note}" for note in result.notes)):
        _say(out, line)
    for warning in result.warnings:
        _say(out, f"Warning: {warning}", "yellow")


def print_verdict(verdict: Verdict, out: Console) -> None:
    """The figures, a row a gate, why, and in the end the verdict."""
    from rich.text import Text

    figures = plain_table("", *(f">{name}" for name in verdict.figures[0][1:]))
    for row in verdict.figures[1:]:
        figures.add_row(*row)
    gates = plain_table(*HEADER)
    for gate in verdict.gates:
        *cells, outcome = gate_row(gate)
        gates.add_row(*cells, Text(outcome, style=_COLOURS[gate.outcome]))
    _say(out, f"{verdict.task}: {verdict.rows} rows")
    out.print(figures)
    out.print(gates)
    for gate in verdict.gates:
        _say(out, sentence(gate))
    for warning in verdict.warnings:
        _say(out, f"Warning: {warning}", "yellow")
    _say(out, rates(verdict), "dim")
    _say(out, headline(verdict), f"bold {_COLOURS['passed' if verdict.ok else 'failed']}")


def _shortened(text: str) -> str:
    """A text on one line, of 100 characters at most."""
    text = " ".join(text.split())
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."


def plain_table(*columns: str) -> Table:
    """A table with one rule under its header; a column that starts with '>' is aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def _say(out: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    out.print(Text(printable(text.replace("\n", " ")), style=style))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
