"""report.md: the whole report for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from axformer_onnx.result.report.layers import head_picture, head_words, integer_words, neuron_picture, neuron_words
from axformer_onnx.result.report.record import LayerRecord, Report
from axformer_onnx.result.report.words import (
    FRONTIER_HEADER,
    condition_rows,
    control_sentence,
    figure_rows,
    frontier_rows,
    headline,
    majority_sentence,
    runtime_form_sentences,
    search_sentence,
    speed,
    table_sentence,
)


def markdown(report: Report) -> str:
    """The report as Markdown, with a trailing newline."""
    sections = [
        [f"# {report.task}: {_cell(report.model)}", headline(report)],
        [f"**Warning.** {warning}" for warning in report.warnings],
        ["## Before and after", "Measured on the report rows, which no decision used.", _figures(report)],
        [text for text in (control_sentence(report), majority_sentence(report)) if text],
        ["## What was removed", _layers(report.layers)],
        _runtime_form(report),
        ["## Search", search_sentence(report), _frontier(report), table_sentence(report) or "", _stages(report)],
        ["## Data", report.labels, _data(report)],
        ["## Notes", _bullets(report.notes)] if report.notes else [],
        ["## Conditions", _conditions(report)],
        ["## Every candidate", _trials(report)],
    ]
    return "\n\n".join(part for section in sections for part in section if part) + "\n"


def _figures(report: Report) -> str:
    return _table(("", "source", "result", "change"), figure_rows(report))


def _runtime_form(report: Report) -> list[str]:
    if report.runtime_form is None:
        return []
    rows = [(x.form, speed(x.speedup) if x.speedup else "", _cell(x.why)) for x in report.runtime_form.tried]
    table = _table(("form", "against model.onnx", ""), rows)
    return ["## Runtime form", *runtime_form_sentences(report), table]


def _layers(layers: Sequence[LayerRecord]) -> str:
    integers = any(x.int8 for x in layers)
    rows = [
        (
            str(x.layer),
            f"`{head_picture(x)}` {head_words(x)}" if head_picture(x) else head_words(x),
            ", ".join(map(str, x.heads_removed)),
            f"`{neuron_picture(x)}` {neuron_words(x)}" if neuron_picture(x) else neuron_words(x),
            x.hard_attention or "",
            *([integer_words(x)] if integers else []),
        )
        for x in layers
    ]
    header = ("layer", "heads kept", "heads removed", "neurons kept", "hard attention")
    return _table((*header, *(["integers"] if integers else [])), rows)


def _frontier(report: Report) -> str:
    rows = frontier_rows(report)
    if not rows or report.compensation is None:
        return ""
    said = (
        f"The frontier: operating points on the select rows, speed at {report.compensation.shape}. "
        "`axformer-onnx apply PLAN/plan.json MODEL -o OUT` builds one.\n\n"
    )
    return said + _table(FRONTIER_HEADER, rows)


def _stages(report: Report) -> str:
    stages = report.search.stage_scores
    if not stages:
        return ""
    rows = [
        (
            str(s.stage),
            f"{s.score:.2f}",
            "-" if s.rise is None or s.noise is None else f"{s.rise:+.5f} (SE {s.noise:.5f})",
            "chosen" if s.stage == report.search.chosen_stage else "",
        )
        for s in stages
    ]
    return "Scores on the select rows, from stage 0 (the source):\n\n" + _table(
        ("stage", report.metric, "loss against stage 0", ""), rows
    )


def _data(report: Report) -> str:
    rows = [(d.role, str(d.rows), _cell(d.source), f"`{d.sha256[:16]}`") for d in report.data]
    return _table(("role", "rows", "source", "sha256"), rows)


def _conditions(report: Report) -> str:
    rows = [*condition_rows(report), *sorted(report.versions.items())]
    return _table(("", ""), [(name, f"`{said}`" if name.endswith("sha256") else _cell(said)) for name, said in rows])


def _trials(report: Report) -> str:
    if not report.search.trials:
        return "There were none."
    rows = [
        (
            str(t.index),
            t.element,
            "-" if t.loss is None else f"{t.loss:.5f}",
            "**accepted**" if t.accepted else "rejected",
            _cell(t.reason),
        )
        for t in report.search.trials
    ]
    return _table(("trial", "element", "loss", "verdict", "reason"), rows)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
