"""The whole line: a fine-tuned model in, a smaller graph with its plan and its report out.

    load, recognise -> rows of three roles -> search -> plan -> apply -> verify -> measure on report rows -> write

The source is never modified. The output folder holds the journal from the start (a killed run goes on from it); all
else appears at the end, by rename, or not at all.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axformer_onnx.commands.padding_choice import with_padding_chosen
from axformer_onnx.commands.preview import Preview, preview
from axformer_onnx.commands.replay import write_planned
from axformer_onnx.commands.results import OptimizeResult
from axformer_onnx.compensate import WEIGHTS
from axformer_onnx.errors import UsageError
from axformer_onnx.inputs import Given, OptimizeOptions, shared_weights
from axformer_onnx.result import JOURNAL, MODEL, PAGE, REPORT, claim, clear, copy_companions, staging, sweep
from axformer_onnx.runtime import RUNTIME, run_once, versions
from axformer_onnx.search import open_journal
from axformer_onnx.searches import Decided, SearchRun, Watcher, Working, search_named
from axformer_passes.plan import Plan
from axformer_passes.precision import Half

if TYPE_CHECKING:
    from axformer_onnx.result.report import Report

__all__ = ["OptimizeOptions", "OptimizeResult", "Watcher", "optimize", "run"]


def optimize(options: OptimizeOptions, watcher: Watcher | None = None) -> OptimizeResult:
    """Search a plan for `options.model`, apply it, measure it, and write the output folder.

    Ctrl-C during the search ends the search; the best so far is then applied, measured and written.

    Raises: AxformerError (errors.py); then nothing but the journal was written.
    """
    watcher = watcher or Watcher()
    return run(preview(options, watcher.step, timed=False), watcher)


def run(seen: Preview, watcher: Watcher) -> OptimizeResult:
    """Carry out what was previewed. Raises: as `optimize`; what the preview is missing."""
    if seen.problem is not None or seen.given is None:
        raise seen.problem or UsageError(f"{seen.options.model}: there are no rows")
    options, source, given = seen.options, seen.source, seen.given
    claim(options.output, source.path, overwrite=options.overwrite)
    journal_path = options.output / JOURNAL
    with open_journal(journal_path, _header(options, given), overwrite=options.overwrite) as journal:
        sweep(options.output)
        if options.overwrite:
            clear(options.output)
        with staging(options.output) as folder:
            working, given = _working_model(options, given)
            given = with_padding_chosen(options, given, _start(options, given), journal, watcher.step)
            watcher.step("searching")
            work = SearchRun(options, given, working, _start(options, given), journal, folder, watcher)
            decided = search_named(options.search).run(work)
            if decided.interrupted:
                watcher.step("interrupted: finishing with the best so far (Ctrl-C again stops at once)")
            report = _build(options, given, decided, folder, watcher)
    return OptimizeResult(report, decided.plan, options.output)


def _header(options: OptimizeOptions, given: Given) -> dict[str, Any]:
    """What must be equal for a journal to be continued. Threads may change: they change no verdict but by rounding."""
    task = given.reading.task
    shared = shared_weights(options, given.source.anatomy)
    used = {name: version for name, version in versions().items() if name.startswith(_DECISIVE)}
    return {
        "source_sha256": given.source.sha256,
        "data": {role: rows.sha256 for role, rows in given.rows.items()},
        "options": {
            "task": task.name,
            "metric": task.metric,
            "labels": list(given.reading.label_map.order),
            "max_length": given.reading.encoder.max_length,
            **options.decisive(),
            **({} if shared == "separate" else {"shared_weights": shared}),
        },
        "versions": used,
    }


_DECISIVE = ("axformer-onnx", "numpy", RUNTIME, "tokenizers")
"""What the names of packages begin with."""


# -- search ------------------------------------------------------------------------------------------------------


def _working_model(options: OptimizeOptions, given: Given) -> tuple[Working, Given]:
    """What searches work on: the source, its read-out narrowed where that is wanted and legal, which the notes say."""
    from axformer_passes.apply import narrowed

    source = given.source
    if options.readout == "whole":
        return Working(source.model, source.examined), given
    model, found = narrowed(source.model, run_once)
    if found.nodes:
        said = f"the read-out is narrowed (exact): {len(found.nodes)} operators compute only the token that the output reads"
    else:
        said = f"the read-out stays whole: {found.why}"
    given = dataclasses.replace(given, notes=(*given.notes, said), narrow=bool(found.nodes))
    return (Working.of(model) if found.nodes else Working(source.model, source.examined)), given


def _start(options: OptimizeOptions, given: Given) -> Plan:
    source = given.source
    return Plan(
        source_sha256=source.sha256,
        shared_weights=shared_weights(options, source.anatomy),
        readout="narrow" if given.narrow else "whole",
        constants=options.constants,
        keys_values="projected" if options.int8 else options.keys_values,
        half=_half(options, given),
        padding=given.padding,
        source="dequantised" if source.dequantised else "given",
    )


def _half(options: OptimizeOptions, given: Given) -> Half | None:
    from axformer_onnx.scoring import half_for

    if options.half is None:
        return None
    return half_for(given.source.examined.labelling.model, options.half, given.encoded["search"])


# -- result ------------------------------------------------------------------------------------------------------


def _build(options: OptimizeOptions, given: Given, decided: Decided, folder: Path, watcher: Watcher) -> Report:
    """Write model, plan, report and companions into `folder`."""
    from axformer_onnx.result import outcome
    from axformer_onnx.result.page import html_page
    from axformer_onnx.result.report import markdown

    watcher.step("applying the plan")
    model = folder / MODEL
    write_planned(given.source, decided.plan, model, decided.weights, decided.built)
    (folder / "plan.json").write_text(decided.plan.dumps(), encoding="utf-8")
    if decided.weights is not None:
        shutil.copyfile(decided.weights, folder / WEIGHTS)
    copy_companions(given.source.folder, folder)
    given = dataclasses.replace(given, notes=(*given.notes, *decided.notes))
    report = outcome(options, given, decided.plan, model, decided.search, decided.compensation, step=watcher.step)
    (folder / REPORT).write_text(report.dumps(), encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    (folder / PAGE).write_text(html_page(report), encoding="utf-8")
    return report
