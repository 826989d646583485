"""Parts of a tensor, and tensors put together: executed on whatever stands for the numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.operators.axes import apart, axes_named
from axformer_passes.registry import Probes, Stop, TokenRows, Walk, any_along, channels, tokens


@channels("Concat")
def _concat(walk: Walk, node: ir.Node) -> None:
    parts = [walk.labels(v) for v in node.inputs]
    walk.put(node.outputs[0], np.concatenate(parts, node.attributes.get_int("axis")))


@channels("Split")
def _split(walk: Walk, node: ir.Node) -> None:
    labels, axis = walk.labels(node.inputs[0]), node.attributes.get_int("axis", 0)
    ends = np.cumsum([walk.shape(v)[axis] for v in node.outputs])[:-1]
    for value, part in zip(node.outputs, np.split(labels, ends, axis), strict=True):
        walk.put(value, part)


def slices_of(walk: Walk, node: ir.Node, rank: int) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step) of a Slice, as given (not clamped)."""
    starts, ends = walk.integers(node.inputs[1]), walk.integers(node.inputs[2])
    assert starts is not None and ends is not None
    axes = walk.integers(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = walk.integers(node.inputs[4]) if len(node.inputs) > 4 else None
    count = starts.size
    axes = np.arange(count) if axes is None else axes % rank
    steps = np.ones(count, np.int64) if steps is None else steps
    return list(zip(axes.tolist(), starts.reshape(-1).tolist(), ends.reshape(-1).tolist(), steps.tolist(), strict=True))


@channels("Slice")
def _slice(walk: Walk, node: ir.Node) -> None:
    if len(node.inputs) < 3:
        walk.freeze(node, "a Slice with its bounds in attributes (before operator set 10)")
        return
    labels = walk.labels(node.inputs[0])
    index: list[slice] = [slice(None)] * labels.ndim
    for axis, start, end, step in slices_of(walk, node, labels.ndim):
        backwards_to_start = step < 0 and end < -labels.shape[axis]
        index[axis] = slice(start, None if backwards_to_start else end, step)
    walk.put(node.outputs[0], labels[tuple(index)])


@channels("Gather")
def _gather(walk: Walk, node: ir.Node) -> None:
    if not walk.has(node.inputs[0]):
        return
    indices = walk.integers(node.inputs[1])
    assert indices is not None
    walk.put(
        node.outputs[0],
        np.take(walk.labels(node.inputs[0]), indices, axis=node.attributes.get_int("axis", 0)),
    )


@channels("GatherND")
def _gather_nd(walk: Walk, node: ir.Node) -> None:
    if node.attributes.get_int("batch_dims", 0):
        walk.freeze(node, "GatherND with batch_dims")
        return
    indices = walk.integers(node.inputs[1])
    assert indices is not None
    walk.put(node.outputs[0], walk.labels(node.inputs[0])[tuple(np.moveaxis(indices, -1, 0))])


@channels("GatherElements")
def _gather_elements(walk: Walk, node: ir.Node) -> None:
    labels, axis = walk.labels(node.inputs[0]), node.attributes.get_int("axis", 0)
    walk.tie(labels, axis)
    walk.put(node.outputs[0], np.broadcast_to(any_along(labels, axis), walk.shape(node.outputs[0])))


@channels("ScatterElements")
def _scatter_elements(walk: Walk, node: ir.Node) -> None:
    """data, indices, updates: any position of the axis may get any update (hard attention writes its survivors back so)."""
    axis = node.attributes.get_int("axis", 0)
    shape = walk.shape(node.outputs[0])
    met = []
    for value in (node.inputs[0], node.inputs[2]):
        if walk.has(value):
            walk.tie(walk.labels(value), axis)
            met.append(np.broadcast_to(any_along(walk.labels(value), axis), shape))
    walk.put(node.outputs[0], walk.meet(met))


# -- tokens ----------------------------------------------------------------------------------------------------------


@tokens("Concat")
def _concat_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    apart(rows, [node.attributes.get_int("axis") % probes.rank(node.outputs[0])])
    return dict.fromkeys(range(len(node.inputs)), rows)


@tokens("Split")
def _split_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    apart(rows, [node.attributes.get_int("axis", 0) % probes.rank(node.inputs[0])])
    return {0: rows}


@tokens("Slice")
def _slice_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    rank = probes.rank(node.inputs[0])
    given = len(node.inputs) > 3 or "axes" in node.attributes
    axes = axes_named(probes, node, 3) if given else list(range(np.size(probes.whole(node.inputs[1])[0])))
    apart(rows, [a % rank for a in axes])
    return {0: rows}


@tokens("Gather")
def _gather_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    """data[.., g, ..], indices[..]: the tokens are an axis of the data, or of the indices (a table of embeddings)."""
    rank, inner = probes.rank(node.inputs[0]), probes.rank(node.inputs[1])
    axis = node.attributes.get_int("axis", 0) % rank
    inside = [axis <= a < axis + inner for a in (rows.axis, rows.batch) if a is not None]
    if all(inside):
        return {1: rows.through(lambda a: a - axis)}
    if any(inside):
        raise Stop("it looks tokens up by the row of the batch")
    return {0: rows.through(lambda a: a if a < axis else a - inner + 1)}


@tokens("GatherElements", "ScatterElements")
def _elements_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    """Every row is looked up, or written, in itself."""
    out = probes.shape(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(out[0])
    apart(rows, [axis])
    for value in node.inputs:
        shapes = probes.shape(value)
        others = [a for a in range(len(out[0])) if a != axis]
        if any(s[a] != o[a] for s, o in zip(shapes, out, strict=True) for a in others):
            raise Stop("it leaves rows out")
    return dict.fromkeys(range(len(node.inputs)), rows)
