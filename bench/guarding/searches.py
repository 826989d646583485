"""What a search finds and what it takes: quality, size and speed of its operating points; work, seconds and memory of the run.

Speeds are counted while it searches (`counted`), so that the same code finds the same graphs; then its points are built, scored on
the report rows, and timed against the source, interleaved in one process.
"""

from __future__ import annotations

import cProfile
import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from linear import apart, resident_kib
from work import counted

from axformer_onnx.commands import optimize
from axformer_onnx.commands.replay import apply
from axformer_onnx.data import resolve_report
from axformer_onnx.options import EffortLevel, OptimizeOptions
from axformer_onnx.runtime import run_once
from axformer_onnx.scoring import Machine, compare, latency_of, reading_of, score_file
from axformer_onnx.tasks import get_task
from axformer_passes.blocks import macs
from axformer_passes.io import load_model
from guarding.counted import counted_speeds
from guarding.figures import MEMORY, SINGLE, Figure, count, digest, packed

LADDER = (1.5, 2.0, 2.5, 3.0)
"""Speedups, as counted, that the search builds points for."""
GOAL = 2.0
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Case:
    """One model on one task.

    length   tokens at which speed is counted and measured
    wait     seconds to wait for a free machine, for each shape
    """

    name: str
    model: Path
    task: str
    length: int
    data: str | None = None
    search_data: str | None = None
    effort: EffortLevel = "low"
    seed: int = 0
    wait: float = 60.0


def measured(case: Case) -> list[Figure]:
    """All figures of a case. The search runs twice, once under a profiler: both must find the same."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run, again = (apart(searched, case, folder / name, name == "profiled") for name in ("plain", "profiled"))
        points = apart(built, case, folder / "plain", folder / "graphs")
        return [*_search(case.name, run, again), *apart(scored, case, points), *apart(timed, case, points)]


# -- in processes of their own ----------------------------------------------------------------------------------------


def searched(case: Case, output: Path, profiled: bool) -> dict[str, Any]:
    """One search: what it took, and a digest of what it found."""
    options = OptimizeOptions(
        model=case.model, task=get_task(case.task), output=output, data=case.data, search_data=case.search_data, speedup=GOAL,
        effort=case.effort, threads=1, length=(case.length,), seed=case.seed, runtime_form="none",
    )  # fmt: skip
    profile = cProfile.Profile()
    with counted_speeds():
        wall, busy = time.perf_counter(), time.process_time()
        result = profile.runcall(optimize, options) if profiled else optimize(options)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
    told = result.report.compensation
    assert told is not None
    files = sorted(path for path in output.rglob("plan.*") if path.is_file())
    return {
        "found": digest(
            (path.relative_to(output).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files
        ),
        "evaluations": told.evaluations,
        "work": told.work,
        "points": len(told.frontier),
        "wall": wall,
        "busy": busy,
        "peak": resident_kib("VmHWM") / 1024,
        "calls": {name: x["calls"] for name, x in counted(profile).items()} if profiled else {},
    }


def built(case: Case, output: Path, folder: Path) -> dict[str, Path]:
    """{"source", "2x", ...: graph} of the points of a run: of each of LADDER the slowest that is counted as fast."""
    from axformer_onnx.result.report import Report

    told = Report.load(output / "report.json").compensation
    assert told is not None
    graphs = {"source": case.model}
    for speedup in LADDER:
        fast = [point for point in told.frontier if (point.predicted or 0.0) >= speedup]
        if fast:
            point, name = min(fast, key=lambda p: p.predicted or 0.0), f"{speedup:g}x"
            graphs[name] = apply(output / point.folder, case.model, folder / name / "model.onnx")
    return graphs


def scored(case: Case, graphs: Mapping[str, Path]) -> list[Figure]:
    """Quality and size of every graph, on the report rows."""
    task, machine = get_task(case.task), Machine(threads=1)
    rows = resolve_report(task, model_dir=case.model.parent, data=case.data)
    reading = reading_of(case.model.parent, machine.session(case.model), task, rows)
    encoded, found, source = reading.encode(rows), list[Figure](), None
    labels = digest(np.asarray(rows.labels).tolist())
    for name, path in graphs.items():
        scores = score_file(path, reading, encoded, rows, machine)
        source = source or scores
        against = compare(source, scores, rows.labels, reading.task, reading.label_map, case.seed).difference
        answers = reading.task.kind.answers(scores.outputs, scores.loss_per_row, rows.labels, reading.label_map)
        label = f"{case.name} / {name}"
        found += [
            Figure(
                f"{label} / {scores.metric}", round(scores.value, 3), "points", "higher", decisive=True,
                low=round(against.low, 3), high=round(against.high, 3), rows=labels, right=packed(answers.given == answers.labels),
            ),
            count(f"{label} / size", path.stat().st_size, "bytes"),
            count(f"{label} / multiply-accumulates", macs(load_model(path), run_once, 1, case.length)),
        ]  # fmt: skip
    return found


def timed(case: Case, graphs: Mapping[str, Path]) -> list[Figure]:
    """How many times as fast as the source every point is, by the project's own estimator."""
    task, machine = get_task(case.task), Machine()
    rows = resolve_report(task, model_dir=case.model.parent, data=case.data)
    tokens = reading_of(case.model.parent, machine.session(case.model), task, rows).tokens
    shapes = [(1, case.length), (8, case.length)]
    lines = latency_of(graphs, shapes, tokens, machine, case.seed, wait_seconds=case.wait)
    return [
        Figure(
            f"{case.name} / {line.model} / faster at {line.batch} x {line.length}", round(line.ratio.value, 4), "x", "higher",
            low=round(line.ratio.low, 4), high=round(line.ratio.high, 4), reliable=line.reliable, why=line.why,
        )
        for line in lines
        if line.ratio is not None
    ]  # fmt: skip


def _search(name: str, run: Mapping[str, Any], again: Mapping[str, Any]) -> list[Figure]:
    label = f"{name} / search"
    return [
        Figure(f"{label} / found again", float(run["found"] == again["found"]), "", "higher", decisive=True),
        Figure(f"{label} / points", run["points"], "", "higher", decisive=True),
        count(f"{label} / candidates evaluated", run["evaluations"]),
        count(f"{label} / rows x stages", run["work"]),
        *(count(f"{label} / calls of {what}", calls) for what, calls in again["calls"].items()),
        Figure(f"{label} / wall", round(run["wall"], 2), "s", noise=SINGLE),
        Figure(f"{label} / processor", round(run["busy"], 2), "s", noise=SINGLE),
        Figure(f"{label} / peak memory", round(run["peak"], 1), "MiB", noise=MEMORY),
    ]
