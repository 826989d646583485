"""Computed tensors whose first axis is batch x heads: which positions stay depends on the batch, so they are kept at run time.

x[B*H,..] -> Reshape [B,H,..] -> Gather kept heads -> Reshape [B*H',..]
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import fresh, initializer
from axformer_passes.operators import IntArray
from axformer_passes.probe import BATCH


def heads_of(labels: IntArray, axis: int) -> int | None:
    """Heads on an axis that is batch x heads, told by labels that repeat once for each row of the probe; else None."""
    along = labels.max(axis=tuple(i for i in range(labels.ndim) if i != axis))
    heads, rest = divmod(len(along), BATCH)
    if axis != 0 or rest or heads < 2 or (along < 0).any():
        return None
    rows = along.reshape(BATCH, heads)
    return heads if (rows == rows[0]).all() else None


def kept_heads(graph: ir.Graph, place: ir.Node, x: ir.Value, keep: IntArray, heads: int) -> ir.Value:
    """x[B*H,..] without the heads that `keep` (positions on the probe's first axis) lacks, computed before `place`."""
    base = f"{x.name}_kept"

    def build(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        out = ir.Value(name=fresh(graph, base))
        graph.insert_before(place, ir.node(kind, list(inputs), attributes, outputs=[out]))
        return out

    def whole(*values: int) -> ir.Value:
        return initializer(graph, f"{base}_of", np.array(values, dtype=np.int64))

    rest = build("Slice", build("Shape", x), whole(1), whole(2**31 - 1))
    split = build("Reshape", x, build("Concat", whole(-1, heads), rest, axis=0))
    some = build("Gather", split, whole(*(int(i) for i in keep if i < heads)), axis=1)
    out = build("Reshape", some, build("Concat", whole(-1), rest, axis=0))
    out.type = x.type
    return out
