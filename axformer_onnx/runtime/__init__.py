"""ONNX Runtime: sessions, providers, hardware, latency.

The one place that makes sessions. Takes files or graphs and feeds; gives arrays and milliseconds, and errors in one line.
"""

from __future__ import annotations

from axformer_onnx.runtime.hardware import (
    RUNTIME,
    describe_hardware,
    describe_machine,
    has_integer_products,
    is_x86,
    versions,
)
from axformer_onnx.runtime.latency import LatencyRow, compare_latency, make_feeds
from axformer_onnx.runtime.profiled import placement
from axformer_onnx.runtime.providers import is_cpu_alone, provider_name
from axformer_onnx.runtime.sessions import fallback_note, make_session, run_once, run_session
from axformer_onnx.runtime.spill import Shelf
from axformer_onnx.runtime.user_cache import cache_folder, keep_json

__all__ = [
    "RUNTIME",
    "LatencyRow",
    "Shelf",
    "cache_folder",
    "compare_latency",
    "describe_hardware",
    "describe_machine",
    "fallback_note",
    "has_integer_products",
    "is_cpu_alone",
    "is_x86",
    "keep_json",
    "make_feeds",
    "make_session",
    "placement",
    "provider_name",
    "run_once",
    "run_session",
    "versions",
]
