"""What a compensated search needs before it chooses: levels with their weights, a latency table, and the cost of every rung.

rows -> moments -> levels of every unit          model -> latency table          levels, rows -> sweep

Each step is a function from records to a record. What is measured goes to the journal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from axformer_onnx.compensate import Sample, text_samples
from axformer_onnx.data import TokenisedOnce, calibration_rows
from axformer_onnx.errors import UsageError
from axformer_onnx.records import FloatArray
from axformer_onnx.scoring import outliers, static_steps
from axformer_onnx.search.compensated.divergence import Divergence, scorer_of
from axformer_onnx.search.compensated.evaluator import Evaluator
from axformer_onnx.search.compensated.latency_table import LatencyTable, cached_table, from_json, measure_table, to_json
from axformer_onnx.search.compensated.levels import Choice, Levels, Unit, build_levels, round_stages
from axformer_onnx.search.compensated.operating_points import shape_of
from axformer_onnx.search.compensated.row_sampling import IntArray, drawn_from_pool, drawn_rows, sizes_of
from axformer_onnx.search.compensated.tuning import (
    EFFORTS,
    LEAST_ROWS,
    Effort,
    affordable_tokens,
    filled,
    race_rows,
    sweep_rows,
    swept_rungs,
    thinned,
)
from axformer_onnx.search.compensated.workers import Cluster, InProcess, Pool, Scoring, start_ray, write_spool
from axformer_onnx.search.elements import TOPK_OPSET
from axformer_passes.blocks import parameters_by_layer
from axformer_passes.plan import Plan
from axformer_passes.precision import read_scales, read_smooth, scales_as_text, smooth_as_text

if TYPE_CHECKING:
    from axformer_onnx.inputs import Given, OptimizeOptions
    from axformer_onnx.runtime import Shelf
    from axformer_onnx.scoring import StageSessions
    from axformer_onnx.search.journal import Journal
    from axformer_passes.precision import Int8

Watch = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)."""
CACHE_BYTES = 2**30
"""Hidden states that races keep."""
PART_ROWS = 64
"""Rows of one part of a race."""
HARD_LADDER = (1, 2, 4, 8, 16, 32)
"""The ks of hard attention that take part."""


@dataclasses.dataclass(frozen=True)
class SearchInputs:
    """What a compensated search is given.

    sessions   of the model that it works on: the source, narrowed if `start` says so
    start      the plan to which choices are added
    """

    options: OptimizeOptions
    given: Given
    sessions: StageSessions
    start: Plan
    journal: Journal
    watch: Watch

    @property
    def macs_per_token(self) -> float:
        """Multiply-accumulates of the projections."""
        return float(sum(parameters_by_layer(self.given.source.anatomy)))

    @property
    def effort(self) -> Effort:
        """The bounds that were asked for."""
        return EFFORTS[self.options.effort]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Samples of the second moments and of the refits; `rows`: how many rows there are, and how many of them are mixed."""

    moments: list[Sample]
    refit: list[Sample]
    rows: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class SampledRows:
    """The search rows that candidates are evaluated on.

    rows, weights   int64[n], in random order; float64[n]
    stages_run      stages x rows that it took to draw them
    """

    rows: IntArray
    weights: FloatArray
    stages_run: int


@dataclasses.dataclass(frozen=True)
class Scored:
    """Who scores candidates, here and in workers; the first `sweep_parts` parts of the rows are the sweep's.

    effort    what the model can afford of what was asked for
    sampled   the rows
    cluster   of `scoring`, where it is Ray's
    """

    divergence: Divergence
    scoring: Scoring
    sweep_parts: int
    effort: Effort
    sampled: SampledRows
    cluster: Cluster | None = None

    def close(self) -> None:
        """No more questions follow: what only makes the next one faster goes, and a cluster that was started for them ends."""
        self.divergence.forget()
        if self.cluster is not None:
            self.cluster.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report."""
        if self.cluster is None or not isinstance(self.scoring, Pool):
            return ()
        return (self.cluster.note(self.scoring.seconds),)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What choices are made from: units with the weights of their rungs, and what these cost in milliseconds and in divergence."""

    calibration: Calibration
    levels: Levels
    table: LatencyTable
    costs: list[FloatArray]
    scored: Scored
    evaluator: Evaluator


def prepare(inputs: SearchInputs, shelf: Shelf, spool: Path) -> Prepared:
    """Moments, levels, latency table, sweep. Raises: UsageError where nothing can be compensated."""
    calibration = _calibration(inputs)
    levels = _levels(inputs, calibration, shelf)
    if levels.int8 is not None:
        round_stages(inputs.sessions, levels)
    table = _table(inputs, levels)
    scored = _scored(inputs, levels, spool)
    evaluator = Evaluator(scored.scoring, inputs.journal)
    try:
        costs = _sweep(inputs, levels.units, scored, evaluator)
    except BaseException:
        scored.close()
        raise
    return Prepared(calibration, levels, table, costs, scored, evaluator)


def _calibration(inputs: SearchInputs) -> Calibration:
    if inputs.options.is_whole:
        return Calibration([], [], {"calibration": 0, "mixed": 0})
    rows, tokens = inputs.given.rows, inputs.given.encoded
    known = [(rows[role], tokens[role]) for role in ("search", "calibration") if role in rows]
    encoder = TokenisedOnce(inputs.given.reading.encode, *known)

    def some(wanted: int) -> tuple[list[Sample], dict[str, int]]:
        found, mixed = calibration_rows(
            rows["search"],
            rows.get("calibration"),
            wanted,
            lambda part: encoder.encode(part).row_lengths,
            inputs.options.seed,
        )
        count = {"calibration": len(found), "mixed": mixed}
        return text_samples(encoder.encode(found), inputs.sessions.input_names), count

    refit_tokens, moment_tokens = (
        affordable_tokens(wanted, inputs.macs_per_token)
        for wanted in (inputs.effort.refit_tokens, inputs.effort.calibration_tokens)
    )
    refit, count = some(refit_tokens)
    moments, count = (refit, count) if refit_tokens == moment_tokens else some(moment_tokens)
    return Calibration(moments, refit, count)


def _levels(inputs: SearchInputs, calibration: Calibration, shelf: Shelf) -> Levels:
    blocks = sum(len(layer.blocks) for layer in inputs.given.source.anatomy.layers)
    done = iter(range(blocks))
    levels = build_levels(
        inputs.sessions, calibration.moments, shelf, shared=inputs.start.shared_weights,
        int8=_int8(inputs), whole=inputs.options.is_whole,
        progress=lambda where: inputs.watch(f"levels of {where}", next(done, blocks), blocks),
    )  # fmt: skip
    if not levels.units:
        raise UsageError(
            "no output projection of this model can be given new weights (are they quantised?); optimize the unquantised "
            "model, or use --search robust"
        )
    return levels


def _int8(inputs: SearchInputs) -> Int8 | None:
    """What plans say about integers, the blocks left open; outliers and static ranges as search rows show them."""
    asked = inputs.options.int8
    if asked is None:
        return None
    given: Int8 = asked
    smooth = inputs.journal.fact("outliers", lambda: smooth_as_text(_seen(inputs, outliers, "outliers", given).smooth))
    smoothed, name = dataclasses.replace(given, smooth=read_smooth(smooth, "the journal")), "static ranges"
    if not smoothed.is_static:
        return smoothed
    scales = inputs.journal.fact(name, lambda: scales_as_text(_seen(inputs, static_steps, name, smoothed).scales))
    return dataclasses.replace(smoothed, scales=read_scales(scales, "the journal"))


def _seen(inputs: SearchInputs, found_by: Callable[..., Int8], what: str, int8: Int8) -> Int8:
    """What `found_by` finds on the search rows."""
    examined, rows = inputs.sessions.staged.examined, inputs.given.encoded["search"]
    return found_by(examined, int8, rows, lambda done, of: inputs.watch(what, done, of))


def _scored(inputs: SearchInputs, levels: Levels, spool: Path) -> Scored:
    options, reading, sessions = inputs.options, inputs.given.reading, inputs.sessions
    search, tokens = inputs.given.rows["search"], inputs.given.encoded["search"]
    macs_per_row = inputs.macs_per_token * float(tokens.row_lengths.mean())
    effort = thinned(inputs.effort, levels.units, macs_per_row)
    swept = sweep_rows(effort, levels.units, macs_per_row)
    drawn = _sampled(inputs, max(swept, race_rows(effort, macs_per_row)))
    at = np.array_split(np.arange(len(drawn.rows)), max(1, round(len(drawn.rows) / PART_ROWS)))
    kept = [(search.take(drawn.rows[part]), tokens.take(drawn.rows[part])) for part in at]
    scorers = [scorer_of(sessions, *part, reading, CACHE_BYTES // len(kept)) for part in kept]
    divergence = Divergence(sessions, levels, scorers, kind=reading.task.kind, weights=[drawn.weights[i] for i in at])
    scoring: Scoring = InProcess(divergence)
    cluster = _cluster(inputs) if options.backend == "ray" else None
    if options.jobs > 1 or cluster is not None:
        write_spool(spool, divergence, reading, kept)
        scoring = Pool(divergence, spool, jobs=cluster.jobs if cluster else options.jobs, backend=options.backend)
    sweep_parts = max(1, min(len(at), round(swept / len(at[0]))))
    return Scored(divergence, scoring, sweep_parts, effort, drawn, cluster)


def _cluster(inputs: SearchInputs) -> Cluster:
    inputs.watch("starting Ray", 0, 1)
    cluster = start_ray(inputs.options.jobs)
    inputs.watch(f"Ray started in {cluster.seconds:.1f} s", 1, 1)
    return cluster


def _sampled(inputs: SearchInputs, count: int) -> SampledRows:
    search, tokens = inputs.given.rows["search"], inputs.given.encoded["search"]
    reading, seed = inputs.given.reading, inputs.options.seed
    if not reading.task.kind.weighs_rows:
        return SampledRows(*drawn_rows(np.ones(len(search)), count, seed), 0)
    inputs.watch("what the source is unsure about", 0, 1)
    stages_run = 0

    def sizes_at(pool: IntArray) -> FloatArray:
        nonlocal stages_run
        scorer = scorer_of(inputs.sessions, search.take(pool), tokens.take(pool), reading, 0)
        sizes = sizes_of(scorer.outputs(inputs.sessions.settings(Plan())), reading.task.kind)
        stages_run = scorer.stages_run
        return sizes

    rows, weights = drawn_from_pool(len(search), count, LEAST_ROWS, seed, sizes_at)
    return SampledRows(rows, weights, stages_run)


def _table(inputs: SearchInputs, levels: Levels) -> LatencyTable:
    units, int8 = levels.units, levels.int8
    given, start, machine = inputs.given, inputs.start, inputs.options.machine
    shape, hard = shape_of(inputs.options, given), _ks(inputs)

    def measure() -> LatencyTable:
        return measure_table(
            inputs.sessions.model, inputs.sessions.examined, units, machine, shape,
            source=given.source.path, tokens=given.reading.tokens, hard=hard, int8=int8,
            rewrites=start, seed=inputs.options.seed,
            progress=lambda done, of: inputs.watch("measuring latencies", done, of),
        )  # fmt: skip

    key = {
        "model": given.source.sha256, "readout": start.readout,
        "constants": start.constants, "keys_values": start.keys_values,
        "shape": shape, "provider": given.runs_on or machine.provider,
        "threads": machine.threads, "hard": hard,
        **({"int8": int8.bits, "smooth": int8.to_json().get("smooth")} if int8 else {}),
        **({"activations": int8.activations} if int8 and int8.is_static else {}),
        **({"source": start.source} if start.source != "given" else {}),
        **({"padding": start.padding} if start.padding != "kept" else {}),
        **({"half": start.half.to_json()} if start.half else {}),
    }  # fmt: skip
    return from_json(inputs.journal.fact("latency table", lambda: to_json(cached_table(key, units, measure))))


def _ks(inputs: SearchInputs) -> tuple[int, ...]:
    """The ks of hard attention that are priced: none where tuning has no evaluations, TopK does not promise how ties end, or all
    stays whole."""
    enough = (
        inputs.effort.evaluations and inputs.given.source.anatomy.opset >= TOPK_OPSET and not inputs.options.is_whole
    )
    return HARD_LADDER if enough else ()


def _sweep(inputs: SearchInputs, units: Sequence[Unit], scored: Scored, evaluator: Evaluator) -> list[FloatArray]:
    """The divergence of every rung by unit; from the top of the model down, so that the hidden states below are reused."""
    base = Choice((0,) * len(units))
    costs: dict[int, FloatArray] = {}
    for number in reversed(range(len(units))):
        rungs = swept_rungs(units[number], scored.effort.rungs)
        choices = [base.with_rung(number, rung) for rung in rungs]
        values = evaluator.means(f"sweep {number} {rungs}", choices, scored.sweep_parts)
        costs[number] = filled(units[number], dict(zip(rungs, values, strict=True)))
        inputs.watch("sweep", len(units) - number, len(units))
    return [costs[number] for number in range(len(units))]


__all__ = ["Prepared", "SearchInputs", "Watch", "prepare"]
