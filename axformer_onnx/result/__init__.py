"""What comes out: a verified graph in an output folder, measured on the report rows, with its report."""

from __future__ import annotations

from axformer_onnx.result.measured import outcome
from axformer_onnx.result.output_folder import (
    FRONTIER,
    JOURNAL,
    MODEL,
    PAGE,
    REPORT,
    RUNTIME_MODEL,
    claim,
    clear,
    copy_companions,
    staging,
    sweep,
)
from axformer_onnx.result.verification import verify

__all__ = [
    "FRONTIER",
    "JOURNAL",
    "MODEL",
    "PAGE",
    "REPORT",
    "RUNTIME_MODEL",
    "claim",
    "clear",
    "copy_companions",
    "outcome",
    "staging",
    "sweep",
    "verify",
]
