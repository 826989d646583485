"""The compensated search (METHOD.md 2): the fastest graph within a drop, the best at a speedup or a size, and the frontier between.

    calibrate -> levels of every unit -> latency table -> sweep -> tune under a budget -> points: refit, measure, score -> decide

    --max-drop D   the fastest point whose score on the select rows is at most D points below the source's; two more points
                   are built between the last that passes and the first that does not
    --speedup S    the point of least divergence that is measured at least S times as fast; where the table was too hopeful,
                   the budget shrinks by what it was wrong
    --size F       the same for the file: at most F times the source's

What is measured goes to the journal first (`Journal.fact`), so a killed run ends with the same plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from axformer_onnx.calibrate import text_samples
from axformer_onnx.errors import UsageError
from axformer_onnx.frontier import Builder, Point, shape_of, within_drop
from axformer_onnx.latency_table import LatencyTable, cached_table, from_json, measure_table, to_json
from axformer_onnx.parameters import linear_parameters
from axformer_onnx.records import FloatArray
from axformer_onnx.refit import Teacher
from axformer_onnx.search.allocate import allocate, price_of
from axformer_onnx.search.divergence import Divergence, Race, scorer_of, split_rows
from axformer_onnx.search.elements import TOPK_OPSET
from axformer_onnx.search.tune import EFFORTS, GENERATION, Tuned, chunks, filled, swept_rungs, tune
from axformer_onnx.search.units import Choice, Levels, Unit, build_levels
from axformer_onnx.search.workers import InProcess, Pool, Scoring, Task, start_ray, write_spool
from axformer_passes.plan import Hard, Plan
from axformer_passes.shared import linears

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.given import Given, OptimizeOptions
    from axformer_onnx.search.journal import Journal
    from axformer_onnx.search.stages import StageSessions
    from axformer_onnx.shelf import Shelf
    from axformer_passes.anatomy import Anatomy

logger = logging.getLogger(__name__)
CACHE_BYTES = 2**30
"""Hidden states that races keep."""
PART_ROWS = 128
"""Rows of one part of a race."""
LADDER = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Speedups of the frontier's points beside the exact one."""
FEWEST = 6
"""Points of a frontier, at least."""
FIRST_TUNED = 2.0
"""Speedup at which the coefficients are tuned where none was asked for."""
HARD_LADDER = (1, 2, 4, 8, 16, 32)
"""The ks of hard attention that take part."""
MOST_GAINED = 0.5
"""Part of the divergence that hard attention in one layer could take away: beyond, its price is not worth a question."""
REFINED = 2
CORRECTIONS = 3
_CLOSE = 0.02


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search ended with.

    chosen        the answer; `reached` False: no point meets the goal, and this is the one that comes nearest
    points        all that were built, the slowest first; the exact one (nothing removed) among them
    table         latencies that the choice was made with
    rows          rows of calibration, sweep and races
    evaluations   choices whose divergence was asked for; `hard_asked` of them with hard attention
    stages_run    stages x rows that they took
    stages_plain  stages x rows of evaluating every one of them whole, on all search rows
    interrupted   stopped by hand
    """

    chosen: Point
    reached: bool
    points: tuple[Point, ...]
    table: LatencyTable
    rows: dict[str, int]
    evaluations: int
    hard_asked: int
    stages_run: int
    stages_plain: int
    interrupted: bool = False


Watch = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)."""


def search_budget(
    options: OptimizeOptions,
    given: Given,
    model: ir.Model,
    start: Plan,
    journal: Journal,
    shelf: Shelf,
    folder: Path,
    watch: Watch = lambda what, done, of: None,
) -> Found:
    """Search on `model` (the source, narrowed if `start` says so) and build the points under `folder`.

    Ctrl-C ends it with the points so far. Raises: UsageError where nothing can be compensated, or a goal is out of reach.
    """
    from axformer_onnx.search.stages import StageSessions

    sessions = StageSessions(model, provider=options.machine.provider, threads=options.machine.threads)
    run = _Run(options, given, model, sessions, start, journal, watch)
    run.prepare(shelf, folder.parent / ".spool")
    watch("what the source computes", 0, 1)
    with Teacher(sessions, run.refit_samples) as teacher:
        run.builder = Builder(options, given, run.levels, teacher, start, folder, journal)
        return run.found()


class _Run:
    """One search: what its steps hand to each other."""

    levels: Levels
    builder: Builder

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
        self.effort = EFFORTS[options.effort]
        self.evaluations = self.hard_asked = 0

    # -- preparation ---------------------------------------------------------------------------------------------------

    def prepare(self, shelf: Shelf, spool: Path) -> None:
        """Moments, levels, latency table, sweep."""
        rows = self.given.rows.get("calibration", self.given.rows["search"])
        wanted = np.sort(
            np.random.default_rng(self.options.seed).permutation(len(rows))[: self.effort.calibration_rows]
        )
        self.calibration = len(wanted)
        encoder = self.given.reading.encoder
        samples = text_samples(encoder.encode(rows.take(wanted)), self.sessions.input_names)
        refit = wanted[:: max(1, len(wanted) // self.effort.refit_rows)]
        self.refit_samples = text_samples(encoder.encode(rows.take(refit)), self.sessions.input_names)
        blocks = sum(len(layer.blocks) for layer in self.given.source.anatomy.layers)
        done = iter(range(blocks))
        self.levels = build_levels(
            self.sessions, samples, shelf, shared=self.start.shared_weights,
            progress=lambda where: self.watch(f"levels of {where}", next(done, blocks), blocks),
        )  # fmt: skip
        if not self.levels.units:
            raise UsageError(
                "no output projection of this model can be given new weights (are they quantised?); optimize the unquantised "
                "model, or use --search robust"
            )
        self.table = self._table()
        search = self.given.rows["search"]
        parts = split_rows(search, max(1, len(search) // PART_ROWS), self.options.seed)
        self.sweep_parts = max(1, min(len(parts), round(self.effort.sweep_rows / len(parts[0]))))
        kept = parts[: max(self.sweep_parts, min(len(parts), round(self.effort.tune_rows / len(parts[0]))))]
        reading, regression = self.given.reading, self.given.reading.task.regression
        scorers = [scorer_of(self.sessions, rows, reading, CACHE_BYTES // len(kept)) for rows in kept]
        self.divergence = Divergence(self.sessions, self.levels, scorers, regression=regression)
        self.scoring: Scoring = InProcess(self.divergence)
        if self.options.jobs > 1 or self.options.backend == "ray":
            if self.options.backend == "ray":
                start_ray()
            write_spool(spool, self.divergence, reading, kept, regression)
            self.scoring = Pool(self.divergence, spool, jobs=self.options.jobs, backend=self.options.backend)
        self.costs = self._sweep()

    def _table(self) -> LatencyTable:
        given, units = self.given, self.levels.units
        shape = shape_of(self.options, given)

        def measure() -> LatencyTable:
            return measure_table(
                self.model, self.sessions.staged.examined, units, self.options.machine, shape,
                vocabulary=given.reading.vocabulary, hard=self._ks(), seed=self.options.seed,
                progress=lambda done, of: self.watch("measuring latencies", done, of),
            )  # fmt: skip

        machine = self.options.machine
        key = {
            "model": given.source.sha256, "readout": self.start.readout, "shape": shape, "provider": machine.provider,
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
                self.evaluations += len(choices)
                races = self.scoring([Task(choice, self.sweep_parts) for choice in choices])
                return [race.mean for race in races]

            values = self.journal.fact(f"sweep {number} {asked}", ask)
            costs[number] = filled(units[number], dict(zip(asked, values, strict=True)))
            self.watch("sweep", len(units) - number, len(units))
        return [costs[number] for number in range(len(units))]

    # -- choice ----------------------------------------------------------------------------------------------------------

    def found(self) -> Found:
        """Tune, build the frontier, decide."""
        self.sizes, interrupted = _sizes(self.sessions.staged.examined.anatomy, self.levels.units), False
        self.source_ms = self.table.model_ms * self._narrowing()
        chosen, reached = self._exact(), self.options.goal.kind == "drop"
        try:
            chosen, reached = self._decide()
        except KeyboardInterrupt:
            interrupted = True
            chosen, reached = self._best_so_far()
        rows = {
            "calibration": self.calibration,
            "sweep": sum(part.rows for part in self.divergence.parts[: self.sweep_parts]),
            "races": self.divergence.rows,
        }
        plain = self.evaluations * len(self.given.rows["search"]) * len(self.sessions.stages)
        return Found(
            chosen=chosen,
            reached=reached,
            points=tuple(self.builder.points),
            table=self.table,
            rows=rows,
            evaluations=self.evaluations,
            hard_asked=self.hard_asked,
            stages_run=self.divergence.stages_run,
            stages_plain=plain,
            interrupted=interrupted,
        )

    def _decide(self) -> tuple[Point, bool]:
        goal = self.options.goal
        if goal.kind == "speedup":
            return self._at_speedup(goal.value)
        if goal.kind == "size":
            return self._at_size(goal.value)
        budget = self._milliseconds(FIRST_TUNED)
        tuned = self._tuned(self.table.prices, budget, f"x{FIRST_TUNED:g}")
        if tuned is not None:
            self._harden(tuned, budget)
        self._ladder(tuned)
        return self._fastest_within(goal.value, tuned)

    def _narrowing(self) -> float:
        """How many times as long the source takes as the model that the search works on."""
        exact = self._exact()
        return float(exact.speedup.value)

    def _exact(self) -> Point:
        return self.builder.point(Choice((0,) * len(self.levels.units)), 1.0)

    def _milliseconds(self, speedup: float) -> float:
        """The budget of the units at a speedup against the source."""
        return self.source_ms / speedup - self.table.rest_ms

    def _predicted(self, choice: Choice) -> float:
        units = price_of(self.table.prices, choice.rungs) + self._hard_ms(choice)
        return self.source_ms / (self.table.rest_ms + units)

    def _evaluate(self, choices: Sequence[Choice], incumbent: FloatArray | None) -> list[Race]:
        """Race choices, or recall how they ended."""
        self.evaluations += len(choices)
        against = "nothing" if incumbent is None else f"{incumbent.mean():.9g}"
        fact = f"races {_digest(choices)} against {against}"
        races = self.journal.fact(
            fact, lambda: [_race_json(r) for r in self.scoring([Task(c, None, incumbent) for c in choices])]
        )
        return [_race_from(race) for race in races]

    def _tuned(self, prices: Sequence[FloatArray], budget: float, name: str) -> Tuned | None:
        return tune(
            self.costs, prices, budget, self._evaluate, evaluations=self.effort.evaluations, seed=self.options.seed,
            progress=lambda done, of: self.watch(f"tuning at {name}", done, of),
        )  # fmt: skip

    def _harden(self, tuned: Tuned, budget: float) -> None:
        """Hard attention as one more element: taken where the milliseconds that it costs would buy less elsewhere.

        A candidate hardens one layer and pays for it: the rungs are chosen anew under what is left of the budget. If that alone
        costs more than hard attention could possibly give back, it is not asked; else it is raced against the best so far like
        any other choice, and the best of them is taken, until none wins.
        """
        layers = [i for unit in self.levels.units if unit.kind == "attention" for i in unit.layers]
        weighted = [c * cost for c, cost in zip(tuned.coefficients, self.costs, strict=True)]
        for _ in layers:
            asked = []
            for layer, (k, ms) in itertools.product(layers, self.table.hard_ms.items()):
                left = budget - ms - self._hard_ms(tuned.choice)
                rungs = allocate(self.costs, self.table.prices, left, tuned.coefficients)
                if rungs is None or layer in dict(tuned.choice.hard):
                    continue
                paid = price_of(weighted, rungs) - price_of(weighted, tuned.choice.rungs)
                if paid <= MOST_GAINED * tuned.divergence:
                    asked.append(dataclasses.replace(tuned.choice, rungs=rungs).with_hard(layer, Hard(k)))
            races = [race for some in chunks(asked, GENERATION) for race in self._evaluate(some, tuned.rows)]
            self.hard_asked += len(asked)
            won = [(race.mean, i) for i, race in enumerate(races) if race.finished and race.mean < tuned.divergence]
            if not won:
                return
            tuned.choice, tuned.rows = asked[min(won)[1]], races[min(won)[1]].divergence

    def _hard_ms(self, choice: Choice) -> float:
        return sum(self.table.hard_ms.get(hard.k, 0.0) for _, hard in choice.hard)

    def _choice(self, tuned: Tuned | None, speedup: float) -> Choice | None:
        """By dynamic programming with the coefficients that were found."""
        rungs = allocate(
            self.costs, self.table.prices, self._milliseconds(speedup), tuned.coefficients if tuned else None
        )
        return None if rungs is None else Choice(rungs)

    def _build(self, choice: Choice) -> Point:
        return self.builder.point(choice, self._predicted(choice))

    def _ladder(self, tuned: Tuned | None) -> None:
        """Points along the frontier: those of LADDER within reach and the tuned one; where they are few, more between them."""
        exact, reach = self._exact().speedup.value, self._reach()
        speeds = [s for s in LADDER if exact * (1 + _CLOSE) < s < reach]
        wanted = [choice for speed in speeds if (choice := self._choice(tuned, speed)) is not None]
        wanted += [tuned.choice] if tuned is not None else []
        for choice in itertools.chain(wanted, self._more(tuned, max(reach, exact))):
            if choice not in wanted and len(self.builder.points) >= FEWEST:
                break
            self.watch("building the frontier", len(self.builder.points), max(len(wanted) + 1, FEWEST))
            self._build(choice)

    def _more(self, tuned: Tuned | None, reach: float) -> Iterator[Choice]:
        """Choices up to what is within reach, by speed, and by size where a table of a very small model tells too little."""
        for speed in np.geomspace(self._exact().speedup.value, reach, 2 * FEWEST)[1:-1]:
            choice = self._choice(tuned, float(speed))
            if choice is not None:
                yield choice
        whole = sum(float(s[0]) for s in self.sizes)
        for part in np.linspace(0.9, 0.1, 2 * FEWEST):
            rungs = allocate(self.costs, self.sizes, float(part) * whole)
            if rungs is not None:
                yield Choice(rungs)

    def _reach(self) -> float:
        """The speedup without any head and neuron, by the table."""
        left = self.table.rest_ms + price_of(self.table.prices, [-1] * len(self.costs))
        return self.source_ms / max(left, 1e-9)

    def _fastest_within(self, drop: float, tuned: Tuned | None) -> tuple[Point, bool]:
        for _ in range(REFINED):
            points = self.builder.points
            passing = within_drop(points, drop)
            best = max(passing, key=lambda p: p.predicted, default=self._exact())
            beyond = [p for p in points if p.predicted > best.predicted]
            if not beyond:
                break
            between = (best.predicted + beyond[0].predicted) / 2
            choice = self._choice(tuned, between)
            if choice is None or between / best.predicted < 1 + _CLOSE:
                break
            self._build(choice)
        passing = within_drop(self.builder.points, drop)
        return max(passing, key=lambda p: p.predicted, default=self._exact()), True

    def _at_speedup(self, speedup: float) -> tuple[Point, bool]:
        """The budget shrinks by what the table was wrong, until the point is measured fast enough."""
        wanted = speedup
        tuned = self._tuned(self.table.prices, self._milliseconds(wanted), f"x{speedup:g}")
        if tuned is None:
            raise UsageError(self._out_of_reach(speedup))
        self._harden(tuned, self._milliseconds(wanted))
        point = self._build(tuned.choice)
        for _ in range(CORRECTIONS):
            if point.speedup.value >= speedup:
                break
            wanted *= max(1.01, speedup / point.speedup.value)
            choice = self._choice(tuned, wanted)
            if choice is None:
                break
            point = self._build(choice)
        self._ladder(tuned)
        fast = [p for p in self.builder.points if p.speedup.value >= speedup]
        if not fast:
            return max(self.builder.points, key=lambda p: p.speedup.value), False
        return min(fast, key=lambda p: p.divergence), True

    def _at_size(self, part: float) -> tuple[Point, bool]:
        source = self.given.source.path.stat().st_size
        rest = source - sum(s[0] for s in self.sizes)
        tuned = self._tuned(self.sizes, part * source - rest, f"size {part:g}")
        if tuned is None:
            least = (rest + sum(float(s.min()) for s in self.sizes)) / source
            raise UsageError(
                f"--size {part:g} is out of reach: without any head and neuron the file is {least:.2f} of the source's"
            )
        self._build(tuned.choice)
        self._ladder(tuned)
        small = [p for p in self.builder.points if p.size_bytes <= part * source]
        if not small:
            return min(self.builder.points, key=lambda p: p.size_bytes), False
        return min(small, key=lambda p: p.divergence), True

    def _out_of_reach(self, speedup: float) -> str:
        shape, most = f"{self.table.batch} x {self.table.length}", self._reach()
        return f"--speedup {speedup:g} is out of reach: without any head and neuron the model is {most:.2f}x as fast at {shape}"

    def _best_so_far(self) -> tuple[Point, bool]:
        goal, points = self.options.goal, self.builder.points
        if goal.kind == "drop":
            return max(within_drop(points, goal.value), key=lambda p: p.predicted, default=self._exact()), True
        if goal.kind == "speedup":
            fast = [p for p in points if p.speedup.value >= goal.value]
            best = min(fast, key=lambda p: p.divergence, default=max(points, key=lambda p: p.speedup.value))
            return best, bool(fast)
        best = min(points, key=lambda p: p.size_bytes)
        return best, best.size_bytes <= goal.value * self.given.source.path.stat().st_size


def _sizes(anatomy: Anatomy, units: Sequence[Unit]) -> list[FloatArray]:
    """Bytes of every rung by unit, float32 weights and biases."""
    found = []
    for unit in units:
        block = getattr(anatomy.layers[unit.layers[0]], unit.kind)
        *inner, last = linears(block)
        per_unit = (sum(map(linear_parameters, inner)) + last.rows * last.columns) / unit.size
        found.append(4.0 * (np.array(unit.counts) * per_unit + last.columns))
    return found


def _digest(choices: Sequence[Choice]) -> str:
    return hashlib.sha256(repr(list(choices)).encode()).hexdigest()[:16]


def _race_json(race: Race) -> dict[str, Any]:
    return {"divergence": race.divergence.tolist(), "finished": race.finished}


def _race_from(data: dict[str, Any]) -> Race:
    return Race(np.array(data["divergence"]), bool(data["finished"]))


__all__ = ["Found", "search_budget"]
