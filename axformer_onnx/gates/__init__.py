"""Gates of a comparison: is a candidate as good as was asked for, with stated chances of being wrong?

Takes answers of both models, latencies by repetition and file sizes; gives a gate for each, passed, failed or undecided, and a
verdict in the forms that CI servers read.
"""

from __future__ import annotations

from axformer_onnx.gates.error_rates import ERROR_RATE, share_of
from axformer_onnx.gates.files import write
from axformer_onnx.gates.junit_form import junit
from axformer_onnx.gates.markdown_form import markdown
from axformer_onnx.gates.quality import divergence_gate, drop_gate
from axformer_onnx.gates.records import Gate, Outcome, Ratio, Verdict
from axformer_onnx.gates.size import size_gate
from axformer_onnx.gates.speed import Measure, Measured, measured_again, same_speed, speed_gates
from axformer_onnx.gates.tracking_forms import benchmark, bmf
from axformer_onnx.gates.words import HEADER, gate_row, headline, rates, sentence

__all__ = [
    "ERROR_RATE",
    "HEADER",
    "Gate",
    "Measure",
    "Measured",
    "Outcome",
    "Ratio",
    "Verdict",
    "benchmark",
    "bmf",
    "divergence_gate",
    "drop_gate",
    "gate_row",
    "headline",
    "junit",
    "markdown",
    "measured_again",
    "rates",
    "same_speed",
    "sentence",
    "share_of",
    "size_gate",
    "speed_gates",
    "write",
]
