"""The compensated search: levels with their weights, a latency table, a choice under a goal, operating points."""

from __future__ import annotations

from axformer_onnx.search.compensated.goals import Found, search_budget

__all__ = ["Found", "search_budget"]
