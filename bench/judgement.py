"""How well is a drop judged from a few hundred rows? Estimates of it against what all other rows say.

    python bench/judgement.py RUN[=ROWS] [RUN[=ROWS] ...] [--rows 200 600 2000] [--draws 20] [--threads N] [--json FILE]

RUN is the output of `optimize MODEL --search compensated` on a task with classes. The points of its frontier are built again and
scored on all labelled rows that the refit did not see: its select rows, and its report rows or those of the file ROWS. Of these
some are drawn, the drop of every point below the source is estimated from them, and held against what is measured on the others:

    measured      the source's metric less the point's, on the rows drawn
    source alone  expected with the source's probabilities, at the temperature that fits those rows best
    both          expected with the likeliest mixture of both (docs/method.md 2.7)
    together      that, drawn half-way to the line through all points: what decides

`error` is the root mean square over points and draws, `bias` the mean: above 0 the estimate is too careful. What the other rows
say has an error of its own, the same for all. `answer` is what matters in the end: the drop, on the other rows, of the fastest
point that each estimate lets pass where 1 % of the source's metric may go, its mean and what it exceeds in a tenth of the draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from record import stamped, write
from scipy.special import softmax

import axformer_onnx as ax
from axformer_onnx.inputs import OptimizeOptions, open_source, read_rows
from axformer_onnx.records import FloatArray
from axformer_onnx.result.report.record import Report
from axformer_onnx.scoring import Drop, holds, score_file, together
from axformer_onnx.statistics import best_temperature
from axformer_onnx.tasks import LabelMap
from axformer_onnx.tasks.classification import Classification, guesses_of
from axformer_onnx.tasks.metrics import ClassMetric, metric_named
from axformer_passes.io import model_path

ESTIMATES = ("measured", "source alone", "both", "together")
ALLOWED = 0.01
"""Part of the source's metric that may go."""
OPTIONS = ("search_data", "seed", "max_search_rows", "max_length")
"""Of the run, that decide which rows are whose."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """Outputs [rows, classes] of the source and of every point, on the same rows."""

    task: str
    metric: ClassMetric
    kind: Classification
    label_map: LabelMap
    labels: npt.NDArray[Any]
    source: FloatArray
    points: list[FloatArray]

    def value(self, rows: npt.NDArray[Any]) -> float:
        """Of the source, in points."""
        classes = np.eye(len(self.label_map.order))
        return float(
            self.metric.of(classes[self.labels[rows]].T @ classes[guesses_of(self.source[rows], self.label_map)])
        )

    def drop(self, rows: npt.NDArray[Any], point: FloatArray) -> float:
        """Measured on these rows."""
        return self._under(np.eye(len(self.label_map.order))[self.labels[rows]], rows, point)

    def estimates(self, rows: npt.NDArray[Any]) -> dict[str, list[Drop]]:
        """Of every point, by the names of ESTIMATES."""
        source, labels = self.source[rows][:, list(self.label_map.order)], self.labels[rows]
        alone = softmax(best_temperature(source, labels) * source, axis=1)
        found: dict[str, list[Drop]] = {name: [] for name in ESTIMATES}
        for point in self.points:
            both = self.kind.expected_drop(self.source[rows], point[rows], labels, self.metric.name, self.label_map)
            differ = (guesses_of(self.source[rows], self.label_map) != guesses_of(point[rows], self.label_map)).sum()
            measured, noise = self.drop(rows, point), 100 * float(np.sqrt(differ)) / len(rows)
            for name, expected in zip(ESTIMATES, (None, self._under(alone, rows, point), both), strict=False):
                found[name].append(Drop(measured, noise, expected))
        far = [float(self.kind.divergence(self.source[rows], point[rows]).mean()) for point in self.points]
        return found | {"together": together(found["both"], far)}

    def _under(self, chances: FloatArray, rows: npt.NDArray[Any], point: FloatArray) -> float:
        """The drop of the metric's confusion counts under these chances of the labels."""
        classes = np.eye(len(self.label_map.order))
        answers = (classes[guesses_of(one[rows], self.label_map)] for one in (self.source, point))
        ours, theirs = (float(self.metric.of(chances.T @ given)) for given in answers)
        return ours - theirs


def scored(run: Path, data: str | None, threads: int | None) -> Scored:
    """Build the points of a run and score them."""
    report = Report.load(run / "report.json")
    assert report.compensation is not None, f"{run}: not of the compensated search"
    same = {name: report.options[name] for name in OPTIONS if name in report.options}
    named = {"model": report.model, "task": report.task, "data": data or report.options.get("data"), "threads": threads}
    options = OptimizeOptions.model_validate(named | same)
    given = read_rows(options, open_source(options))
    kind, roles = given.reading.task.kind, ("select", "report")
    metric = metric_named(kind.name, report.metric)
    assert isinstance(kind, Classification) and isinstance(metric, ClassMetric), f"{report.task}: not of classes"

    def outputs(graph: Path) -> FloatArray:
        parts = (
            score_file(graph, given.reading, given.encoded[role], given.rows[role], options.machine) for role in roles
        )
        return np.concatenate([part.outputs for part in parts])

    labels = np.concatenate([given.rows[role].labels for role in roles]).astype(np.int64)
    source, points = outputs(given.source.path), list[FloatArray]()
    with tempfile.TemporaryDirectory() as folder:
        for point in report.compensation.frontier:
            if point.divergence > 1e-9:  # something was removed
                path = ax.apply(
                    run / point.folder, model_path(Path(report.model)), Path(folder) / "model.onnx", overwrite=True
                )
                points.append(outputs(path))
    return Scored(report.task, metric, kind, given.reading.label_map, labels, source, points)


def figures(found: Scored, count: int, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Error and bias of each estimate from `count` rows, and what their answers lost."""
    errors, answers = ({name: list[float]() for name in ESTIMATES} for _ in range(2))
    for _ in range(draws):
        order = rng.permutation(len(found.labels))
        rows, others = order[:count], order[count:]
        truths, most = [found.drop(others, point) for point in found.points], ALLOWED * found.value(rows)
        for name, drops in found.estimates(rows).items():
            errors[name] += [drop.judged - truth for drop, truth in zip(drops, truths, strict=True)]
            answers[name].append(
                next((t for drop, t in reversed([*zip(drops, truths, strict=True)]) if holds(drop, most)), 0.0)
            )
    return {
        name: {
            "error": round(float(np.sqrt(np.mean(np.square(errors[name])))), 3),
            "bias": round(float(np.mean(errors[name])), 3),
            "answer": [round(float(one), 3) for one in (np.mean(answers[name]), np.quantile(answers[name], 0.9))],
        }
        for name in ESTIMATES
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN[=ROWS]")
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 600, 2000])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if not a.runs:
        print("name the outputs of compensated runs")
        return
    result = list[dict[str, Any]]()
    for run, _, data in (one.partition("=") for one in a.runs):
        result.append(of_run(scored(Path(run), data or None, a.threads), a.rows, a.draws, a.seed))
    write(a.json, stamped({"draws": a.draws, "runs": result}))


def of_run(found: Scored, counts: Sequence[int], draws: int, seed: int) -> dict[str, Any]:
    """Figures by number of rows, printed as they come."""
    result: dict[str, Any] = {"task": found.task, "rows": len(found.labels), "points": len(found.points), "from": {}}
    for count in (one for one in counts if 2 * one <= len(found.labels)):
        result["from"][count] = figures(found, count, draws, np.random.default_rng(seed))
        told = ", ".join(
            f"{name} {one['error']:.2f} ({one['bias']:+.2f}; {one['answer'][0]:+.2f}, {one['answer'][1]:+.2f})"
            for name, one in result["from"][count].items()
        )
        print(f"{found.task}, {len(found.points)} points, from {count} of {len(found.labels)} rows: {told}", flush=True)
    return result


if __name__ == "__main__":
    main()
