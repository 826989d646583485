"""The whole line: a fine-tuned model in, a smaller graph with its plan and its report out.

    load, recognise -> rows of three roles -> search -> plan -> apply -> verify -> measure on report rows -> write

The source is never modified. The output folder holds the journal from the start (a killed run goes on from it); all
else appears at the end, by rename, or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axformer_onnx import output_folder
from axformer_onnx.apply import write_planned
from axformer_onnx.given import Given, OptimizeOptions, open_source, read_rows
from axformer_onnx.runtime import versions
from axformer_onnx.search.axformer import search_axformer
from axformer_onnx.search.journal import Journal, open_journal
from axformer_onnx.search.recalibrate import Recalibrated
from axformer_onnx.search.robust import search_robust
from axformer_onnx.search.walk import Progress, SearchResult
from axformer_passes.plan import Plan

if TYPE_CHECKING:
    from axformer_onnx.report.record import Report

__all__ = ["OptimizeOptions", "OptimizeResult", "Watcher", "optimize"]


@dataclasses.dataclass(frozen=True)
class OptimizeResult:
    """The report, the plan that was applied, and the folder that holds all."""

    report: Report
    plan: Plan
    output: Path


@dataclasses.dataclass(frozen=True)
class Watcher:
    """Who is told how far the run is; the default tells nobody."""

    step: Callable[[str], None] = lambda text: None
    trial: Progress = lambda trial, left: None


def optimize(options: OptimizeOptions, watcher: Watcher | None = None) -> OptimizeResult:
    """Search a plan for `options.model`, apply it, measure it, and write the output folder.

    Ctrl-C during the search ends the search; the best so far is then applied, measured and written.

    Raises: AxformerError (errors.py); then nothing but the journal was written.
    """
    watcher = watcher or Watcher()
    watcher.step("reading the model")
    source = open_source(options)
    watcher.step("reading the rows")
    given = read_rows(options, source)
    output_folder.claim(options.output, source.path, overwrite=options.overwrite)
    journal_path = options.output / output_folder.JOURNAL
    with open_journal(journal_path, _header(options, given), overwrite=options.overwrite) as journal:
        output_folder.sweep(options.output)
        if options.overwrite:
            output_folder.clear(options.output)
        watcher.step("searching")
        result = _search(options, given, journal, watcher)
        if result.interrupted:
            watcher.step("interrupted: finishing with the best so far (Ctrl-C again stops at once)")
        with output_folder.staging(options.output) as folder:
            report = _build(options, given, result, journal.resumed, folder, watcher)
    return OptimizeResult(report, result.plan, options.output)


def _header(options: OptimizeOptions, given: Given) -> dict[str, Any]:
    """What must be equal for a journal to be continued. Threads may change: they change no verdict but by rounding."""
    task = given.reading.task
    used = {name: version for name, version in versions().items() if name in _DECISIVE}
    return {
        "source_sha256": given.source.sha256,
        "data": {role: rows.sha256 for role, rows in given.rows.items()},
        "options": {
            "task": task.name,
            "metric": task.metric,
            "labels": list(given.reading.label_map.order),
            "max_length": given.reading.encoder.max_length,
            "search": options.search,
            "k": options.k,
            "seed": options.seed,
            "provider": options.machine.provider,
        },
        "versions": used,
    }


_DECISIVE = ("axformer-onnx", "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers")


# -- search ------------------------------------------------------------------------------------------------------


def _search(options: OptimizeOptions, given: Given, journal: Journal, watcher: Watcher) -> SearchResult:
    from axformer_onnx.search.stages import StageScorer, StageSessions

    source, reading = given.source, given.reading
    machine = options.machine
    sessions = StageSessions(source.model, provider=machine.provider, threads=machine.threads)

    def scorer(role: str) -> StageScorer:
        rows = given.rows[role]
        return StageScorer(sessions, source.anatomy, given.encoded[role], rows, reading.task, reading.label_map)

    def recalibrated(role: str) -> StageScorer | Recalibrated:
        if reading.task.regression:
            return scorer(role)
        return Recalibrated(scorer(role), given.rows[role].labels, reading.label_map)

    start = Plan(source_sha256=source.sha256)
    if options.search == "axformer":
        return search_axformer(
            source.anatomy, scorer("search"), start=start, k=options.k, memory=journal, progress=watcher.trial
        )
    return search_robust(
        source.anatomy,
        recalibrated("search"),
        recalibrated("select"),
        start=start,
        k=options.k,
        seed=options.seed,
        memory=journal,
        progress=watcher.trial,
    )


# -- result ------------------------------------------------------------------------------------------------------


def _build(
    options: OptimizeOptions,
    given: Given,
    result: SearchResult,
    resumed: int,
    folder: Path,
    watcher: Watcher,
) -> Report:
    """Write model, plan, report and companions into `folder`."""
    from axformer_onnx.outcome import outcome
    from axformer_onnx.report.markdown import markdown

    watcher.step("applying the plan")
    model = folder / output_folder.MODEL
    write_planned(given.source.path, given.source.model, result.plan, model)
    (folder / "plan.json").write_text(result.plan.dumps(), encoding="utf-8")
    output_folder.copy_companions(given.source.path.parent, folder)
    report = outcome(options, given, result, model, resumed_trials=resumed, step=watcher.step)
    (folder / "report.json").write_text(report.dumps(), encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    return report
