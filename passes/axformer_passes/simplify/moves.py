"""Reshapes and Transposes in a row that amount to one Transpose.

[B,S,h,d] -> Transpose -> [B,h,S,d] -> Reshape -> [B h,S,d] -> Transpose -> [B h,d,S] -> Reshape -> [B,h,d,S]
[B,S,h,d] -> Transpose -> [B,h,d,S]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import fresh, origin
from axformer_passes.probe import Array, Facts

_MOVES = frozenset({"Reshape", "Transpose"})
_MOST_AXES = 5


def fold_moves(model: ir.Model, facts: Facts) -> int:
    """Edit `model` in place; returns how many nodes went. What every probe confirms holds for all sizes (`facts.py`)."""
    graph, gone = model.graph, 0
    for node in list(graph):
        chain = _chain(node)
        for first in range(len(chain) - 1):  # the longest first
            perm = _perm(chain[first:], facts)
            if perm is None:
                continue
            out = chain[-1].outputs[0]
            made = ir.Value(name=fresh(graph, f"{out.name}_moved"), shape=out.shape, type=out.type)
            source = chain[first].inputs[0]
            graph.insert_after(chain[-1], ir.node("Transpose", [source], {"perm": list(perm)}, outputs=[made]))
            out.replace_all_uses_with(made)
            facts.like(made, out)
            gone += len(chain) - first - 1
            break
    return gone


def _chain(node: ir.Node) -> list[ir.Node]:
    """The moves that end in `node`, none of whose results but the last is read by anybody else; its end is read by no move."""
    if not _moves(node) or node.outputs[0].is_graph_output() or any(_moves(u) for u, _ in node.outputs[0].uses()):
        return []
    found = [node]
    while True:
        value = found[0].inputs[0]
        before = value.producer() if value is not None else None
        if value is None or before is None or not _moves(before) or value.is_graph_output():
            return found
        if any(user.op_type != "Shape" and user is not found[0] for user, _ in value.uses()):
            return found
        found.insert(0, before)


def _moves(node: ir.Node) -> bool:
    return node.op_type in _MOVES and not node.domain and origin(node.outputs[0]) is None


def _perm(chain: Sequence[ir.Node], facts: Facts) -> tuple[int, ...] | None:
    """The axes of the Transpose that they amount to, in every probe."""
    source, out = chain[0].inputs[0], chain[-1].outputs[0]
    assert source is not None
    perms: set[tuple[int, ...]] | None = None
    for number, shape in enumerate(facts.all_shapes(source)):
        target = facts.all_shapes(out)[number]
        if shape is None or target is None or len(shape) != len(target) or len(shape) > _MOST_AXES:
            return None
        array = np.arange(math.prod(shape)).reshape(shape)
        moved = _moved(array, chain, facts, number)
        if moved is None:
            return None
        tried = perms if perms is not None else set(itertools.permutations(range(len(shape))))
        perms = {p for p in tried if np.array_equal(array.transpose(p), moved)}
    return min(perms) if perms else None


def _moved(array: Array, chain: Sequence[ir.Node], facts: Facts, number: int) -> Array | None:
    for node in chain:
        if node.op_type == "Transpose":
            array = array.transpose(node.attributes.get_ints("perm", list(range(array.ndim))[::-1]))
            continue
        target = facts.all_shapes(node.outputs[0])[number]
        if target is None or math.prod(target) != array.size:
            return None
        array = array.reshape(target)
    return array


__all__ = ["fold_moves"]
