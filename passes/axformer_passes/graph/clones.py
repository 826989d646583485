"""A clone of a graph that a pass may edit, where the graph itself is needed again."""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.graph.lookup import INDEX
from axformer_passes.graph.values import NAMES

_COUNTERS = ("_node_counter", "_value_counter")
"""Of onnx-ir's name authority, which numbers the nodes and values that come without a name."""


def clone_of(model: ir.Model) -> ir.Model:
    """A clone; its tensors are shared with `model`, not copied.

    Names of what a pass adds to it are those that it would have added to `model`, so that both are written as the same bytes.
    """
    clone = model.clone()
    meta = clone.graph.meta  # the clone's own store, but with the values of the original
    meta.pop(INDEX, None)
    if NAMES in meta:
        meta[NAMES] = dict(meta[NAMES])
    for counter in _COUNTERS:  # it has no public face; an onnx-ir without it starts at 0
        if hasattr(model.graph, "_name_authority"):
            setattr(clone.graph._name_authority, counter, getattr(model.graph._name_authority, counter))
    return clone


__all__ = ["clone_of"]
