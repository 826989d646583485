"""Look at a graph, and keep it tidy: values by name, constants and where they come from, who reads what, new names, dead nodes.

Everything here takes an `onnx_ir` graph or value and knows nothing of transformers.
"""

from __future__ import annotations

from axformer_passes.graph.cleanup import Cleanup
from axformer_passes.graph.clones import clone_of
from axformer_passes.graph.copies import merge_copies
from axformer_passes.graph.lookup import PART_OF, anchor, find, operator, whole_of
from axformer_passes.graph.values import (
    CHAIN_OPS,
    SHARED_FROM,
    Array,
    Origin,
    constant,
    fresh,
    initializer,
    made_of_shapes,
    origin,
    read_by,
    source_name,
)

__all__ = [
    "CHAIN_OPS",
    "PART_OF",
    "SHARED_FROM",
    "Array",
    "Cleanup",
    "Origin",
    "anchor",
    "clone_of",
    "constant",
    "find",
    "fresh",
    "initializer",
    "made_of_shapes",
    "merge_copies",
    "operator",
    "origin",
    "read_by",
    "source_name",
    "whole_of",
]
