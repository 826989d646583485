"""How strongly should compensation hold weights? Divergence on rows that were fitted and on others, for several strengths.

    python bench/held.py [MODEL] [--task T] [--data FILE] [--search-data FILE] [--keep F] [--rows N] [--report-rows N]
                         [--strengths 0.5 ..] [--least 0.01] [--mixed N] [--json FILE]

That part of the heads and neurons of each layer is kept, the read-out is narrowed; 0 rows a token is the least strength alone (1e-4
of the mean diagonal for levels, --least for refits). --mixed: the refit is given so many rows more for each one, halves of two
joined.
Without arguments: the example model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from compensation import halved
from record import stamped, write

from axformer_onnx.compensate import algebra
from axformer_onnx.compensate.moments import calibrate, text_samples
from axformer_onnx.compensate.refit_outputs import Teacher, refit_from
from axformer_onnx.data import Encoded
from axformer_onnx.data.recombination import mix
from axformer_onnx.data.roles import resolve
from axformer_onnx.data.rows import unlabelled
from axformer_onnx.records import FloatArray
from axformer_onnx.runtime.sessions import make_session, run_once
from axformer_onnx.scoring import Machine, reading_of
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_onnx.search.compensated.operating_points import exposed
from axformer_onnx.tasks import get_task
from axformer_onnx.tasks.labels import with_label_names
from axformer_passes.apply import apply_plan, narrowed
from axformer_passes.cut import Weights
from axformer_passes.io import load_model
from axformer_passes.plan import Plan

EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini" / "model.onnx"
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=EXAMPLE)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--search-data")
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--rows", type=int, default=2000, help="rows that are fitted")
    parser.add_argument("--report-rows", type=int, default=3000)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--least", type=float, default=algebra.RIDGE, help="strength of refits of many tokens")
    parser.add_argument("--mixed", type=int, default=0, help="rows of the refit beside each one, recombined")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    found = stamped(measured(a))
    print(f"{'rows a token':>12}  {'levels, fitted':>14} {'others':>8}  {'refit, fitted':>14} {'others':>8}")
    for strength, one in found["strengths"].items():
        levels, refit = one["levels"], one["refit"]
        print(
            f"{strength:>12}  {levels['fitted']:14.4f} {levels['others']:8.4f}  {refit['fitted']:14.4f} {refit['others']:8.4f}"
        )
    write(a.json, found)


def measured(a: argparse.Namespace) -> dict[str, Any]:
    """Divergences by strength, of levels and after the refit."""
    folder = a.model.parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    task = get_task(a.task)
    roles = resolve(task, model_dir=folder, data=a.data, search_data=a.search_data)
    reading = reading_of(folder, make_session(a.model), with_label_names(task, config), roles.report)
    search = roles.search.take(np.arange(min(a.rows, len(roles.search))))
    fitted, texts, rng = reading.encoder.encode(search), list(search.texts), np.random.default_rng(0)
    mixed = unlabelled([*texts, *(text for _ in range(a.mixed) for text in mix(texts, rng))], search.source)
    others = reading.encoder.encode(roles.report.take(np.arange(min(a.report_rows, len(roles.report)))))
    source = load_model(a.model)
    inner, _ = narrowed(source, run_once)
    sessions = StageSessions(inner)
    samples = text_samples(fitted, sessions.input_names)
    moments = list(calibrate(sessions, samples))

    def outputs(model: ir.Model, rows: Encoded) -> FloatArray:
        return exposed(model, reading.output.name, rows, Machine())

    expected = {name: outputs(source, rows) for name, rows in (("fitted", fitted), ("others", others))}

    def divergences(plan: Plan, weights: Weights) -> dict[str, float]:
        graph = apply_plan(source, plan, run_once, weights=weights)
        kind = reading.task.kind
        return {
            name: round(float(kind.divergence(expected[name], outputs(graph, rows)).mean()), 5)
            for name, rows in (("fitted", fitted), ("others", others))
        }

    algebra.RIDGE, strengths = a.least, {}
    more = text_samples(reading.encoder.encode(mixed), sessions.input_names) if a.mixed else samples
    with Teacher(sessions, more) as teacher:
        for strength in a.strengths:
            algebra.ROWS_A_TOKEN = strength
            plan, weights = halved(sessions, moments, a.keep)
            refitted = refit_from(teacher, plan, weights)
            written = dataclasses.replace(plan, readout="narrow")
            strengths[f"{strength:g}"] = {
                "levels": divergences(written, weights),
                "refit": divergences(written, refitted),
            }
    return {
        "model": folder.name, "task": a.task, "kept": a.keep, "fitted_rows": len(fitted), "other_rows": len(others),
        "least": a.least, "mixed_rows": a.mixed * len(texts), "strengths": strengths,
    }  # fmt: skip


if __name__ == "__main__":
    main()
