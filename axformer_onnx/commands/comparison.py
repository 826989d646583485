"""Is a candidate as good as was asked for? Both models on the same rows, their speed side by side, a gate for each thing asked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axformer_onnx.commands.scored import Scored, score_models, shapes_of
from axformer_onnx.commands.scores import ScoreResult, score_result
from axformer_onnx.data import Rows
from axformer_onnx.gates import (
    HEADER,
    Gate,
    Measure,
    Measured,
    Outcome,
    Ratio,
    Verdict,
    benchmark,
    bmf,
    divergence_gate,
    drop_gate,
    gate_row,
    headline,
    junit,
    markdown,
    measured_again,
    same_speed,
    share_of,
    size_gate,
    speed_gates,
    write,
)
from axformer_onnx.options import CompareOptions
from axformer_onnx.result.report import html_table
from axformer_onnx.runtime import LatencyRow
from axformer_onnx.scoring import latency_of, paired_answers
from axformer_passes.io import sha256_of

_FORMS = (("junit", junit), ("markdown", markdown), ("benchmark", benchmark), ("bmf", bmf))
BY_CPU_TIME = (
    "latencies and speeds are CPU time on one thread (--clock cpu): how much work a model is, not how long a user waits"
)
Shape = tuple[int, int]
Step = Callable[[str], None]


@dataclasses.dataclass(frozen=True, repr=False)
class CompareResult:
    """The verdict, and the figures that it is about: those of `score`."""

    verdict: Verdict
    figures: ScoreResult

    @property
    def outcome(self) -> Outcome:
        """failed where a gate failed, else undecided where one is, else passed."""
        return self.verdict.outcome

    @property
    def ok(self) -> bool:
        """No gate failed; with `strict` none is undecided, either."""
        return self.verdict.ok

    @property
    def gates(self) -> tuple[Gate, ...]:
        """One for each thing that was asked for; of a speed one for each shape."""
        return self.verdict.gates

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {"format": "axformer-compare/1", **self.verdict.to_json(), "figures": self.figures.to_json()}

    def __repr__(self) -> str:
        return f"CompareResult({headline(self.verdict)})"

    def _repr_html_(self) -> str:
        return html_table(HEADER, map(gate_row, self.gates))


def compare(options: CompareOptions, step: Step = lambda text: None) -> CompareResult:
    """Score both, measure speed until it is decided, judge every gate that was asked for, and write the forms.

    Raises: AxformerError; a gate that fails is no error but an outcome.
    """
    rows, scored = score_models((options.baseline, options.candidate), options, step)
    same = _same(scored)
    shapes = shapes_of(options, scored)
    estimates = (options.max_drop is not None) + (options.max_divergence is not None)
    estimates += len(shapes) if options.min_speedup is not None else 0
    error = share_of(options.error_rate, estimates)
    gates = _quality(options, rows, scored, error, same=same)
    measured: list[Measured] = []
    if not same:
        step("measuring latency")
        measured = _speeds(options, scored, shapes, error, step)
        gates += [one.gate for one in measured if one.gate is not None]
    elif options.min_speedup is not None:
        gates += same_speed(options.min_speedup, shapes)
    latency = [row for one in measured for row in one.rows()]
    figures = score_result(rows, scored, latency, options.seed, 5)
    first, second = figures.models.values()
    if options.max_size_ratio is not None:
        gates.append(size_gate(first.size_bytes, second.size_bytes, options.max_size_ratio))
    verdict = Verdict(
        task=figures.task,
        metric=figures.metric,
        rows=figures.rows,
        baseline=scored[0].name,
        candidate=scored[1].name,
        gates=tuple(gates),
        figures=(("", *figures.models), *figures.figures()),
        ratios=_ratios(figures, same=same, shapes=shapes),
        error_rate=options.error_rate,
        strict=options.strict,
        warnings=(*figures.warnings, *([BY_CPU_TIME] if options.clock == "cpu" else [])),
    )
    for name, form in _FORMS:
        path: Path | None = getattr(options, name)
        if path is not None:
            write(path, form(verdict), append=name == "markdown")
    return CompareResult(verdict, figures)


def _same(scored: Sequence[Scored]) -> bool:
    """Is it one graph twice, which answers alike with either folder's tokenizer?"""
    a, b = scored
    return np.array_equal(a.scores.outputs, b.scores.outputs) and sha256_of(a.path) == sha256_of(b.path)


def _quality(options: CompareOptions, rows: Rows, scored: Sequence[Scored], error: float, *, same: bool) -> list[Gate]:
    a, b = scored
    gates, task = list[Gate](), a.reading.task
    if options.max_drop is not None:
        metric, first, second = paired_answers(
            a.scores, b.scores, rows.labels, task, a.reading.label_map, b.reading.label_map
        )
        gates.append(drop_gate(metric, first, second, options.max_drop, error=error, seed=options.seed, same=same))
    if options.max_divergence is not None:
        found = a.reading.label_map.arranged(b.scores.outputs, b.reading.label_map)
        divergence = task.kind.divergence(a.scores.outputs, found)
        gates.append(divergence_gate(divergence, options.max_divergence, error=error, seed=options.seed, same=same))
    return gates


def _speeds(
    options: CompareOptions, scored: Sequence[Scored], shapes: Sequence[Shape], error: float, step: Step
) -> list[Measured]:
    """Repetitions until every shape is decided; one, for the figures, where no speed was asked for."""
    measure = _clock(options, scored, step)
    if options.min_speedup is not None:
        return speed_gates(
            options.min_speedup, shapes, measure, error=error, repetitions=options.repetitions, say=step
        )  # fmt: skip
    found = [Measured(shape) for shape in shapes]
    measured_again(found, measure, 0)
    return found


def _clock(options: CompareOptions, scored: Sequence[Scored], step: Step) -> Measure:
    """Repetitions with sessions of their own. What was spent on a machine that did not become free is not waited for again."""
    left = options.wait_for_quiet

    def measure(shapes: Sequence[Shape], number: int) -> list[LatencyRow]:
        nonlocal left
        begin = time.monotonic()
        found = latency_of(
            {one.name: one.path for one in scored}, shapes, scored[0].reading.tokens, options.machine,
            options.seed + number, wait_seconds=left, say=step, clock="cpu" if options.clock == "cpu" else "either",
        )  # fmt: skip
        if not all(row.reliable for row in found):
            left = max(0.0, left - (time.monotonic() - begin))
        return found

    return measure


def _ratios(figures: ScoreResult, *, same: bool, shapes: Sequence[Shape]) -> tuple[Ratio, ...]:
    """What was measured, as multiples of the baseline's."""
    first, second = figures.models.values()
    found = list[Ratio]()
    if first.score > 0:
        points = f"{first.score:.2f} -> {second.score:.2f}"
        found.append(Ratio(figures.metric, "score", second.score / first.score, extra=points))
    found += [Ratio(f"speed, {batch} x {length}", "speed", 1.0) for batch, length in shapes if same]
    for row in figures.latency:
        if row.ratio is not None and row.reliable:
            name = f"speed, {row.batch} x {row.length}"
            found.append(Ratio(name, "speed", row.ratio.value, row.ratio.low, row.ratio.high))
    found.append(Ratio("file size", "size", second.size_bytes / first.size_bytes, bigger_is_better=False))
    return tuple(found)
