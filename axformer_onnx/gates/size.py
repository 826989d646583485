"""The gate on size: two files have the sizes that they have, and nothing is estimated."""

from __future__ import annotations

from axformer_onnx.gates.records import Gate, judged
from axformer_onnx.records import Interval


def size_gate(baseline_bytes: int, candidate_bytes: int, allowed: float) -> Gate:
    """Is the candidate at most `allowed` times the baseline's size, external data included?"""
    ratio = candidate_bytes / baseline_bytes
    measured = Interval(ratio, ratio, ratio, 1.0)
    why = f"{candidate_bytes:,} bytes against {baseline_bytes:,}"
    return Gate("max-size-ratio", "file size", "", allowed, measured, judged(measured, allowed, at_least=False), why)
