"""The compensated search: levels with their weights, a latency table, a choice under a goal, operating points."""

from __future__ import annotations

from axformer_onnx.search.compensated.goals import FEWEST, Found, search_budget
from axformer_onnx.search.compensated.tuning import expected_tokens

__all__ = ["FEWEST", "Found", "expected_tokens", "search_budget"]
