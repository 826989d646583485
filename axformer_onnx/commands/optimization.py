"""The whole line: a fine-tuned model in, a smaller graph with its plan and its report out.

    load, recognise -> rows of three roles -> search -> plan -> apply -> verify -> measure on report rows -> write

The source is never modified. The output folder holds the journal from the start (a killed run goes on from it); all
else appears at the end, by rename, or not at all.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axformer_onnx.commands.replay import write_planned
from axformer_onnx.compensate import WEIGHTS
from axformer_onnx.inputs import Given, OptimizeOptions, open_source, read_rows, shared_weights
from axformer_onnx.result import FRONTIER, JOURNAL, MODEL, claim, clear, copy_companions, staging, sweep
from axformer_onnx.result.report import compensated_record, compensation_record, search_record
from axformer_onnx.runtime import run_once, versions
from axformer_onnx.scoring import Recalibrated
from axformer_onnx.search import Journal, open_journal
from axformer_onnx.search.greedy import Progress, SearchResult, search_axformer, search_robust
from axformer_passes.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.result.report import CompensationRecord, Report, SearchRecord
    from axformer_onnx.scoring import StageSessions
    from axformer_onnx.search.compensated import Found
    from axformer_passes.recognise import Examined

__all__ = ["OptimizeOptions", "OptimizeResult", "Watcher", "optimize"]


@dataclasses.dataclass(frozen=True)
class OptimizeResult:
    """The report, the plan that was applied, and the folder that holds all."""

    report: Report
    plan: Plan
    output: Path


@dataclasses.dataclass(frozen=True)
class Watcher:
    """Who is told how far the run is; the default tells nobody.

    step     a line: what begins now
    trial    a trial of a search, and the most that can follow
    part     (what, how much of it is done, how much there is), of a compensated search
    """

    step: Callable[[str], None] = lambda text: None
    trial: Progress = lambda trial, left: None
    part: Callable[[str, int, int], None] = lambda what, done, of: None


@dataclasses.dataclass(frozen=True)
class _Working:
    """The model that a search works on, examined."""

    model: ir.Model
    examined: Examined

    def sessions(self, options: OptimizeOptions) -> StageSessions:
        """Of its stages."""
        from axformer_onnx.scoring import StageSessions

        machine = options.machine
        return StageSessions(self.model, provider=machine.provider, threads=machine.threads, examined=self.examined)

    def with_biases(self) -> _Working:
        """The same with a bias at every output projection that can have one."""
        from axformer_passes.apply import with_biases

        model = with_biases(self.model, run_once, examined=self.examined)
        return self if model is self.model else _Working.of(model)

    @classmethod
    def of(cls, model: ir.Model) -> _Working:
        """Examine it."""
        from axformer_passes.recognise import examine

        return cls(model, examine(model, run_once))


@dataclasses.dataclass(frozen=True)
class _Decided:
    """What a search decided: the plan, where its weights lie, and its graph if it is built, and records for the report."""

    plan: Plan
    weights: Path | None
    search: SearchRecord
    compensation: CompensationRecord | None = None
    interrupted: bool = False
    built: Path | None = None


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
    claim(options.output, source.path, overwrite=options.overwrite)
    journal_path = options.output / JOURNAL
    with open_journal(journal_path, _header(options, given), overwrite=options.overwrite) as journal:
        sweep(options.output)
        if options.overwrite:
            clear(options.output)
        with staging(options.output) as folder:
            working, given = _working_model(options, given)
            watcher.step("searching")
            search = _compensated if options.search == "compensated" else _walked
            decided = search(options, given, working, journal, folder, watcher)
            if decided.interrupted:
                watcher.step("interrupted: finishing with the best so far (Ctrl-C again stops at once)")
            report = _build(options, given, decided, folder, watcher)
    return OptimizeResult(report, decided.plan, options.output)


def _header(options: OptimizeOptions, given: Given) -> dict[str, Any]:
    """What must be equal for a journal to be continued. Threads may change: they change no verdict but by rounding."""
    task = given.reading.task
    shared = shared_weights(options, given.source.anatomy)
    used = {name: version for name, version in versions().items() if name in _DECISIVE}
    compensated = {
        "goal": options.goal.words,
        "effort": options.effort,
        "shapes": options.shapes,
        **({"refit_classifier": True} if options.refit_classifier else {}),
    }
    return {
        "source_sha256": given.source.sha256,
        "data": {role: rows.sha256 for role, rows in given.rows.items()},
        "options": {
            "task": task.name,
            "metric": task.metric,
            "labels": list(given.reading.label_map.order),
            "max_length": given.reading.encoder.max_length,
            "search": options.search,
            **(compensated if options.search == "compensated" else {"k": options.k}),
            "readout": options.readout,
            "constants": options.constants,
            "keys_values": options.keys_values,
            "seed": options.seed,
            "provider": options.machine.provider,
            **({} if shared == "separate" else {"shared_weights": shared}),
        },
        "versions": used,
    }


_DECISIVE = ("axformer-onnx", "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers")


# -- search ------------------------------------------------------------------------------------------------------


def _working_model(options: OptimizeOptions, given: Given) -> tuple[_Working, Given]:
    """What searches work on: the source, its read-out narrowed where that is wanted and legal, which the notes say."""
    from axformer_passes.apply import narrowed

    source = given.source
    if options.readout == "whole":
        return _Working(source.model, source.examined), given
    model, found = narrowed(source.model, run_once)
    if found.nodes:
        said = f"the read-out is narrowed (exact): {len(found.nodes)} operators compute only the token that the output reads"
    else:
        said = f"the read-out stays whole: {found.why}"
    given = dataclasses.replace(given, notes=(*given.notes, said), narrow=bool(found.nodes))
    return (_Working.of(model) if found.nodes else _Working(source.model, source.examined)), given


def _start(options: OptimizeOptions, given: Given) -> Plan:
    source = given.source
    return Plan(
        source_sha256=source.sha256,
        shared_weights=shared_weights(options, source.anatomy),
        readout="narrow" if given.narrow else "whole",
        constants=options.constants,
        keys_values=options.keys_values,
    )


def _walked(
    options: OptimizeOptions, given: Given, working: _Working, journal: Journal, folder: Path, watcher: Watcher
) -> _Decided:
    result = _walk(options, given, working, journal, watcher)
    record = search_record(result, options.search, seed=options.seed, k=options.k, resumed_trials=journal.resumed)
    return _Decided(result.plan, None, record, interrupted=result.interrupted)


def _walk(
    options: OptimizeOptions, given: Given, working: _Working, journal: Journal, watcher: Watcher
) -> SearchResult:
    from axformer_onnx.scoring import StageScorer

    reading, sessions = given.reading, working.sessions(options)
    anatomy = sessions.staged.examined.anatomy

    def scorer(role: str) -> StageScorer:
        rows = given.rows[role]
        task, label_map = reading.task, reading.label_map
        return StageScorer(sessions, anatomy, given.encoded[role], rows, task, label_map, output=reading.output)

    def recalibrated(role: str) -> StageScorer | Recalibrated:
        if not reading.task.kind.recalibrates:
            return scorer(role)
        return Recalibrated(scorer(role), given.rows[role].labels, reading.label_map, reading.task.kind)

    start = _start(options, given)
    if options.search == "axformer":
        return search_axformer(
            anatomy, scorer("search"), start=start, k=options.k, memory=journal, progress=watcher.trial
        )
    return search_robust(
        anatomy,
        recalibrated("search"),
        recalibrated("select"),
        start=start,
        k=options.k,
        seed=options.seed,
        memory=journal,
        progress=watcher.trial,
    )


def _compensated(
    options: OptimizeOptions, given: Given, working: _Working, journal: Journal, folder: Path, watcher: Watcher
) -> _Decided:
    """The compensated search; the plans of its points go to `frontier/` in `folder`, with the graph of the answer alone."""
    from axformer_onnx.runtime import Shelf
    from axformer_onnx.search.compensated import search_budget

    began, points = time.monotonic(), folder / FRONTIER
    with Shelf(_LEVEL_BYTES) as shelf:
        sessions = working.with_biases().sessions(options)
        found = search_budget(options, given, sessions, _start(options, given), journal, shelf, points, watcher.part)
    shutil.rmtree(folder / ".spool", ignore_errors=True)
    folders = _keep_plans(found)
    record = compensated_record(found, seed=options.seed, k=options.k, seconds=time.monotonic() - began)
    compensation = compensation_record(found, options.goal.words, options.effort, folders)
    kept = points / Path(folders[found.chosen.folder]).name
    weights = kept / WEIGHTS if found.chosen.plan.weights else None
    built = kept / found.chosen.graph.name
    return _Decided(
        found.chosen.plan, weights, record, compensation, found.interrupted, built if built.is_file() else None
    )


_LEVEL_BYTES = 2**29
"""Weights of levels that are kept in memory; beyond it they are in files."""


def _keep_plans(found: Found) -> dict[Path, str]:
    """Name the folder of every point after its speedup; returns the names, relative to the output folder."""
    names: dict[Path, str] = {}
    for point in sorted(found.points, key=lambda p: p.speedup.value):
        for graph in point.folder.glob(f"{point.graph.name}*") if point is not found.chosen else ():
            graph.unlink()
        name = base = f"{point.speedup.value:.2f}x"
        number = 2
        while (point.folder.parent / name).exists():
            name, number = f"{base}-{number}", number + 1
        point.folder.rename(point.folder.parent / name)
        names[point.folder] = f"{FRONTIER}/{name}"
    return names


# -- result ------------------------------------------------------------------------------------------------------


def _build(options: OptimizeOptions, given: Given, decided: _Decided, folder: Path, watcher: Watcher) -> Report:
    """Write model, plan, report and companions into `folder`."""
    from axformer_onnx.result import outcome
    from axformer_onnx.result.report import markdown

    watcher.step("applying the plan")
    model = folder / MODEL
    write_planned(given.source, decided.plan, model, decided.weights, decided.built)
    (folder / "plan.json").write_text(decided.plan.dumps(), encoding="utf-8")
    if decided.weights is not None:
        shutil.copyfile(decided.weights, folder / WEIGHTS)
    copy_companions(given.source.path.parent, folder)
    report = outcome(options, given, decided.plan, model, decided.search, decided.compensation, step=watcher.step)
    (folder / "report.json").write_text(report.dumps(), encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    return report
