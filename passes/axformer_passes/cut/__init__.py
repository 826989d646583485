"""Carry a plan out on a graph: remove heads, neurons and blocks, make attention hard, write new weights.

Takes an examined model and a plan and edits the prepared graph in place.
"""

from __future__ import annotations

from axformer_passes.cut.hard_attention import Harden, keep_largest, require_hardenable, softmax_node
from axformer_passes.cut.new_weights import (
    PARTS,
    Weights,
    check_entry,
    classifier_key,
    expanded_weights,
    kept_rows,
    reweight,
    weight_key,
    weight_shapes,
    written,
)
from axformer_passes.cut.pruning import Prune
from axformer_passes.cut.shape_values import opened

__all__ = [
    "PARTS",
    "Harden",
    "Prune",
    "Weights",
    "check_entry",
    "classifier_key",
    "expanded_weights",
    "keep_largest",
    "kept_rows",
    "opened",
    "require_hardenable",
    "reweight",
    "softmax_node",
    "weight_key",
    "weight_shapes",
    "written",
]
