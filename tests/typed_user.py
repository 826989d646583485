"""A user's script that a type checker reads: every public name is used, and what it hands out has the type that it promises.

It is not run. `make lint` checks it against this folder, `make release-check` against the installed wheel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import assert_type

import axformer_onnx as ax


def versions() -> str:
    """What is installed."""
    found = assert_type(ax.environment(), dict[str, Any])
    return f"{ax.__version__}: {found['machine']}, {len(ax.__all__)} names"


def exported(checkpoint: Path) -> Path:
    """A checkpoint as a graph."""
    result = assert_type(ax.export(checkpoint, "model", task="mnli", exporter="auto", opset=17), ax.ExportResult)
    worst = assert_type(result.worst_difference, float | None)
    return result.path if worst is None or worst < 1e-3 else Path()


def looked_at(model: str) -> int:
    """Its anatomy, and what a run would do."""
    seen = assert_type(ax.inspect(model, length=64), ax.Inspection)
    heads = sum(layer.attention.heads for layer in seen.anatomy.layers if layer.attention)
    would = assert_type(ax.preview(model, task="mnli", speedup=2), ax.Preview)
    return heads if would.problem is None and would.seconds else 0


def optimized(model: Path, task: ax.Task) -> list[ax.OperatingPoint]:
    """The smaller graph, its score, its frontier."""
    result = ax.optimize(
        model, task=task, columns=["premise", "hypothesis"], max_drop=0.5, effort="low", batch=(1, 8), length=128
    )
    assert_type(result, ax.OptimizeResult)
    pair = assert_type(result.score, ax.ScorePair)
    assert_type(pair.difference.low, float)
    assert_type(result.plan, ax.Plan)
    assert_type(result.runtime_path, Path | None)
    return [point for point in result.frontier if point.reliable and point.speedup.value > 2]


def replayed(point: ax.OperatingPoint, model: Path) -> float:
    """A point of the frontier as a graph, scored beside the source."""
    plan = ax.Plan.loads((point.plan / "plan.json").read_text()).without_heads(0, [1])
    graph = assert_type(ax.apply(plan, model, "faster", overwrite=True), Path)
    result = assert_type(ax.score(model, graph, task="mnli", data="rows.jsonl"), ax.ScoreResult)
    return 0.0 if result.comparison is None else result.comparison.difference.value


def judged(model: Path, result: ax.OptimizeResult) -> str:
    """Gates, the page, a deployment, a server."""
    found = assert_type(ax.compare(model, result.path, task="mnli", max_drop=0.5), ax.CompareResult)
    page = assert_type(ax.report(result.output), Path)
    made = assert_type(ax.deploy(result.output, "for-tei", for_="tei", overwrite=True), ax.Deployment)
    if found.ok:
        ax.serve(made.graph, port=8001)
    return f"{found.outcome}: {page}"


def mended(model: Path) -> str:
    """Every error, and its exit code."""
    try:
        ax.optimize(model)
    except (ax.DataError, ax.ModelError, ax.PlanError, ax.RecogniseError, ax.UsageError) as error:
        return f"mend the input: {error}"
    except (ax.RuntimeFailure, ax.VerifyError) as error:
        return f"{assert_type(error.exit_code, int)}: {error}"
    except ax.AxformerError as error:
        return str(error)
    return ""
