"""The report of one run: a record (report.json), and its Markdown and terminal forms."""

from __future__ import annotations

from axformer_onnx.result.report.build import (
    comparison_record,
    compensated_record,
    compensation_record,
    data_records,
    hardware_record,
    interval_record,
    latency_records,
    model_record,
    search_record,
)
from axformer_onnx.result.report.html_form import html, html_table
from axformer_onnx.result.report.layers import layer_records
from axformer_onnx.result.report.markdown_form import markdown
from axformer_onnx.result.report.record import (
    ComparisonRecord,
    CompensationRecord,
    IntervalRecord,
    ModelRecord,
    Report,
    RuntimeFormRecord,
    SearchRecord,
    TriedFormRecord,
)
from axformer_onnx.result.report.terminal import print_report
from axformer_onnx.result.report.words import (
    DIVERGENCE,
    count,
    divergence,
    headline,
    in_cpu_time,
    megabytes,
    milliseconds,
    paired,
    speed,
)

__all__ = [
    "DIVERGENCE",
    "ComparisonRecord",
    "CompensationRecord",
    "IntervalRecord",
    "ModelRecord",
    "Report",
    "RuntimeFormRecord",
    "SearchRecord",
    "TriedFormRecord",
    "comparison_record",
    "compensated_record",
    "compensation_record",
    "count",
    "data_records",
    "divergence",
    "hardware_record",
    "headline",
    "html",
    "html_table",
    "in_cpu_time",
    "interval_record",
    "latency_records",
    "layer_records",
    "markdown",
    "megabytes",
    "milliseconds",
    "model_record",
    "paired",
    "print_report",
    "search_record",
    "speed",
]
