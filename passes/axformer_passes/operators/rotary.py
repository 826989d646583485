"""Rotary positions: each head's channels are turned pairwise, so they belong together; heads stay apart.

RotaryEmbedding of ONNX (operator set 23) and of com.microsoft: x[B,H,S,E], or x[B,S,H*E] with `num_heads`.
"""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.graph import operator
from axformer_passes.registry import Cutting, Probes, Stop, TokenRows, Walk, channels, cut_edit, tokens


@channels("RotaryEmbedding", "com.microsoft::RotaryEmbedding")
def _rotary(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    heads = node.attributes.get_int("num_heads", 0) or labels.shape[-1] // _head_size(walk, node)
    by_head = labels if labels.ndim == 4 else labels.reshape(*labels.shape[:2], heads, -1)
    walk.tie(by_head, -1)
    walk.put(node.outputs[0], labels)


def _head_size(walk: Walk, node: ir.Node) -> int:
    """Without `num_heads` heads are rotated whole: twice the width of the tables."""
    table = node.inputs[2 if operator(node).startswith("com") else 1]
    assert table is not None
    return 2 * walk.shape(table)[-1]


# -- tokens ----------------------------------------------------------------------------------------------------------


@tokens("RotaryEmbedding", "com.microsoft::RotaryEmbedding")
def _rotary_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    """x[B,S,H*E] or x[B,H,S,E]; positions[B,S] that look tables up, or tables[B,S,E/2] themselves."""
    if rows.axis != probes.rank(node.inputs[0]) - 2 or rows.batch not in (None, 0):
        raise Stop("it mixes tokens")
    positions = 1 if node.domain else 3
    slots = [positions] if len(node.inputs) > positions and node.inputs[positions] is not None else [1, 2]
    for slot in slots:
        if any(len(s) < 2 or s[1] != n for s, n in zip(probes.shape(node.inputs[slot]), rows.count, strict=True)):
            raise Stop("its positions are not given token by token")
    return {0: rows, **dict.fromkeys(slots, rows.at(1, rows.batch))}


# -- the cut ------------------------------------------------------------------------------------------------------------


@cut_edit("RotaryEmbedding", "com.microsoft::RotaryEmbedding")
def _rotary_cut(cut: Cutting, node: ir.Node) -> None:
    """`num_heads` becomes the number of heads that stay; with it absent the shapes say it all."""
    labels, heads = cut.labels(node.outputs[0]), node.attributes.get_int("num_heads", 0)
    if labels is not None and heads:
        axis = 1 if labels.ndim == 4 else 2
        left = heads * cut.shape(node.outputs[0])[axis] // labels.shape[axis]
        node.attributes["num_heads"] = ir.AttrInt64("num_heads", left)
