"""What is compensation worth? Half of the heads and neurons of each layer go; the score with weights untouched, levels, and refit.

    python bench/compensation.py [CHECKPOINT OR MODEL] [--task T] [--data FOLDER] [--search-data FILE] [--rows N] [--keep F]

The same heads and neurons go in all three, so the structure is the same. Moments, levels and refit see the texts of search rows
alone; the score is of the report rows. Without arguments: the SST-2 checkpoint of ../shared, and nothing at all where it is absent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from record import stamped

from axformer_onnx.compensate.algebra import levels
from axformer_onnx.compensate.moments import Moments, calibrate, text_samples
from axformer_onnx.compensate.refit_outputs import refit_weights
from axformer_onnx.data.roles import resolve
from axformer_onnx.runtime.sessions import make_session, run_once
from axformer_onnx.scoring.evaluation import reading_of
from axformer_onnx.scoring.stage_scorer import StageScorer
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_onnx.tasks.definitions import get_task
from axformer_onnx.tasks.labels import with_label_names
from axformer_passes.apply import reweighted
from axformer_passes.blocks.projections import projection
from axformer_passes.cut.new_weights import Weights, weight_key
from axformer_passes.io.files import load_model
from axformer_passes.io.layout import model_path
from axformer_passes.plan import Plan

SHARED = Path(__file__).resolve().parents[2] / "shared"


def halved(sessions: StageSessions, known: Iterable[Moments], keep: float) -> tuple[Plan, dict[str, Any]]:
    """A plan that keeps this part of the heads and neurons of each layer, with the weights of those levels."""
    plan, weights = Plan(), dict[str, Any]()
    for moments in known:
        place = projection(sessions.staged.examined, moments.layer, moments.kind)
        count = max(1, round(keep * len(place.positions)))
        matrix, bias = place.weight_matrix(), place.bias_vector()
        (level,) = levels(matrix, bias, moments.matrix, place.positions, [count])
        gone = set(range(len(place.positions))) - set(level.kept)
        without = plan.without_heads if moments.kind == "attention" else plan.without_neurons
        plan = without(moments.layer, gone)
        weights[weight_key(moments.layer, moments.kind, "weight")] = level.weight.astype(np.float32)
        weights[weight_key(moments.layer, moments.kind, "bias")] = level.bias.astype(np.float32)
    return plan, weights


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(SHARED / "checkpoints" / "sst2"))
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", default=str(SHARED / "data" / "sst2"))
    parser.add_argument("--search-data", default=str(SHARED / "checkpoints" / "sst2" / "search.jsonl"))
    parser.add_argument("--rows", type=int, default=500, help="calibration rows")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    if not Path(a.model).exists():
        print(f"{Path(a.model).name}: absent, nothing to measure")
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(a, exported(Path(a.model), Path(folder) / "model")), indent=2))


def exported(model: Path, folder: Path) -> Path:
    """The model's file; a checkpoint is exported first."""
    if model.suffix == ".onnx" or (model / "model.onnx").is_file():
        return model_path(model)
    from axformer_onnx.exporting import export

    return export(model, folder).path


def measure(a: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Scores of the four variants, and the seconds of each step."""
    config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    task = get_task(a.task)
    roles = resolve(task, model_dir=path.parent, data=a.data, search_data=a.search_data)
    reading = reading_of(path.parent, make_session(path), with_label_names(task, config), roles.report)
    report = reading.encoder.encode(roles.report)
    model = load_model(path)
    sessions = StageSessions(model, threads=a.threads)
    rows = reading.encoder.encode(roles.search.take(np.arange(min(a.rows, len(roles.search)))))
    samples = text_samples(rows, sessions.input_names)

    def score(one: ir.Model | StageSessions, plan: Plan) -> dict[str, float]:
        stages = one if isinstance(one, StageSessions) else StageSessions(one, threads=a.threads)
        anatomy = stages.staged.examined.anatomy
        found = StageScorer(stages, anatomy, report, roles.report, reading.task, reading.label_map).scores(plan)
        return {reading.task.metric: round(found.value, 2), "loss": round(float(found.loss_per_row.mean()), 4)}

    def written(weights: Weights) -> ir.Model:
        return reweighted(model, plan, weights, run_once)

    marks = [time.perf_counter()]
    plan, weights = halved(sessions, calibrate(sessions, samples), a.keep)
    marks.append(time.perf_counter())
    refitted = refit_weights(model, plan, weights, samples, threads=a.threads)
    marks.append(time.perf_counter())
    return stamped({
        "model": Path(a.model).name,
        "calibration_rows": len(rows),
        "report_rows": len(report),
        "kept_of_each_layer": a.keep,
        "source": score(sessions, Plan()),
        "weights_untouched": score(sessions, plan),
        "levels": score(written(weights), plan),
        "refit": score(written(refitted), plan),
        "seconds": {"moments_and_levels": round(marks[1] - marks[0], 1), "refit": round(marks[2] - marks[1], 1)},
    })  # fmt: skip


if __name__ == "__main__":
    main()
