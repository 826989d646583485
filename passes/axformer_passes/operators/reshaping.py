"""Another shape for the same numbers, in another order, or repeated: executed on whatever stands for the numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from axformer_passes.operators.axes import apart, axes_named
from axformer_passes.registry import (
    Array,
    Cutting,
    Moving,
    Probes,
    Shapes,
    Stop,
    TokenRows,
    Walk,
    aligned,
    channels,
    cut_edit,
    moves,
    tokens,
)


@channels("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], walk.labels(node.inputs[0]).reshape(walk.shape(node.outputs[0])))


@channels("Transpose")
def _transpose(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    perm = node.attributes.get_ints("perm", list(range(labels.ndim))[::-1])
    walk.put(node.outputs[0], labels.transpose(perm))


@channels("Expand")
def _expand(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], np.broadcast_to(walk.labels(node.inputs[0]), walk.shape(node.outputs[0])))


@channels("Tile")
def _tile(walk: Walk, node: ir.Node) -> None:
    repeats = walk.integers(node.inputs[1])
    assert repeats is not None
    walk.put(node.outputs[0], np.tile(walk.labels(node.inputs[0]), repeats))


# -- tokens ----------------------------------------------------------------------------------------------------------


OPEN = -1
"""A target of Reshape that follows from the others."""


@tokens("Transpose")
def _transpose_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    perm = list(node.attributes.get_ints("perm", list(range(probes.rank(node.outputs[0])))[::-1]))
    return {0: rows.through(lambda a: int(perm[a]))}


@tokens("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    source, out = probes.shape(node.inputs[0]), probes.shape(node.outputs[0])
    if node.op_type == "Squeeze":
        axes_named(probes, node)  # else it would take a single token for an axis too many
    found = _behind(source, out, rows)
    if node.op_type == "Reshape":
        retargeted(probes, node, rows, found)
    return {0: found}


def _behind(source: Shapes, out: Shapes, rows: TokenRows) -> TokenRows:
    """The rows before a change of shape, which keeps the order of the values: equal sizes with equally much before them."""
    if not rows.merged:
        axis = _same_axis(source, out, rows.axis)
        if axis is not None:
            return rows.at(axis, None if rows.batch is None else _same_axis(source, out, rows.batch))
        if rows.axis == 0 or (rows.batch is not None and rows.batch != rows.axis - 1):
            raise Stop("its tokens are joined with another axis")
        joined = tuple((*s[: rows.axis - 1], s[rows.axis - 1] * s[rows.axis]) for s in out)
        axis = _same_axis(source, joined, rows.axis - 1)
        return rows.at(axis, axis)
    parts = tuple((*s[: rows.axis], s[rows.axis] // n, n) for s, n in zip(out, rows.count, strict=True))
    axis, batch = _same_axis(source, parts, rows.axis + 1), _same_axis(source, parts, rows.axis)
    if axis is not None and (batch is not None or not rows.by_row):
        return dataclasses.replace(rows, axis=axis, batch=batch if rows.by_row else None)
    axis = _same_axis(source, out, rows.axis)
    return rows.at(axis, axis)


def _same_axis(source: Shapes, out: Shapes, axis: int) -> int | None:
    """The axis of `source` of the same size as `axis` of `out`, with as many values before it, in every probe."""
    for i in range(len(source[0])):
        pairs = zip(source, out, strict=True)
        if all(s[i] == o[axis] and math.prod(s[:i]) == math.prod(o[:axis]) for s, o in pairs):
            return i
    return None


def retargeted(probes: Probes, node: ir.Node, rows: TokenRows, source: TokenRows | None = None) -> dict[int, int]:
    """{entry of the target: its value} where a Reshape or Expand to narrowed `rows` must change. Raises: Stop."""
    out, targets = probes.shape(node.outputs[0]), probes.whole(node.inputs[1])
    target = targets[0].reshape(-1)
    entry = rows.axis - len(out[0]) + target.size
    if node.op_type == "Expand":
        changes = {entry: rows.kept} if entry >= 0 and any(t.reshape(-1)[entry] != 1 for t in targets) else {}
        if changes and rows.merged:
            raise Stop("it makes the batch and the tokens at once")
        return changes
    if source is not None and any(n == 0 and i == source.axis != rows.axis for i, n in enumerate(target.tolist())):
        raise Stop("its target copies the number of tokens")
    if not rows.merged:
        return {entry: rows.kept}
    changes = {entry: OPEN}
    for i, n in enumerate(target.tolist()):
        if i != entry and n == OPEN:
            if len({shape[i] for shape in out}) != 1:
                raise Stop("its target leaves two sizes open")
            changes[i] = out[0][i]
    return changes


@tokens("Expand")
def _expand_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    retargeted(probes, node, rows)
    found = aligned(probes, node.inputs[0], rows, probes.rank(node.outputs[0]))
    return {} if found is None else {0: found}


@tokens("Tile")
def _tile_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    source, out = probes.shape(node.inputs[0]), probes.shape(node.outputs[0])
    apart(rows, [a for a in range(len(out[0])) if any(s[a] != o[a] for s, o in zip(source, out, strict=True))])
    return {0: rows}


# -- the cut ------------------------------------------------------------------------------------------------------------


@cut_edit("Reshape", "Expand")
def _retarget(cut: Cutting, node: ir.Node) -> None:
    """Constant targets are written anew, computed ones scaled, unless they follow already."""
    kept, target, labels = cut.kept(node.outputs[0]), node.inputs[1], cut.labels(node.outputs[0])
    if not kept or target is None or labels is None:
        return
    before, now = cut.before(target), cut.after(target)
    old, new = labels.shape, cut.shape(node.outputs[0])
    offset = len(old) - len(before)
    factors = np.ones((2, len(before)), dtype=np.int64)
    wrong = False
    for axis in kept:
        i = axis - offset
        if i < 0 or before[i] in (0, -1) or (node.op_type == "Expand" and before[i] == 1):
            continue
        wrong = wrong or now[i] != new[axis]
        factors[:, i] = old[axis], new[axis]
    if wrong:
        cut.scale(node, target, factors)


@cut_edit("Tile")
def _repeat(cut: Cutting, node: ir.Node) -> None:
    source, repeats = node.inputs[0], node.inputs[1]
    assert source is not None and repeats is not None
    if not cut.kept(node.outputs[0]) and not cut.follows_already(repeats):
        return
    new, inner = np.array(cut.shape(node.outputs[0])), np.array(cut.shape(source))
    wanted = new // np.maximum(inner, 1)
    if not np.array_equal(wanted, cut.after(repeats)):
        cut.scale(node, repeats, np.stack([cut.before(repeats), wanted]))


# -- single numbers -----------------------------------------------------------------------------------------------------


@moves("Flatten", "Squeeze", "Unsqueeze", orderly=True)
def _reshape_moves(move: Moving, data: Sequence[Array]) -> Array:
    return data[0].reshape(move.shape)


moves("Reshape", orderly=True, told=True)(_reshape_moves)


@moves("Transpose", orderly=True)
def _transpose_moves(move: Moving, data: Sequence[Array]) -> Array:
    return data[0].transpose(move.node.attributes.get_ints("perm", list(range(data[0].ndim))[::-1]))


@moves("Expand", told=True)
def _expand_moves(move: Moving, data: Sequence[Array]) -> Array:
    return np.broadcast_to(data[0], move.shape)


@moves("Tile")
def _tile_moves(move: Moving, data: Sequence[Array]) -> Array:
    repeats = move.given[0]
    assert repeats is not None
    return np.tile(data[0], repeats)
