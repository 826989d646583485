"""How many times faster is a candidate scored through gates, buckets and reuse than by a plain loop?

    python bench/search.py [MODEL] [--task T] [--data FOLDER] [--search-data FILE] [--every N] [--json FILE]

One real robust search runs; every N-th candidate that it scores is scored again, right after, by a plain loop: surgery
(`apply_plan`), save, load, full evaluation in batches of 32 rows in file order, each padded to its longest row, with as many
threads. Both give the same losses (checked). Ratios are of times taken next to each other in one process. Of
the compensated search: `whole_run.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import stamped, write

from axformer_onnx.data.encoding import Encoded, feeds
from axformer_onnx.data.roles import resolve
from axformer_onnx.data.rows import Rows
from axformer_onnx.records import FloatArray
from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_onnx.scoring.evaluation import Reading, reading_of
from axformer_onnx.scoring.outputs import evaluate
from axformer_onnx.scoring.recalibrate import Recalibrated
from axformer_onnx.scoring.stage_scorer import StageScorer
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_onnx.search.greedy.robust import fold_rows, robust_judge, robust_order
from axformer_onnx.search.greedy.walk import walk
from axformer_onnx.tasks.definitions import get_task
from axformer_onnx.tasks.labels import with_label_names
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model, save_model
from axformer_passes.io.layout import model_path
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

PLAIN_BATCH = 32
EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini"


class PlainLoop:
    """Surgery, save, load, full evaluation. Steps of one candidate in seconds, and its losses."""

    def __init__(self, path: Path, reading: Reading, encoded: Encoded, rows: Rows, threads: int) -> None:
        self.model = load_model(path)
        self.reading, self.encoded, self.rows, self.threads = reading, encoded, rows, threads

    def __call__(self, plan: Plan) -> tuple[dict[str, float], FloatArray]:
        """({surgery, save, load, evaluate: seconds}, float64[rows] losses)."""
        marks = [time.perf_counter()]
        graph = apply_plan(self.model, plan, run_once)
        marks.append(time.perf_counter())
        with tempfile.TemporaryDirectory() as folder:
            save_model(graph, Path(folder) / "model.onnx")
            marks.append(time.perf_counter())
            session = make_session(Path(folder) / "model.onnx", threads=self.threads)
            marks.append(time.perf_counter())
        losses = self._evaluate(session)
        marks.append(time.perf_counter())
        steps = ("surgery", "save", "load", "evaluate")
        return dict(zip(steps, np.diff(marks).tolist(), strict=True)), losses

    def _evaluate(self, session: Any) -> FloatArray:
        names = [i.name for i in session.get_inputs()]
        parts = []
        for start in range(0, len(self.rows), PLAIN_BATCH):
            chunk = list(range(start, min(start + PLAIN_BATCH, len(self.rows))))
            parts.append(run_session(session, feeds(self.encoded, chunk, names))["logits"])
        outputs = np.concatenate(parts)
        return evaluate(outputs, self.rows.labels, self.reading.task, self.reading.label_map).loss_per_row


class Recorder:
    """A PlanScorer that times every candidate and scores every N-th one by the plain loop as well."""

    def __init__(self, scorer: StageScorer, judged: Any, plain: PlainLoop, every: int) -> None:
        self.scorer, self.judged, self.plain, self.every = scorer, judged, plain, every
        self.asked, self.pairs, self.worst = 0, list[dict[str, float]](), 0.0
        self.gated_seconds = list[float]()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.scorer.rows

    def losses(self, plan: Plan) -> FloatArray:
        """The losses that the search judges, timed."""
        began = time.perf_counter()
        losses: FloatArray = self.judged.losses(plan)
        seconds = time.perf_counter() - began
        if not plan.is_empty:
            self.gated_seconds.append(seconds)
            if self.asked % self.every == 0:
                steps, raw = self.plain(plan)
                self.worst = max(self.worst, float(np.abs(raw - self.scorer.losses(plan)).max()))
                self.pairs.append({"gated": seconds, "plain": sum(steps.values()), **steps})
                pair = self.pairs[-1]
                print(f"candidate {self.asked}: {pair['gated']:.2f} s, plain loop {pair['plain']:.2f} s", flush=True)
            self.asked += 1
        return losses

    def metric(self, plan: Plan) -> float:
        """The task's main metric, in points."""
        return self.scorer.metric(plan)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(EXAMPLE))
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--search-data")
    parser.add_argument("--rows", type=int, default=2000, help="search rows, at most")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the figures here")
    a = parser.parse_args()
    path = model_path(a.model)
    task = get_task(a.task)
    config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    roles = resolve(task, model_dir=path.parent, data=a.data, search_data=a.search_data)
    rows = roles.search.take(np.arange(min(a.rows, len(roles.search))))
    reading = reading_of(path.parent, make_session(path), with_label_names(task, config), rows)
    encoded = reading.encoder.encode(rows)
    model = load_model(path)
    anatomy = recognise(model, run_once)
    sessions = StageSessions(model, threads=a.threads)
    scorer = StageScorer(sessions, anatomy, encoded, rows, reading.task, reading.label_map)
    judged = Recalibrated(scorer, rows.labels, reading.label_map, reading.task.kind)
    recorder = Recorder(scorer, judged, PlainLoop(path, reading, encoded, rows, a.threads), a.every)
    result = walk(robust_order(anatomy, 30), robust_judge(fold_rows(len(rows), 0)), recorder, Plan())
    report(recorder, len(result.trials), len(rows), scorer, a.json)


def report(recorder: Recorder, trials: int, rows: int, scorer: StageScorer, target: str | None) -> None:
    """Print the ratios, and write them as JSON where asked."""
    pairs = recorder.pairs
    ratios = np.array([p["plain"] / p["gated"] for p in pairs])
    total = sum(p["plain"] for p in pairs) / sum(p["gated"] for p in pairs)
    work = (trials + 1) * rows * len(scorer.sessions.stages) / max(1, scorer.stages_run)
    figures = stamped({
        "trials": trials,
        "rows": rows,
        "pairs": len(pairs),
        "ratio_of_totals": round(total, 2),
        "ratio_median": round(float(np.median(ratios)), 2),
        "ratio_quartiles": [round(float(q), 2) for q in np.percentile(ratios, [25, 75])],
        "stages_x_rows_ratio": round(work, 2),
        "gated_seconds_per_candidate": round(float(np.mean(recorder.gated_seconds)), 3),
        "plain_seconds": {k: round(float(np.mean([p[k] for p in pairs])), 3) for k in pairs[0] if k != "gated"},
        "largest_difference_of_a_loss": float(f"{recorder.worst:.2e}"),
    })  # fmt: skip
    print(json.dumps(figures, indent=2))
    write(target, figures)


if __name__ == "__main__":
    main()
