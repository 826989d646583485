"""Rows of text with their labels, from files or the hub, kept apart by role, and as the tokens that a graph asks for.

Takes `--data` and a task; gives `Rows` by role and `Encoded` batches.
"""

from __future__ import annotations

from axformer_onnx.data.encoding import Batch, BatchSizes, Encoded, Encoder, batches, check_input, feeds, joined
from axformer_onnx.data.recombination import calibration_rows
from axformer_onnx.data.roles import DataRoles, resolve, resolve_report
from axformer_onnx.data.rows import Rows
from axformer_onnx.data.tokenised import TokenisedOnce
from axformer_onnx.data.tokenizer_files import length_limit, read_json

__all__ = [
    "Batch",
    "BatchSizes",
    "DataRoles",
    "Encoded",
    "Encoder",
    "Rows",
    "TokenisedOnce",
    "batches",
    "calibration_rows",
    "check_input",
    "feeds",
    "joined",
    "length_limit",
    "read_json",
    "resolve",
    "resolve_report",
]
