"""The searches that `--search` names: what each is told, which rows it has, what it cannot honour, and how it is run.

A search is one file that registers one object with `options.SEARCHES`; it is listed here. What a search does is in
`axformer_onnx.search`, which is imported when one runs: this room is imported for `--help`.
"""

from __future__ import annotations

from axformer_onnx.searches.compensated import COMPENSATED

from axformer_onnx.searches.robust import ROBUST  # isort: skip  the order of --help
from axformer_onnx.searches.axformer import AXFORMER  # isort: skip
from axformer_onnx.searches.duration import expected_seconds
from axformer_onnx.searches.search import Decided, Search, SearchRun, Watcher, Working, search_named

__all__ = [
    "AXFORMER", "COMPENSATED", "ROBUST", "Decided", "Search", "SearchRun", "Watcher", "Working", "expected_seconds",
    "search_named",
]  # fmt: skip
