"""Score one graph, or two against each other, on the report rows of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axformer_onnx.commands.changes import ChangedRow, most_changed
from axformer_onnx.data import Encoded, Rows, resolve_report
from axformer_onnx.errors import UsageError
from axformer_onnx.inputs import Located, locate, not_stated, stated_task
from axformer_onnx.options import ScoreOptions
from axformer_onnx.probing import at_its_sizes, open_model, size_note, text_sizes
from axformer_onnx.records import Scores
from axformer_onnx.result.report import (
    DIVERGENCE,
    ComparisonRecord,
    ModelRecord,
    comparison_record,
    count,
    divergence,
    html_table,
    in_cpu_time,
    megabytes,
    milliseconds,
    model_record,
    paired,
    speed,
)
from axformer_onnx.runtime import LatencyRow, run_once
from axformer_onnx.scoring import (
    Reading,
    compare,
    default_shapes,
    latency_of,
    latency_warnings,
    provider_warnings,
    reading_of,
    score_session,
    score_warnings,
    truncation_notes,
)
from axformer_passes.io import load_model, settings_folder
from axformer_passes.probe import probed

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclasses.dataclass(frozen=True, repr=False)
class ScoreResult:
    """Figures by model, in the order given; `comparison` is the second against the first, `changed` rows with another answer."""

    task: str
    metric: str
    rows: int
    source: str
    models: dict[str, ModelRecord]
    comparison: ComparisonRecord | None
    changed: tuple[ChangedRow, ...]
    majority_rate: float | None
    majority_metric: str
    fidelity: bool
    latency: tuple[LatencyRow, ...]
    macs_shape: str
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {
            "format": "axformer-score/1",
            **vars(self),
            "models": {name: record.model_dump(mode="json") for name, record in self.models.items()},
            "comparison": self.comparison and self.comparison.model_dump(mode="json"),
            "changed": [dataclasses.asdict(row) for row in self.changed],
            "latency": [_latency_json(row) for row in self.latency],
        }

    def figures(self) -> list[tuple[str, ...]]:
        """A row a figure: its name, then a cell a model."""
        records, figures = list(self.models.values()), list[tuple[str, ...]]()
        figures += [(name, *(f"{record.metrics[name]:.2f}" for record in records)) for name in records[0].metrics]
        if self.fidelity:
            figures.append((DIVERGENCE, *map(divergence, records)))
        else:
            figures.append(("loss", *("not finite" if r.loss is None else f"{r.loss:.4f}" for r in records)))
        for shape in dict.fromkeys((row.batch, row.length) for row in self.latency):
            rows = [row for row in self.latency if (row.batch, row.length) == shape]
            name = f"{shape[0]} x {shape[1]}"
            figures.append((f"latency p50, {name}", *(milliseconds(row.p50_ms, reliable=row.reliable) for row in rows)))
            figures.append((f"latency p95, {name}", *(milliseconds(row.p95_ms, reliable=row.reliable) for row in rows)))
            if len(rows) == 2 and rows[1].ratio is not None:
                found = (
                    speed(rows[1].ratio) if rows[1].reliable else f"undecided: {rows[1].why}{in_cpu_time(rows[1].cpu)}"
                )
                figures.append((f"speed, {name}", "1.00x", found))
        figures.append(("file size", *(megabytes(record.size_bytes) for record in records)))
        figures.append(("parameters", *(count(record.parameters) for record in records)))
        figures.append((f"multiply-accumulates, {self.macs_shape}", *(count(record.macs) for record in records)))
        return figures

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {record.score:.2f}" for name, record in self.models.items())
        compared = f"; second against first: {paired(self.comparison)}" if self.comparison else ""
        return f"ScoreResult({self.task}, {self.metric}: {scores}{compared})"

    def _repr_html_(self) -> str:
        return html_table((f"{self.task}, {self.rows} rows", *self.models), self.figures())


def _latency_json(row: LatencyRow) -> dict[str, Any]:
    """All but the single rounds."""
    found = dataclasses.asdict(row)
    del found["wall_ms"]
    return found


@dataclasses.dataclass(frozen=True)
class _Scored:
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


def score(options: ScoreOptions, step: Callable[[str], None] = lambda text: None) -> ScoreResult:
    """Score each model on the report rows, the second against the first by a paired test, latency interleaved.

    A model whose folder has no tokenizer is read with the first one's; a checkpoint is exported into the user's cache.
    Raises: AxformerError (errors.py).
    """
    models = [locate(model, None, None, step) for model in options.models]
    if len({model.path.resolve() for model in models}) != len(models):
        raise UsageError(f"{models[0].name}: given twice; name two different models")
    options = _with_task(options, models[0])
    if options.task.kind.fidelity and len(models) == 1:
        raise UsageError(
            f"--metric {options.task.metric} compares the answers of two models, only {models[0].name} was named; name the source, "
            "then the other"
        )
    step("reading the rows")
    rows = resolve_report(options.task, model_dir=settings_folder(models[0].path), data=options.data)
    scored: list[_Scored] = []
    for model in models:
        step(f"scoring {model.name}")
        scored.append(_score_one(options, model, rows, scored[0] if scored else None))
    step("measuring latency")
    shapes = options.shapes or default_shapes(scored[0].encoded)
    latency = latency_of(
        {model.name: model.path for model in models}, shapes, scored[0].reading.tokens, options.machine, options.seed,
        wait_seconds=options.wait_for_quiet, say=step, by_cpu_time=True,
    )  # fmt: skip
    return _result(options, rows, scored, latency)


def _with_task(options: ScoreOptions, first: Located) -> ScoreOptions:
    """The task that the first model states, where none was given. Raises: UsageError where it states none."""
    if options.task is not None:
        return options
    folder = settings_folder(first.path)
    stated = stated_task(load_model(first.path).metadata_props, folder)
    if stated is None:
        raise not_stated(first.name, folder)
    return options.with_task(stated.name)


def _score_one(options: ScoreOptions, located: Located, rows: Rows, first: _Scored | None) -> _Scored:
    path = located.path
    session = options.machine.session(path)
    folder = settings_folder(path)
    if first is not None and not (folder / "tokenizer.json").is_file():
        folder = settings_folder(first.path)
    model = open_model(path, options.sample, folder=folder)
    at_its_sizes(model, lambda model: probed(model, run_once))
    # what is compared with the first is read as the first, names of labels included
    task = first.reading.task if first is not None and options.task.kind.needs_source else options.task
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
    return _Scored(located, model, reading, encoded, scores, warnings)


def _notes(one: _Scored) -> list[str]:
    sizes = [size_note(one.model)] if size_note(one.model) else []
    return [*one.located.notes, *sizes, *truncation_notes([("report", one.encoded)])]


def _result(options: ScoreOptions, rows: Rows, scored: Sequence[_Scored], latency: Sequence[LatencyRow]) -> ScoreResult:
    from axformer_passes.blocks import macs

    first = scored[0]
    batch, length = default_shapes(first.encoded)[0]
    comparison = None
    if len(scored) == 2:
        task, a, b = first.reading.task, first.reading.label_map, scored[1].reading.label_map
        compared = compare(first.scores, scored[1].scores, rows.labels, task, a, options.seed, label_map_b=b)
        comparison = comparison_record(compared)
    return ScoreResult(
        task=first.reading.task.name,
        metric=first.scores.metric,
        rows=len(rows),
        source=rows.source,
        models={
            one.name: model_record(one.path, one.scores, macs(one.model, run_once, batch, length)) for one in scored
        },
        comparison=comparison,
        changed=_changed(options, rows, scored),
        majority_rate=first.scores.majority_rate,
        majority_metric=first.scores.majority_metric,
        fidelity=first.reading.task.kind.fidelity,
        latency=tuple(latency),
        macs_shape=f"{batch} x {length}",
        labels=tuple(dict.fromkeys(one.reading.label_map.note for one in scored)),
        notes=tuple(
            dict.fromkeys(
                note
                for note in (
                    first.reading.task.kind.note_on("report", rows.labels),
                    *(n for one in scored for n in _notes(one)),
                )
                if note
            )
        ),
        warnings=(*(warning for one in scored for warning in one.warnings), *latency_warnings(latency)),
    )


def _changed(options: ScoreOptions, rows: Rows, scored: Sequence[_Scored]) -> tuple[ChangedRow, ...]:
    """Rows with another answer, where answers are what is compared."""
    kind = scored[0].reading.task.kind
    if not kind.fidelity:
        return ()
    (a, first), (b, second) = ((one.reading.label_map, one.scores.outputs) for one in scored)
    return most_changed(rows, kind, first, a.arranged(second, b), a, options.changed)
