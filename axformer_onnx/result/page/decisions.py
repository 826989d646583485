"""What the run decided, step by step, in the order in which it happened."""

from __future__ import annotations

from axformer_onnx.result.report import (
    NOT_MEASURED,
    CompensationRecord,
    PointRecord,
    Report,
    control_sentence,
    headline,
    runtime_form_sentences,
    search_sentence,
    speed,
    table_sentence,
)

Step = tuple[str, str]
"""What was done, and what came out."""


def decisions(report: Report) -> list[Step]:
    """The log of one run."""
    steps = [("Rows", ", ".join(f"{data.role} {data.rows}" for data in report.data))] if report.data else []
    steps += [("Noted", note) for note in report.notes]
    table = table_sentence(report)
    if table:
        steps.append(("Latency table", table))
    steps.append(("Search", search_sentence(report).removeprefix("Search ")))
    steps += _points(report.compensation) if report.compensation else _walk(report)
    control = control_sentence(report)
    if control:
        steps.append(("Control", control.removeprefix("Control: ")))
    steps += [
        ("Runtime form", f"{one.form}: {one.why}") for one in (report.runtime_form.tried if report.runtime_form else ())
    ]
    steps += [("Runtime form", said) for said in runtime_form_sentences(report)]
    return [*steps, ("Outcome", headline(report))]


def _points(found: CompensationRecord) -> list[Step]:
    """A step for each operating point that was built, the slowest first, then the choice."""
    steps = [("Built", _point_words(point)) for point in sorted(found.frontier, key=lambda point: point.speedup.value)]
    chosen = next((point for point in found.frontier if point.chosen), None)
    if chosen is None:
        return [*steps, ("Chosen", f"none of them for {found.goal}: the result is the source, cleaned up")]
    reached = "" if found.reached else "; no point meets the goal, this one comes nearest"
    return [*steps, ("Chosen", f"{chosen.folder} for {found.goal}{reached}")]


def _point_words(point: PointRecord) -> str:
    said = speed(point.speedup) if point.reliable else f"speed {NOT_MEASURED} ({point.why})"
    return (
        f"{point.folder}: {said}, {point.drop:+.2f} points below the source on the select rows (SE {point.noise:.2f}), "
        f"judged {point.judged_drop:+.2f}"
    )


def _walk(report: Report) -> list[Step]:
    """What was accepted, trial by trial, then the stage that was chosen. The rejected ones are in the table of candidates."""
    search = report.search
    steps = [
        ("Accepted", f"{trial.element}{'' if trial.loss is None else f', loss {trial.loss:.5f}'}: {trial.reason}")
        for trial in search.trials
        if trial.accepted
    ]
    scores = ", ".join(f"stage {one.stage}: {one.score:.2f}" for one in search.stage_scores)
    if scores:
        steps.append(("Select rows", f"{report.metric} of {scores}"))
    return [*steps, ("Chosen", f"stage {search.chosen_stage} of {search.accepted}")]
