"""How wrong are latency tables? Speeds by the table against measured ones, of all frontier points of finished runs.

    python bench/table_error.py RUN [RUN ...] [--again] [--json bench/results/table-error.json]

RUN is the output of `optimize MODEL --search compensated`; its report.json has both speeds of every point, each against the source.
--again builds the points once more and measures them by the clock that the table was made with: where the machine was never free,
CPU time on one thread. A difference is predicted / measured - 1. Of each run, and of all of them together:

    bias            median of the differences: what the table promises too much, after its correction
    median, worst   of their sizes
    outside         points whose predicted speed lies outside the measured interval
    stated          what the table knew of itself before the search: plans that change all blocks, timed with it

The measured speeds have errors of their own: `width`, the median of half their intervals over their values, is a floor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import axformer_onnx as ax
from axformer_onnx.result.report.record import IntervalRecord, PointRecord, Report
from axformer_onnx.scoring import Machine, latency_of
from axformer_onnx.scoring.evaluation import Clock
from axformer_passes.io import model_path
from axformer_passes.probe import TokenSequence

FILES = ("data", "search_data")
"""Options that name files of the machine, which are nobody else's business."""
WAIT = 60.0
"""Seconds to wait for a free machine, for each point."""


def main() -> None:
    """Read the reports, print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--again", action="store_true", help="measure all points now, by the clock of their table")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    reports = {str(run): Report.load(run / "report.json") for run in a.runs}
    points = {name: timed_points(report) for name, report in reports.items()}
    if a.again:
        points = {name: measured_again(Path(name), reports[name], some) for name, some in points.items()}
    without = [name for name, found in points.items() if not found]
    if without or not points:
        print(f"no points with both speeds in {', '.join(without) or 'nothing'}: name outputs of compensated runs")
        return
    result: dict[str, Any] = {
        "runs": [run_of(reports[name], found) for name, found in points.items()],
        "together": figures([point for found in points.values() for point in found]),
    }
    for name, run in zip(points, result["runs"], strict=True):
        print(line_of(f"{name} ({run['task']}, {run['shape']})", run))
    print(line_of("together", result["together"]))
    if a.json:
        a.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def timed_points(report: Report) -> list[PointRecord]:
    """The points of the frontier that have both speeds."""
    frontier = report.compensation.frontier if report.compensation else []
    return [point for point in frontier if point.predicted is not None]


def measured_again(run: Path, report: Report, points: Sequence[PointRecord]) -> list[PointRecord]:
    """The points with the speeds that they have now."""
    assert report.compensation is not None
    table, found = report.compensation.table, list[PointRecord]()
    batch, length = (int(size) for size in report.compensation.shape.split(" x "))
    clock: Clock = "cpu" if table is not None and table.cpu_time else "wall"
    source, machine = model_path(Path(report.model)), Machine(provider=report.provider, threads=report.threads)
    with tempfile.TemporaryDirectory() as folder:
        for number, point in enumerate(points):
            graph = ax.apply(run / point.folder, source, Path(folder) / f"{number}.onnx")
            graphs, tokens = {"source": source, "point": graph}, TokenSequence(words=range(1000, 2000))
            row = latency_of(graphs, [(batch, length)], tokens, machine, number, wait_seconds=WAIT, clock=clock)[1]
            assert row.ratio is not None
            speed = IntervalRecord(value=row.ratio.value, low=row.ratio.low, high=row.ratio.high, level=row.ratio.level)
            print(
                f"{run} {point.folder}: {point.predicted:.3f} by the table, {speed.value:.3f}",
                file=sys.stderr,
                flush=True,
            )
            found.append(point.model_copy(update={"speedup": speed, "reliable": row.reliable, "why": row.why}))
    return found


def run_of(report: Report, points: Sequence[PointRecord]) -> dict[str, Any]:
    """One run: its figures, what the table stated, its points, and where it ran."""
    assert report.compensation is not None
    table = report.compensation.table
    return {
        "task": report.task,
        "goal": report.compensation.goal,
        "shape": report.compensation.shape,
        "options": {name: value for name, value in report.options.items() if name not in FILES},
        **figures(points),
        "stated": None if table is None else table.model_dump(),
        "points": [
            {"predicted": round(p.predicted or 0.0, 3), "measured": [p.speedup.value, p.speedup.low, p.speedup.high]}
            for p in points
        ],
        "hardware": report.hardware,
        "versions": report.versions,
    }


def figures(points: Sequence[PointRecord]) -> dict[str, Any]:
    """Bias, median and worst, points outside of their intervals, and the width of these."""
    differences = np.array([(p.predicted or 0.0) / p.speedup.value - 1 for p in points])
    outside = sum(not p.speedup.low <= (p.predicted or 0.0) <= p.speedup.high for p in points)
    widths = [(p.speedup.high - p.speedup.low) / 2 / p.speedup.value for p in points]
    return {
        "count": len(points),
        "bias": round(float(np.median(differences)), 4),
        "median": round(float(np.median(np.abs(differences))), 4),
        "worst": round(float(np.abs(differences).max()), 4),
        "outside": outside,
        "width": round(float(np.median(widths)), 4),
    }


def line_of(name: str, found: dict[str, Any]) -> str:
    """A line of figures in per cent."""
    bias, median, worst, width = (f"{100 * found[key]:.1f} %" for key in ("bias", "median", "worst", "width"))
    told = f"{name}: {found['count']} points, bias {bias}, error {median} in the median, {worst} at worst; intervals +-{width}"
    stated = found.get("stated")
    return f"{told}; stated {100 * stated['median']:.1f} %, {100 * stated['worst']:.1f} %" if stated else told


if __name__ == "__main__":
    main()
