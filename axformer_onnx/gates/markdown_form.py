"""Markdown for a job's summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from axformer_onnx.errors import printable
from axformer_onnx.gates.records import Verdict
from axformer_onnx.gates.words import HEADER, gate_row, headline, rates, sentence


def markdown(verdict: Verdict) -> str:
    """A section with a heading, so that it can stand among others; ends with an empty line."""
    decided = [f"* {_text(sentence(gate))}" for gate in verdict.gates]
    rows = [(*row[:-1], f"**{row[-1]}**") for row in map(gate_row, verdict.gates)]
    parts = [
        f"## {_text(verdict.candidate)} against {_text(verdict.baseline)}: {verdict.outcome}",
        _text(headline(verdict)),
        _table(HEADER, rows),
        "\n".join(decided),
        f"<details><summary>Figures of {verdict.rows} rows of {_text(verdict.task)}</summary>\n\n"
        f"{_table(verdict.figures[0], verdict.figures[1:])}\n\n</details>",
        *(f"**Warning.** {_text(warning)}" for warning in verdict.warnings),
        rates(verdict),
    ]
    return "\n\n".join(parts) + "\n\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines)


def _text(text: str) -> str:
    """On one line; what would be markup is not, but for the emphasis that is ours."""
    flat = printable(" ".join(text.split())).replace("\\", "\\\\")
    for mark in "|<`":
        flat = flat.replace(mark, f"\\{mark}")
    return flat
