"""What a compensated search needs before it chooses: levels with their weights, a latency table, and the cost of every rung.

rows -> moments -> levels of every unit          model -> latency table          levels, rows -> sweep
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from axformer_onnx.compensate import Sample, text_samples
from axformer_onnx.data import calibration_rows
from axformer_onnx.errors import UsageError
from axformer_onnx.records import FloatArray
from axformer_onnx.search.compensated.divergence import Divergence, Race, scorer_of
from axformer_onnx.search.compensated.latency_table import LatencyTable, cached_table, from_json, measure_table, to_json
from axformer_onnx.search.compensated.levels import Choice, build_levels
from axformer_onnx.search.compensated.operating_points import shape_of
from axformer_onnx.search.compensated.row_sampling import MOST, POOL, IntArray, drawn_rows, sizes_of
from axformer_onnx.search.compensated.tuning import (
    EFFORTS,
    LEAST_ROWS,
    affordable_tokens,
    filled,
    race_rows,
    sweep_rows,
    swept_rungs,
    thinned,
)
from axformer_onnx.search.compensated.workers import InProcess, Pool, Scoring, Task, start_ray, write_spool
from axformer_onnx.search.elements import TOPK_OPSET
from axformer_passes.blocks import parameters_by_layer
from axformer_passes.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.inputs import Given, OptimizeOptions
    from axformer_onnx.runtime import Shelf
    from axformer_onnx.scoring import StageSessions
    from axformer_onnx.search.journal import Journal

Watch = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)."""
CACHE_BYTES = 2**30
"""Hidden states that races keep."""
PART_ROWS = 64
"""Rows of one part of a race."""
HARD_LADDER = (1, 2, 4, 8, 16, 32)
"""The ks of hard attention that take part."""


class Preparation:
    """Made once, by `prepare`; what it measures goes to the journal.

    levels, table, costs       units and the weights of their rungs; what they cost in milliseconds, and in divergence
    divergence, scoring        who scores choices, here and in workers; the first `sweep_parts` parts of rows are the sweep's
    samples, calibration       of the refit; rows of the second moments, and how many of them were mixed of others
    evaluations, asked         choices asked about so far, and how many of them the journal had no answer to
    drawn, stages_drawing      int64[rows]: the search rows that are asked, part by part; stages x rows that it took to draw them
    """

    def __init__(
        self,
        options: OptimizeOptions,
        given: Given,
        model: ir.Model,
        sessions: StageSessions,
        start: Plan,
        journal: Journal,
        watch: Watch,
    ) -> None:
        self.options, self.given, self.model, self.sessions = options, given, model, sessions
        self.start, self.journal, self.watch = start, journal, watch
        self.effort, self.evaluations, self.asked, self.stages_drawing = EFFORTS[options.effort], 0, 0, 0

    def prepare(self, shelf: Shelf, spool: Path) -> None:
        """Moments, levels, latency table, sweep. Raises: UsageError where nothing can be compensated."""
        calibration = self._samples()
        blocks = sum(len(layer.blocks) for layer in self.given.source.anatomy.layers)
        done = iter(range(blocks))
        self.levels = build_levels(
            self.sessions, calibration, shelf, shared=self.start.shared_weights,
            progress=lambda where: self.watch(f"levels of {where}", next(done, blocks), blocks),
        )  # fmt: skip
        if not self.levels.units:
            raise UsageError(
                "no output projection of this model can be given new weights (are they quantised?); optimize the unquantised "
                "model, or use --search robust"
            )
        self.table = self._table()
        self._make_scoring(spool)
        self.costs = self._sweep()

    def ask(self, tasks: Sequence[Task]) -> list[Race]:
        """Score choices, here or in workers: neighbours those that are alike up to a stage, since they share what it reads."""
        self.asked += len(tasks)
        order = sorted(range(len(tasks)), key=lambda i: tasks[i].choice.rungs)
        found = dict(zip(order, self.scoring([tasks[i] for i in order]), strict=True))
        return [found[i] for i in range(len(tasks))]

    def _samples(self) -> list[Sample]:
        """Of the second moments; the refit's go to `samples`."""
        given, reading = self.given.rows, self.given.reading
        macs = float(sum(parameters_by_layer(self.given.source.anatomy)))

        def some(tokens: int) -> list[Sample]:
            rows, mixed = calibration_rows(
                given["search"],
                given.get("calibration"),
                tokens,
                lambda x: reading.encode(x).row_lengths,
                self.options.seed,
            )
            self.calibration = {"calibration": len(rows), "mixed": mixed}
            return text_samples(reading.encode(rows), self.sessions.input_names)

        refit, moments = (
            affordable_tokens(count, macs) for count in (self.effort.refit_tokens, self.effort.calibration_tokens)
        )
        self.samples = some(refit)
        return self.samples if refit == moments else some(moments)

    def _make_scoring(self, spool: Path) -> None:
        options, search, reading = self.options, self.given.rows["search"], self.given.reading
        macs = float(sum(parameters_by_layer(self.given.source.anatomy)))
        tokens_per_row = float(self.given.encoded["search"].row_lengths.mean())
        self.effort = thinned(self.effort, self.levels.units, macs * tokens_per_row)
        swept = sweep_rows(self.effort, self.levels.units, macs * tokens_per_row)
        raced = race_rows(self.effort, macs * tokens_per_row)
        self.drawn, weights = self._draw(max(swept, raced))
        at = np.array_split(np.arange(len(self.drawn)), max(1, round(len(self.drawn) / PART_ROWS)))
        self.sweep_parts = max(1, min(len(at), round(swept / len(at[0]))))
        kept = [search.take(self.drawn[part]) for part in at]
        scorers = [scorer_of(self.sessions, rows, reading, CACHE_BYTES // len(kept)) for rows in kept]
        self.divergence = Divergence(
            self.sessions, self.levels, scorers, kind=reading.task.kind, weights=[weights[i] for i in at]
        )
        self.scoring: Scoring = InProcess(self.divergence)
        if options.jobs > 1 or options.backend == "ray":
            jobs = start_ray(options.jobs) if options.backend == "ray" else options.jobs
            write_spool(spool, self.divergence, reading, kept)
            self.scoring = Pool(self.divergence, spool, jobs=jobs, backend=options.backend)

    def _draw(self, count: int) -> tuple[IntArray, FloatArray]:
        """(which search rows are asked, their weights)."""
        search, reading = self.given.rows["search"], self.given.reading
        if not reading.task.kind.weighs_rows:
            return drawn_rows(np.ones(len(search)), count, self.options.seed)
        self.watch("what the source is unsure about", 0, 1)
        pool = np.sort(np.random.default_rng(self.options.seed).permutation(len(search))[: POOL * count])
        asked = scorer_of(self.sessions, search.take(pool), reading, 0)
        sizes = sizes_of(asked.outputs(self.sessions.settings(Plan())), reading.task.kind)
        self.stages_drawing = asked.stages_run
        rows, weights = drawn_rows(sizes, min(count, max(LEAST_ROWS, int(MOST * len(pool)))), self.options.seed)
        return pool[rows], weights

    def _table(self) -> LatencyTable:
        given, units = self.given, self.levels.units
        shape = shape_of(self.options, given)

        def measure() -> LatencyTable:
            return measure_table(
                self.model, self.sessions.staged.examined, units, self.options.machine, shape,
                vocabulary=given.reading.vocabulary, hard=self._ks(),
                constants=self.start.constants, keys_values=self.start.keys_values, seed=self.options.seed,
                progress=lambda done, of: self.watch("measuring latencies", done, of),
            )  # fmt: skip

        machine = self.options.machine
        key = {
            "model": given.source.sha256, "readout": self.start.readout,
            "constants": self.start.constants, "keys_values": self.start.keys_values,
            "shape": shape, "provider": given.runs_on or machine.provider,
            "threads": machine.threads, "hard": self._ks(),
        }  # fmt: skip
        return from_json(self.journal.fact("latency table", lambda: to_json(cached_table(key, units, measure))))

    def _ks(self) -> tuple[int, ...]:
        """The ks of hard attention that are priced: none where tuning has no evaluations, or TopK does not promise how ties end."""
        enough = self.effort.evaluations and self.given.source.anatomy.opset >= TOPK_OPSET
        return HARD_LADDER if enough else ()

    def _sweep(self) -> list[FloatArray]:
        units = self.levels.units
        base = Choice((0,) * len(units))
        costs: dict[int, FloatArray] = {}
        for number in reversed(range(len(units))):
            asked = swept_rungs(units[number], self.effort.rungs)

            def ask(number: int = number, asked: list[int] = asked) -> list[float]:
                choices = [base.with_rung(number, rung) for rung in asked]
                return [race.mean for race in self.ask([Task(choice, self.sweep_parts) for choice in choices])]

            self.evaluations += len(asked)
            values = self.journal.fact(f"sweep {number} {asked}", ask)
            costs[number] = filled(units[number], dict(zip(asked, values, strict=True)))
            self.watch("sweep", len(units) - number, len(units))
        return [costs[number] for number in range(len(units))]


__all__ = ["Preparation", "Watch"]
