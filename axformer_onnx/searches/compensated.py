"""`--search compensated`, the default: what stays makes up for what goes, under a goal (docs/method.md 2)."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.options import SEARCHES
from axformer_onnx.searches.search import Decided, Search, SearchRun

if TYPE_CHECKING:
    from axformer_onnx.data import DataRoles, Rows
    from axformer_onnx.inputs import Given
    from axformer_onnx.options import OptimizeOptions
    from axformer_onnx.search.compensated import Found

_LEVEL_BYTES = 2**29
"""Weights of levels that are kept in memory; beyond it they are in files."""


class Compensated(Search):
    """The fastest graph within a drop, or the most accurate one at a speedup or size, and the frontier between."""

    name = "compensated"
    help = "what stays makes up for what goes, latency is measured"
    decisive = (
        "goal",
        "effort",
        "shapes",
        "refit_classifier",
        "quantize",
        "weight_bits",
        "activations",
        "embedding_bits",
        "half",
        "structure",
    )
    calibrates = True
    dequantises = True

    def rows_by_role(self, roles: DataRoles) -> dict[str, Rows]:
        """Calibration rows beside the others, where there are any."""
        rows = super().rows_by_role(roles)
        return rows if roles.calibration is None else {**rows, "calibration": roles.calibration}

    def expected_tokens(self, options: OptimizeOptions, given: Given) -> float:
        """As its effort bounds it."""
        from axformer_onnx.search.compensated import FEWEST, expected_tokens

        return expected_tokens(options, given, FEWEST)

    def run(self, run: SearchRun) -> Decided:
        """The plans of the points go to `frontier/` in the folder, with the graph of the answer alone."""
        from axformer_onnx.compensate import WEIGHTS
        from axformer_onnx.result import FRONTIER
        from axformer_onnx.result.report import compensated_record, compensation_record
        from axformer_onnx.runtime import Shelf
        from axformer_onnx.search.compensated import search_budget

        options, began, points = run.options, time.monotonic(), run.folder / FRONTIER
        with Shelf(_LEVEL_BYTES) as shelf:
            sessions = run.working.with_biases().sessions(options.machine)
            found = search_budget(options, run.given, sessions, run.start, run.journal, shelf, points, run.watcher.part)
        shutil.rmtree(run.folder / ".spool", ignore_errors=True)
        folders = _keep_plans(found)
        record = compensated_record(found, seed=options.seed, k=options.k, seconds=time.monotonic() - began)
        compensation = compensation_record(found, options.goal.words, options.effort, folders)
        kept = points / Path(folders[found.chosen.folder]).name
        weights = kept / WEIGHTS if found.chosen.plan.weights else None
        graph = kept / found.chosen.graph.name
        built = graph if graph.is_file() else None
        return Decided(found.chosen.plan, weights, record, compensation, found.interrupted, built, found.notes)


def _keep_plans(found: Found) -> dict[Path, str]:
    """Name folders of points after their speedups, by the table where one was not measured; names are relative to the output."""
    from axformer_onnx.result import FRONTIER

    names: dict[Path, str] = {}
    for point in sorted(found.points, key=lambda p: p.speedup.value if p.speedup.reliable else p.predicted):
        for graph in point.folder.glob(f"{point.graph.name}*") if point is not found.chosen else ():
            graph.unlink()
        measured = point.speedup.reliable
        name = base = f"{point.speedup.value:.2f}x" if measured else f"{point.predicted:.2f}x-by-table"
        number = 2
        while (point.folder.parent / name).exists():
            name, number = f"{base}-{number}", number + 1
        point.folder.rename(point.folder.parent / name)
        names[point.folder] = f"{FRONTIER}/{name}"
    return names


COMPENSATED = SEARCHES.add(Compensated())
