"""The searches that remove element by element and change no weight: the paper's, and the robust one."""

from __future__ import annotations

from axformer_onnx.search.greedy.axformer import search_axformer
from axformer_onnx.search.greedy.robust import search_robust
from axformer_onnx.search.greedy.walk import Progress, SearchResult

__all__ = ["Progress", "SearchResult", "search_axformer", "search_robust"]
