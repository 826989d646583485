"""The compensated search (docs/method.md 2): the fastest graph within a drop, the best at a speedup or size, the frontier between.

    calibrate -> levels of every unit -> latency table -> sweep -> tune under a budget -> points: refit, measure, score -> decide

    --max-drop D   the fastest point whose score on the select rows is at most D points below the source's; points are built
                   until one does not pass, and three more between the last that does and that one. Where nothing may be
                   removed, the fastest of all is built first, and no other if it passes
    --speedup S    the point of least divergence that is measured at least S times as fast; three are built for it, the latency
                   table promising S, S and all of its error, and what lies between
    --size F       the same for the file: at most F times the source's

What is tried, and in which order, is a function of the seed, the latency table and the losses. How fast the points are is measured,
too, but decides at the end alone, among those that the table calls equal within its own error (`operating_points.py`). So a busy
machine, other processes or another backend change nothing about the frontier. What is measured goes to the journal first
(`Journal.fact`), the table included, so a killed run ends with the same plan.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from axformer_onnx.compensate import Teacher, shapes_of
from axformer_onnx.errors import UsageError
from axformer_onnx.records import FloatArray
from axformer_onnx.search.compensated.allocation import allocate, price_of
from axformer_onnx.search.compensated.latency_table import LatencyTable
from axformer_onnx.search.compensated.levels import Choice, bytes_by_rung
from axformer_onnx.search.compensated.operating_points import (
    Builder,
    Found,
    Point,
    best_at_speed,
    fastest,
    nearly_as_fast,
    within_drop,
)
from axformer_onnx.search.compensated.preparation import Prepared, SearchInputs, Watch, prepare
from axformer_onnx.search.compensated.tuning import GENERATION, Tuned, chunks, tune
from axformer_passes.integers import BYTES_OF_TABLES, tables_of
from axformer_passes.plan import Hard, Plan

if TYPE_CHECKING:
    from axformer_onnx.inputs import Given, OptimizeOptions
    from axformer_onnx.runtime import Shelf
    from axformer_onnx.scoring import StageSessions
    from axformer_onnx.search.journal import Journal

LADDER, INT8_LADDER = (1.5, 2.0, 2.5, 3.0), (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Speedups of the frontier's points beside the exact one."""
FEWEST = 6
"""Points of a frontier, at least."""
FIRST_TUNED, INT8_FIRST_TUNED = 2.0, 3.0
"""Speedup at which the coefficients are tuned where none was asked for."""
MOST_GAINED = 0.5
"""Part of the divergence that hard attention in one layer could take away: beyond, its price is not worth evaluating it."""
REFINED = 3
"""Points between the fastest that passes and the next one, after the frontier was built."""
ONWARD = 1.15
"""From the fastest point to the next, as long as all that were built pass."""
NEAR = 0.1
"""Relative difference of two speedups beyond which coefficients of the one are tuned again for the other."""
CLOSE = 0.02
"""Relative difference of two speedups that are as good as equal."""
MOST_WRONG = 0.15
"""The table's error counts up to here: beyond, it was measured on a machine that was busy with something else."""
AROUND = 2
"""Points beyond the first that a speedup is built with, evenly spaced up to the table's error."""
BY_CPU_TIME = (
    "the machine was never free: blocks are priced by CPU time on one thread, as are the speeds that the table predicts"
)
TEACHER_BYTES = 2**30
"""Of what the source computes, kept in memory for the refits; the rest is in files."""


def search_budget(
    options: OptimizeOptions,
    given: Given,
    sessions: StageSessions,
    start: Plan,
    journal: Journal,
    shelf: Shelf,
    folder: Path,
    watch: Watch = lambda what, done, of: None,
) -> Found:
    """Search on a model (the source, narrowed if `start` says so) and build the points under `folder`.

    Graphs of points that can no longer be the answer are deleted as soon as that is known.

    Ctrl-C ends it with the points so far. Raises: UsageError where nothing can be compensated, or a goal is out of reach.
    """
    inputs = SearchInputs(options, given, sessions, start, journal, watch)
    prepared = prepare(inputs, shelf, folder.parent / ".spool")
    watch("what the source computes", 0, 1)
    shapes = shapes_of(given.source.examined)
    with (
        closing(prepared.scored),
        Teacher(sessions, prepared.calibration.refit, TEACHER_BYTES, shapes) as teacher,
    ):
        builder = Builder(options, given, prepared.levels, teacher, start, folder, journal)
        table = prepared.table
        exact = builder.point(Choice((0,) * len(prepared.levels.units)), table.speedup(table.whole_ms))
        sizes = bytes_by_rung(sessions.staged.examined.anatomy, prepared.levels.units)
        return _Choosing(inputs, prepared, builder, exact, sizes).found()


@dataclasses.dataclass(frozen=True)
class _Choosing:
    """From costs and prices to points, and to the one that is the answer.

    exact   the point with nothing removed
    sizes   bytes of every rung by unit
    """

    inputs: SearchInputs
    prepared: Prepared
    builder: Builder
    exact: Point
    sizes: list[FloatArray]

    @property
    def table(self) -> LatencyTable:
        """Latencies that choices are made with."""
        return self.prepared.table

    @property
    def error(self) -> float:
        """By how much of a speedup the table may be wrong."""
        return min(max(self.table.error.worst, CLOSE), MOST_WRONG)

    @property
    def source_bytes(self) -> int:
        """Of its file."""
        return self.inputs.given.source.path.stat().st_size

    def found(self) -> Found:
        """Tune, build the frontier, decide."""
        interrupted = False
        try:
            chosen, reached = self._decide()
        except KeyboardInterrupt:
            interrupted = True
            chosen, reached = self._best_so_far()
        scored, evaluator = self.prepared.scored, self.prepared.evaluator
        rows = {
            **self.prepared.calibration.rows,
            "sweep": sum(part.rows for part in scored.divergence.parts[: scored.sweep_parts]),
            "races": scored.divergence.rows,
        }
        plain = evaluator.computed * len(self.inputs.given.rows["search"]) * len(self.inputs.sessions.stages)
        return Found(
            chosen=chosen,
            reached=reached,
            points=tuple(self.builder.points),
            table=self.table,
            rows=rows,
            evaluations=evaluator.evaluations,
            hard_asked=evaluator.hard,
            stages_run=scored.divergence.stages_run + scored.sampled.stages_run,
            stages_plain=plain,
            notes=(*scored.notes, *([BY_CPU_TIME] if self.table.cpu_time else [])),
            interrupted=interrupted,
        )

    def _decide(self) -> tuple[Point, bool]:
        goal = self.inputs.options.goal
        if goal.kind == "speedup":
            return self._at_speedup(goal.value)
        if goal.kind == "size":
            return self._at_size(goal.value)
        if self.inputs.options.is_whole and self._fastest_holds(goal.value):
            return self._best_so_far()
        speedup = min(INT8_FIRST_TUNED, 0.9 * self._reach()) if self.prepared.levels.int8 else FIRST_TUNED
        budget = self.table.budget_ms(speedup)
        tuned = self._tuned(self.table.prices, budget, f"x{speedup:g}")
        if tuned is not None:
            self._harden(tuned, budget)
        self._ladder(tuned)
        return self._fastest_within(goal.value, tuned, speedup)

    def _fastest_holds(self, drop: float) -> bool:
        """Build the fastest choice by the table: is it another than the exact one, and does it hold?"""
        point = self._build(Choice(tuple(int(prices.argmin()) for prices in self.table.prices)))
        return point is not self.exact and point in within_drop(self.builder.points, drop)

    def _predicted(self, choice: Choice) -> float:
        return self.table.speedup(price_of(self.table.prices, choice.rungs) + self._hard_ms(choice))

    def _tuned(
        self, prices: Sequence[FloatArray], budget: float, name: str, start: FloatArray | None = None
    ) -> Tuned | None:
        return tune(
            self.prepared.costs, prices, budget, self.prepared.evaluator.races,
            evaluations=self.prepared.scored.effort.evaluations, seed=self.inputs.options.seed, start=start,
            heights=[unit.height for unit in self.prepared.levels.units],
            progress=lambda done, of: self.inputs.watch(f"tuning at {name}", done, of),
        )  # fmt: skip

    def _harden(self, tuned: Tuned, budget: float) -> None:
        """Hard attention as one more element: taken where the milliseconds that it costs would buy less elsewhere.

        A candidate hardens one layer and pays for it: the rungs are chosen anew under what is left of the budget. If that alone
        costs more than hard attention could possibly give back, it is not evaluated; else it is raced against the best so far like
        any other choice, and the best of them is taken, until none wins.
        """
        layers = [i for unit in self.prepared.levels.units if unit.kind == "attention" for i in unit.layers]
        weighted = [c * cost for c, cost in zip(tuned.coefficients, self.prepared.costs, strict=True)]
        for _ in layers:
            candidates = []
            for layer, (k, ms) in itertools.product(layers, self.table.hard_ms.items()):
                left = budget - ms - self._hard_ms(tuned.choice)
                rungs = allocate(self.prepared.costs, self.table.prices, left, tuned.coefficients)
                if rungs is None or layer in dict(tuned.choice.hard):
                    continue
                paid = price_of(weighted, rungs) - price_of(weighted, tuned.choice.rungs)
                if paid <= MOST_GAINED * tuned.divergence:
                    candidates.append(dataclasses.replace(tuned.choice, rungs=rungs).with_hard(layer, Hard(k)))
            races = [
                race
                for some in chunks(candidates, GENERATION)
                for race in self.prepared.evaluator.races(some, tuned.rows)
            ]
            won = [(race.mean, i) for i, race in enumerate(races) if race.finished and race.mean < tuned.divergence]
            if not won:
                return
            tuned.choice, tuned.rows = candidates[min(won)[1]], races[min(won)[1]].divergence

    def _hard_ms(self, choice: Choice) -> float:
        return sum(self.table.hard_ms.get(hard.k, 0.0) for _, hard in choice.hard)

    def _choice(self, tuned: Tuned | None, speedup: float, of: Choice | None = None) -> Choice | None:
        """By dynamic programming with the coefficients that were found; with hard attention where the choice `of` has it."""
        hard = of.hard if of else ()
        budget = self.table.budget_ms(speedup) - (self._hard_ms(of) if of else 0.0)
        rungs = allocate(self.prepared.costs, self.table.prices, budget, tuned.coefficients if tuned else None)
        return None if rungs is None else Choice(rungs, hard)

    def _build(self, choice: Choice, held: Sequence[Point] = ()) -> Point:
        """A point; few evaluations follow, if any, so what they left goes first. `held`: points that may be the answer."""
        self.prepared.scored.divergence.forget()
        point = self.builder.point(choice, self._predicted(choice))
        self.builder.keep_graphs([*self._may_win(), *held])
        return point

    def _ladder(self, tuned: Tuned | None, first: Sequence[Choice] = (), held: Sequence[Point] = ()) -> None:
        """Points along the frontier: `first`, those of LADDER within reach that are not near, and the tuned one; where they are
        few, more between them."""
        exact, reach = self.exact.predicted, self._reach()
        ladder = INT8_LADDER if self.prepared.levels.int8 else LADDER
        near = [self._predicted(choice) for choice in first]
        speeds = [
            s for s in ladder
            if exact * (1 + CLOSE) < s < reach and not (near and min(near) / (1 + CLOSE) < s < max(near) * (1 + CLOSE))
        ]  # fmt: skip
        wanted = [*first, *(choice for speed in speeds if (choice := self._choice(tuned, speed)) is not None)]
        wanted += [tuned.choice] if tuned is not None else []
        for choice in itertools.chain(wanted, self._more(tuned, max(reach, exact))):
            if choice not in wanted and len(self.builder.points) >= FEWEST:
                break
            self.inputs.watch("building the frontier", len(self.builder.points), max(len(wanted) + 1, FEWEST))
            self._build(choice, held)

    def _more(self, tuned: Tuned | None, reach: float) -> Iterator[Choice]:
        """Choices up to what is within reach, by speed, and by size where a table of a very small model tells too little."""
        for speed in np.geomspace(self.exact.predicted, reach, 2 * FEWEST)[1:-1]:
            choice = self._choice(tuned, float(speed))
            if choice is not None:
                yield choice
        whole = sum(float(s[0]) for s in self.sizes)
        for part in np.linspace(0.9, 0.1, 2 * FEWEST):
            rungs = allocate(self.prepared.costs, self.sizes, float(part) * whole)
            if rungs is not None:
                yield Choice(rungs)

    def _reach(self) -> float:
        """The speedup without any head and neuron, by the table."""
        return self.table.speedup(price_of(self.table.prices, [-1] * len(self.prepared.costs)))

    def _fastest_within(self, drop: float, tuned: Tuned | None, tuned_at: float) -> tuple[Point, bool]:
        """Halve the gap between the fastest point that passes and the next; the first time with coefficients tuned there."""
        self._onward(drop, tuned)
        for turn in range(REFINED):
            points = self.builder.points
            passing = within_drop(points, drop)
            best = max(passing, key=lambda p: p.predicted, default=self.exact)
            beyond = [p for p in points if p.predicted > best.predicted]
            if not beyond:
                break
            between = (best.predicted + beyond[0].predicted) / 2
            if between / best.predicted < 1 + CLOSE:
                break
            choice = self._choice(tuned, between)
            if turn == 0 and tuned is not None and abs(between / tuned_at - 1) > NEAR:
                tuned = self._tuned_again(tuned, between)
                choice = tuned.choice
            if choice is None:
                break
            self._build(choice)
        return self._best_so_far()

    def _onward(self, drop: float, tuned: Tuned | None) -> None:
        """Beyond the ladder until a point does not pass, or no more is within reach."""
        while (last := self.builder.points[-1]) in within_drop(self.builder.points, drop):
            further = last.predicted * ONWARD
            choice = self._choice(tuned, further) if further < self._reach() else None
            if choice is None or self._build(choice).predicted <= last.predicted:
                break

    def _tuned_again(self, tuned: Tuned, speedup: float) -> Tuned:
        """From the coefficients that were found elsewhere."""
        budget = self.table.budget_ms(speedup)
        again = self._tuned(self.table.prices, budget, f"x{speedup:.3g}", tuned.coefficients)
        assert again is not None  # points that are faster were built
        self._harden(again, budget)
        return again

    def _at_speedup(self, speedup: float) -> tuple[Point, bool]:
        """Tuned at what the table promises; beside that points that are fast enough even if it promises too much."""
        if self._choice(None, speedup) is None:
            raise UsageError(self._out_of_reach(speedup))
        budget = self.table.budget_ms(speedup)
        tuned = self._tuned(self.table.prices, budget, f"x{speedup:g}")
        assert tuned is not None  # something fits
        self._harden(tuned, budget)
        steps = speedup * (1 + self.error) ** (np.arange(1, AROUND + 1) / AROUND)
        beyond = [choice for step in steps.tolist() if (choice := self._choice(tuned, step, tuned.choice))]
        self._ladder(tuned, first=[tuned.choice, *beyond])
        return self._best_so_far()

    def _at_size(self, part: float) -> tuple[Point, bool]:
        source, written = self.source_bytes, 0.5 if self.inputs.start.half else 1.0  # of the bytes of float32
        whole = self.exact.size_bytes if self.inputs.start.source == "dequantised" else source  # in float32
        rest = whole - sum(s[0] for s in self.sizes) - self._saved_by_tables()
        tuned = self._tuned(self.sizes, part * source / written - rest, f"size {part:g}")
        if tuned is None:
            least = written * (rest + sum(float(s.min()) for s in self.sizes)) / source
            raise UsageError(
                f"--size {part:g} is out of reach: without any head and neuron the file is {least:.2f} of the source's"
            )
        point = self._build(tuned.choice)
        self._ladder(tuned, held=[point])
        if point.size_bytes <= part * source:
            return point, True  # whatever the ladder has: its points hang on latencies, this answer does not
        small = [p for p in self.builder.points if p.size_bytes <= part * source]
        if not small:
            return min(self.builder.points, key=lambda p: p.size_bytes), False
        return min(small, key=lambda p: p.divergence), True

    def _saved_by_tables(self) -> float:
        """Bytes that embeddings in integers save."""
        int8 = self.prepared.levels.int8
        if int8 is None:
            return 0.0
        tables = (table.const_value for table in tables_of(self.inputs.given.source.model.graph))
        return (4 - BYTES_OF_TABLES[int8.tables]) * sum(tensor.size for tensor in tables if tensor is not None)

    def _out_of_reach(self, speedup: float) -> str:
        shape, most = f"{self.table.batch} x {self.table.length}", self._reach()
        return f"--speedup {speedup:g} is out of reach: without any head and neuron the model is {most:.2f}x as fast at {shape}"

    def _best_so_far(self) -> tuple[Point, bool]:
        goal, points = self.inputs.options.goal, self.builder.points
        if goal.kind == "drop":
            return fastest(within_drop(points, goal.value) or [self.exact], self.error), True
        if goal.kind == "speedup":
            return best_at_speed(points, goal.value, self.error)
        best = min(points, key=lambda p: p.size_bytes)
        return best, best.size_bytes <= goal.value * self.source_bytes

    def _may_win(self) -> list[Point]:
        """Points of which one is the answer unless a later one is, or one that later points show to have been judged too carefully:
        that is rare, and its graph is built again.

        Within a drop the fastest by measurement is chosen among those that the table calls equal: one that is equal to the fastest
        of today may be the only one that is to the fastest of tomorrow.
        """
        goal, best = self.inputs.options.goal, self._best_so_far()[0]
        if goal.kind == "drop":
            return nearly_as_fast(within_drop(self.builder.points, goal.value) or [self.exact], self.error)
        small = [p for p in self.builder.points if p.size_bytes <= goal.value * self.source_bytes]
        return [best, min(small, key=lambda p: p.divergence)] if goal.kind == "size" and small else [best]


__all__ = ["Found", "search_budget"]
