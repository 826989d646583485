"""axformer-onnx: smaller, faster ONNX transformers that score at least as well.

    import axformer_onnx as ax

    result = ax.optimize("model.onnx", task="sst2", data="rows.jsonl", speedup=2.0)
    result.path, result.score, result.frontier

Each subcommand of the command line is a function here, with the same options. What it needs is imported when it is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axformer_onnx.api import apply, compare, deploy, export, inspect, optimize, preview, report, score, serve
    from axformer_onnx.commands import (
        CompareResult,
        Inspection,
        OperatingPoint,
        OptimizeResult,
        Preview,
        ScorePair,
        ScoreResult,
    )
    from axformer_onnx.deploying import Deployment
    from axformer_onnx.errors import (
        AxformerError,
        DataError,
        ModelError,
        PlanError,
        RecogniseError,
        RuntimeFailure,
        UsageError,
        VerifyError,
    )
    from axformer_onnx.exporting import ExportResult
    from axformer_onnx.installation import environment
    from axformer_onnx.tasks import Task
    from axformer_onnx.version import __version__
    from axformer_passes.plan import Plan

__all__ = [
    "AxformerError",
    "CompareResult",
    "DataError",
    "Deployment",
    "ExportResult",
    "Inspection",
    "ModelError",
    "OperatingPoint",
    "OptimizeResult",
    "Plan",
    "PlanError",
    "Preview",
    "RecogniseError",
    "RuntimeFailure",
    "ScorePair",
    "ScoreResult",
    "Task",
    "UsageError",
    "VerifyError",
    "__version__",
    "apply",
    "compare",
    "deploy",
    "environment",
    "export",
    "inspect",
    "optimize",
    "preview",
    "report",
    "score",
    "serve",
]

_HOMES = {
    "axformer_onnx.api": (
        "apply",
        "compare",
        "deploy",
        "export",
        "inspect",
        "optimize",
        "preview",
        "report",
        "score",
        "serve",
    ),
    "axformer_onnx.commands": (
        "CompareResult",
        "Inspection",
        "OperatingPoint",
        "OptimizeResult",
        "Preview",
        "ScorePair",
        "ScoreResult",
    ),
    "axformer_onnx.deploying": ("Deployment",),
    "axformer_onnx.exporting": ("ExportResult",),
    "axformer_onnx.installation": ("environment",),
    "axformer_onnx.tasks": ("Task",),
    "axformer_onnx.version": ("__version__",),
    "axformer_passes.plan": ("Plan",),
}
"""Where a name is, if not with the errors."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'axformer_onnx' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "axformer_onnx.errors")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
