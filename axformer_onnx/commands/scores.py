"""Score one graph, or two against each other, on the report rows of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from axformer_onnx.commands.changes import ChangedRow, most_changed
from axformer_onnx.commands.scored import Scored, score_models, shapes_of
from axformer_onnx.data import Rows
from axformer_onnx.options import ScoreOptions
from axformer_onnx.probing import size_note
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
    compare,
    default_shapes,
    latency_of,
    latency_warnings,
    truncation_notes,
)


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


def score(options: ScoreOptions, step: Callable[[str], None] = lambda text: None) -> ScoreResult:
    """Score each model on the report rows, the second against the first by a paired test, latency interleaved.

    A model whose folder has no tokenizer is read with the first one's; a checkpoint is exported into the user's cache.
    Raises: AxformerError (errors.py).
    """
    rows, scored = score_models(options.models, options, step)
    step("measuring latency")
    latency = latency_of(
        {one.name: one.path for one in scored}, shapes_of(options, scored), scored[0].reading.tokens, options.machine,
        options.seed, wait_seconds=options.wait_for_quiet, say=step, clock="either",
    )  # fmt: skip
    return score_result(rows, scored, latency, options.seed, options.changed)


def _notes(one: Scored) -> list[str]:
    sizes = [size_note(one.model)] if size_note(one.model) else []
    return [*one.located.notes, *sizes, *truncation_notes([("report", one.encoded)])]


def score_result(
    rows: Rows, scored: Sequence[Scored], latency: Sequence[LatencyRow], seed: int, changed: int
) -> ScoreResult:
    """Everything that was found of one model or two. changed: how many rows with another answer to show, by agreement."""
    from axformer_passes.blocks import macs

    first = scored[0]
    batch, length = default_shapes(first.encoded)[0]
    comparison = None
    if len(scored) == 2:
        task, a, b = first.reading.task, first.reading.label_map, scored[1].reading.label_map
        compared = compare(first.scores, scored[1].scores, rows.labels, task, a, seed, label_map_b=b)
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
        changed=_changed(rows, scored, changed),
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


def _changed(rows: Rows, scored: Sequence[Scored], count: int) -> tuple[ChangedRow, ...]:
    """Rows with another answer, where answers are what is compared."""
    kind = scored[0].reading.task.kind
    if not kind.fidelity:
        return ()
    (a, first), (b, second) = ((one.reading.label_map, one.scores.outputs) for one in scored)
    return most_changed(rows, kind, first, a.arranged(second, b), a, count)
