"""Operating points: choices carried out, refitted, measured and scored on the select rows.

Every point is a plan with its weights in a folder of its own, which `apply` can build. Which of them is the answer is decided here,
too: the report rows are not seen. A stopwatch has the last word, and only there: it chooses among points that the latency table
calls equal within its own error, and no point is built because of what it says.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from axformer_onnx.compensate import WEIGHTS, Teacher, fit_classifier, refit_from, save_weights
from axformer_onnx.data import Encoded, batches
from axformer_onnx.errors import RecogniseError
from axformer_onnx.records import FloatArray, Interval, Scores
from axformer_onnx.runtime import make_session, run_once, run_session
from axformer_onnx.scoring import (
    Drop,
    Machine,
    default_shapes,
    drop_of,
    holds,
    latency_of,
    score_file,
    together,
)
from axformer_onnx.search.compensated.levels import Choice, Levels
from axformer_passes.apply import apply_plan
from axformer_passes.blocks import classifier, input_of
from axformer_passes.cut import Weights, classifier_key
from axformer_passes.io import detached, save_model
from axformer_passes.plan import Plan
from axformer_passes.recognise import examine

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.inputs import Given, OptimizeOptions
    from axformer_onnx.search.compensated.latency_table import LatencyTable
    from axformer_onnx.search.journal import Journal

logger = logging.getLogger(__name__)
Array = npt.NDArray[Any]
PLAN, GRAPH = "plan.json", "model.onnx"


@dataclasses.dataclass(frozen=True)
class Point:
    """One operating point.

    predicted     speedup against the source by the latency table
    speedup       measured, interleaved with the source; not `reliable`: it decides nothing
    score, drop   on the select rows, in points, and how far below the source's there
    divergence    mean over the select rows, from the source's outputs
    size_bytes    of the graph
    """

    choice: Choice
    plan: Plan
    folder: Path
    predicted: float
    speedup: Interval
    score: float
    drop: Drop
    divergence: float
    size_bytes: int

    @property
    def graph(self) -> Path:
        """Where its graph lies, as long as it is kept."""
        return self.folder / GRAPH


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search ended with.

    chosen        the answer; `reached` False: no point meets the goal, and this is the one that comes nearest
    points        all that were built, the slowest first; the exact one (nothing removed) among them
    table         latencies that the choice was made with
    rows          rows of calibration, sweep and races
    evaluations   candidates evaluated; `hard_asked` of them with hard attention
    stages_run    stages x rows that they took, answers from the journal left out
    stages_plain  stages x rows of evaluating every one of those whole, on all search rows
    notes         sentences for the report
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
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def judged(self) -> list[float]:
        """How far below the source each point is judged to be."""
        return [drop.judged for drop in judged_drops(self.points)]


class Builder:
    """Carries choices out.

    teacher   what the source computes on the rows of the refit
    folder    of the points; the journal keeps what was measured of them
    """

    def __init__(
        self,
        options: OptimizeOptions,
        given: Given,
        levels: Levels,
        teacher: Teacher,
        start: Plan,
        folder: Path,
        journal: Journal,
    ) -> None:
        self._options, self._given, self._teacher = options, given, teacher
        self._levels, self._start, self._folder = levels, start, folder
        self._shape = shape_of(options, given)
        self._journal = journal
        self._points: dict[Choice, Point] = {}
        self.source = self._score(given.source.path, None)

    def point(self, choice: Choice, predicted: float) -> Point:
        """Build, measure and score one choice; each is built once."""
        if choice not in self._points:
            self._points[choice] = self._made(choice, predicted)
        return self._points[choice]

    def keep_graphs(self, points: Collection[Point]) -> None:
        """Delete the graphs of all other points: their plans stay, from which they can be built again."""
        for point in self._points.values():
            if point not in points:
                for part in point.folder.glob(f"{GRAPH}*"):
                    part.unlink()

    @property
    def points(self) -> list[Point]:
        """All that were built, the slowest prediction first."""
        return sorted(self._points.values(), key=lambda p: p.predicted)

    def _made(self, choice: Choice, predicted: float) -> Point:
        folder = self._folder / f"point-{len(self._points)}"
        folder.mkdir(parents=True)
        plan, model = self._carried_out(choice, folder)
        path = folder / GRAPH
        save_model(model, path)
        scores = self._score(path, self.source)
        latency = self._journal.fact(f"speedup {choice}", lambda: self._measured(path))
        size = sum(part.stat().st_size for part in folder.glob(f"{GRAPH}*"))
        rows, reading = self._given.rows["select"], self._given.reading
        return Point(
            choice=choice,
            plan=plan,
            folder=folder,
            predicted=predicted,
            speedup=Interval(**latency),
            score=scores.value,
            drop=drop_of(self.source, scores, rows.labels, reading.task, reading.label_map),
            divergence=float(reading.task.kind.divergence(self.source.outputs, scores.outputs).mean()),
            size_bytes=size,
        )

    def _carried_out(self, choice: Choice, folder: Path) -> tuple[Plan, ir.Model]:
        """Plan and weights into the folder; the graph."""
        written, weights = self._plan(choice)
        # as the search sees it: narrowed already, nothing folded or absorbed
        plan = dataclasses.replace(written.with_nothing_rewritten(), weights=None, half=None)
        if weights:
            weights = refit_from(self._teacher, plan, weights, threads=self._options.machine.threads)
        weights = self._with_classifier(plan, weights) if self._options.refit_classifier else weights
        if weights:
            save_weights(weights, folder / WEIGHTS)
        written = dataclasses.replace(written, weights=WEIGHTS if weights else None)
        (folder / PLAN).write_text(written.dumps(), encoding="utf-8")
        return written, self._graph(written, weights)

    def _graph(self, plan: Plan, weights: Weights) -> ir.Model:
        """The source with a plan carried out."""
        source = self._given.source
        return apply_plan(source.model, plan, run_once, examined=source.examined, weights=weights or None)

    def _plan(self, choice: Choice) -> tuple[Plan, Weights]:
        """The plan of a choice and the weights of its levels."""
        return self._levels.plan(choice, self._start)

    def _with_classifier(self, plan: Plan, weights: Weights) -> dict[str, Array]:
        """`weights` with the classifier refitted on the search rows, where that helps on rows left out."""
        given, reading = self._given, self._given.reading
        int8 = plan.int8.products_alone() if plan.int8 else None
        bare = dataclasses.replace(plan, weights=None, int8=int8 or None, half=None)
        model = self._graph(bare, weights)
        output, kind = reading.output.name, reading.task.kind
        assert kind.head_loss is not None  # `inputs.read_rows` refuses others
        try:
            place = classifier(examine(model, run_once), output)
        except RecogniseError as error:
            logger.warning("--refit-classifier: left as it is: %s", error)
            return dict(weights)
        bias, labels = place.bias_vector(), given.rows["search"].labels
        if bias is None:
            return dict(weights)
        inputs = exposed(model, input_of(place), given.encoded["search"], self._options.machine)
        targets, seed = kind.head_targets(labels, reading.label_map), self._options.seed
        found = fit_classifier(inputs, targets, place.weight_matrix(), bias, loss=kind.head_loss, seed=seed)
        if found.strength is None:
            return dict(weights)
        keys = classifier_key(output, "weight"), classifier_key(output, "bias")
        return {**weights, keys[0]: found.weight.astype(np.float32), keys[1]: found.bias.astype(np.float32)}

    def _score(self, path: Path, source: Scores | None) -> Scores:
        given, machine = self._given, self._options.machine
        outputs = None if source is None else source.outputs
        return score_file(path, given.reading, given.encoded["select"], given.rows["select"], machine, source=outputs)

    def _measured(self, path: Path) -> dict[str, Any]:
        """The fields of an `Interval`."""
        pair = {"source": self._given.source.path, "point": path}
        rows = latency_of(pair, [self._shape], self._given.reading.tokens, self._options.machine, self._options.seed)
        ratio = rows[1].ratio
        assert ratio is not None
        return dataclasses.asdict(ratio)


def exposed(model: ir.Model, name: str, encoded: Encoded, machine: Machine) -> FloatArray:
    """float64[rows, R]: the tensor `name` [B, R] of the graph, in the order of the rows."""
    piece = detached(model)
    if name not in {output.name for output in piece.proto.graph.output}:
        piece.proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = make_session(piece, provider=machine.provider, threads=machine.threads)
    names = [one.name for one in session.get_inputs()]
    parts = [(b.rows, run_session(session, b.feeds, [name])[name]) for b in batches(encoded, names)]
    found = np.empty((len(encoded), parts[0][1].shape[-1]))
    for rows, part in parts:
        found[rows] = part.reshape(len(rows), -1)
    return found


def shape_of(options: OptimizeOptions, given: Given) -> tuple[int, int]:
    """(batch, length) at which speed counts: the first that was asked for, else one row at the search rows' median length."""
    if options.shapes:
        return options.shapes[0]
    return default_shapes(given.encoded["search"])[0]


def judged_drops(points: Sequence[Point]) -> list[Drop]:
    """Of each point, as it is judged beside the others."""
    return together([point.drop for point in points], [point.divergence for point in points])


def within_drop(points: Sequence[Point], drop: float) -> list[Point]:
    """The points that are at most `drop` points below the source as they are judged (docs/method.md 2.7), slowest first."""
    passing = [point for point, judged in zip(points, judged_drops(points), strict=True) if holds(judged, drop)]
    return sorted(passing, key=lambda p: p.predicted)


def nearly_as_fast(points: Sequence[Point], error: float) -> list[Point]:
    """The fastest by the table, and those that its error does not tell from that one."""
    most = max(point.predicted for point in points)
    return [point for point in points if point.predicted * (1 + error) >= most]


def fastest(points: Sequence[Point], error: float) -> Point:
    """Of those that the table cannot tell apart the one that is measured fastest; by the table where a speed is not reliable."""
    equal = nearly_as_fast(points, error)
    if not all(point.speedup.reliable for point in equal):
        return max(equal, key=lambda p: p.predicted)
    return max(equal, key=lambda p: p.speedup.value)


def is_as_fast(point: Point, speedup: float, error: float) -> bool:
    """Is it measured at least so fast, and does the table's error allow it? By the table where the measurement is not reliable."""
    if not point.speedup.reliable:
        return point.predicted >= speedup
    return point.speedup.value >= speedup and point.predicted * (1 + error) >= speedup


def best_at_speed(points: Sequence[Point], speedup: float, error: float) -> tuple[Point, bool]:
    """(the point of least divergence of those that are as fast, True); where there is none, (the fastest, False)."""
    fast = [point for point in points if is_as_fast(point, speedup, error)]
    return (min(fast, key=lambda p: p.divergence), True) if fast else (fastest(points, error), False)


__all__ = [
    "Builder",
    "Found",
    "Point",
    "best_at_speed",
    "fastest",
    "judged_drops",
    "nearly_as_fast",
    "shape_of",
    "within_drop",
]
