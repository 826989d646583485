"""Models on the report rows of a task, each read as its folder says: what `score` and `compare` begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.data import Encoded, Rows, resolve_report
from axformer_onnx.errors import UsageError
from axformer_onnx.inputs import Located, locate, not_stated, stated_task
from axformer_onnx.options import CompareOptions, ScoreOptions
from axformer_onnx.probing import at_its_sizes, open_model, text_sizes
from axformer_onnx.records import Scores
from axformer_onnx.runtime import run_once
from axformer_onnx.scoring import Reading, default_shapes, provider_warnings, reading_of, score_session, score_warnings
from axformer_onnx.tasks import Task
from axformer_passes.io import load_model, settings_folder
from axformer_passes.probe import probed

if TYPE_CHECKING:
    import onnx_ir as ir

Given = ScoreOptions | CompareOptions


@dataclasses.dataclass(frozen=True)
class Scored:
    """One model with its scores, and what is needed to run it again."""

    located: Located
    model: ir.Model
    reading: Reading
    encoded: Encoded
    scores: Scores
    warnings: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The graph."""
        return self.located.path

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.located.name


def score_models(given: Sequence[Path], options: Given, step: Callable[[str], None]) -> tuple[Rows, list[Scored]]:
    """The report rows, and every model on them; the first is what others are read as where their folder says nothing.

    Raises: AxformerError.
    """
    models = [locate(model, None, None, step) for model in given]
    if len({model.path.resolve() for model in models}) != len(models):
        raise UsageError(f"{models[0].name}: given twice; name two different models")
    task = options.task or _stated(options, models[0])
    if task.kind.fidelity and len(models) == 1:
        raise UsageError(
            f"--metric {task.metric} compares the answers of two models, only {models[0].name} was named; name the source, "
            "then the other"
        )
    step("reading the rows")
    rows = resolve_report(task, model_dir=settings_folder(models[0].path), data=options.data)
    scored: list[Scored] = []
    for model in models:
        step(f"scoring {model.name}")
        scored.append(_score_one(options, task, model, rows, scored[0] if scored else None))
    return rows, scored


def shapes_of(options: Given, scored: Sequence[Scored]) -> tuple[tuple[int, int], ...]:
    """(batch, length) at which latency is measured: what was asked for, else what the rows are like."""
    return options.shapes or default_shapes(scored[0].encoded)


def _stated(options: Given, first: Located) -> Task:
    """The task that the first model states. Raises: UsageError where it states none."""
    folder = settings_folder(first.path)
    stated = stated_task(load_model(first.path).metadata_props, folder)
    if stated is None:
        raise not_stated(first.name, folder)
    return options.with_task(stated.name).task


def _score_one(options: Given, given: Task, located: Located, rows: Rows, first: Scored | None) -> Scored:
    path = located.path
    session = options.machine.session(path)
    folder = settings_folder(path)
    if first is not None and not (folder / "tokenizer.json").is_file():
        folder = settings_folder(first.path)
    model = open_model(path, options.sample, folder=folder)
    at_its_sizes(model, lambda model: probed(model, run_once))
    # what is compared with the first is read as the first, names of labels included
    task = first.reading.task if first is not None and given.kind.needs_source else given
    reading = reading_of(folder, session, task, rows, max_length=options.max_length, sizes=text_sizes(model))
    encoded = reading.encode(rows)
    source = None if first is None else reading.label_map.arranged(first.scores.outputs, first.reading.label_map)
    scores = score_session(
        session, encoded, rows, reading.task, reading.label_map, output=reading.output, source=source
    )
    warnings = (
        *provider_warnings(session, options.machine.provider),
        *score_warnings(scores, located.name),
    )
    return Scored(located, model, reading, encoded, scores, warnings)
