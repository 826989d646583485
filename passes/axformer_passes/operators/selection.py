"""Parts of a tensor, and tensors put together: executed on whatever stands for the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from axformer_passes.errors import RecogniseError
from axformer_passes.graph import anchor, constant, fresh, initializer
from axformer_passes.operators.axes import apart, axes_named
from axformer_passes.registry import (
    Array,
    Cutting,
    FloatArray,
    IntArray,
    Moving,
    Probes,
    Shifting,
    Stop,
    Stuck,
    TokenRows,
    Walk,
    any_along,
    channels,
    cut_edit,
    follow_all,
    moves,
    raises,
    shifts,
    tokens,
)


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


# -- the cut ------------------------------------------------------------------------------------------------------------


@cut_edit("Concat")
def _concat_cut(cut: Cutting, node: ir.Node) -> None:
    labels = cut.labels(node.outputs[0])
    if labels is not None:
        follow_all(cut, node, skip=node.attributes.get_int("axis") % labels.ndim)


@cut_edit("GatherElements")
def _gather_elements_cut(cut: Cutting, node: ir.Node) -> None:
    follow_all(cut, node)


@cut_edit("Split")
def _split_cut(cut: Cutting, node: ir.Node) -> None:
    """Sizes of what is kept."""
    axis, labels = node.attributes.get_int("axis", 0), cut.labels(node.outputs[0])
    if axis < 0:
        axis += labels.ndim if labels is not None else 0
    if not any(axis in cut.kept(v) for v in node.outputs):
        return
    sizes = np.array([cut.shape(v)[axis] for v in node.outputs], dtype=np.int64)
    if cut.opset < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes.tolist())
        return
    node.attributes.pop("num_outputs", None)
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    node.replace_input_with(1, initializer(cut.graph, f"{anchor(node)}_split", sizes))


@cut_edit("Slice")
def _slice_cut(cut: Cutting, node: ir.Node) -> None:
    """Bounds among what is kept; a Slice with steps becomes a Gather of what is kept."""
    source = node.inputs[0]
    kept, labels = cut.kept(source), cut.labels(source)
    if not kept or source is None or labels is None or "starts" in node.attributes:
        return
    given = [None if v is None else cut.before(v).reshape(-1) for v in node.inputs[1:]]
    starts, ends, axes, steps = [*given, None, None][:4]
    assert starts is not None and ends is not None
    axes = np.arange(len(starts)) if axes is None else axes % labels.ndim
    if steps is not None and any(a in kept and step != 1 for a, step in zip(axes.tolist(), steps, strict=True)):
        parts = list(zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist(), strict=True))
        _strided(cut, node, source, parts)
        return
    sizes = np.array([cut.shape(source)[axis] for axis in axes.tolist()])
    for slot, bounds in ((1, starts), (2, ends)):
        value, new = node.inputs[slot], _moved_bounds(labels.shape, kept, axes, bounds)
        if np.array_equal(np.minimum(new, sizes), np.minimum(cut.after(value).reshape(-1), sizes)):
            continue
        if value is None or constant(value) is None:
            raise RecogniseError(f"{anchor(node)}: Slice with computed bounds on an axis that would be cut")
        node.replace_input_with(slot, initializer(cut.graph, f"{value.name}_cut", new))


def _strided(cut: Cutting, node: ir.Node, source: ir.Value, parts: list[tuple[int, int, int, int]]) -> None:
    """Slice with steps -> one Gather of what is kept for each axis that it names."""
    x, labels, kept = source, cut.labels(source), cut.kept(source)
    assert labels is not None
    for axis, start, end, step in parts:
        if axis not in kept:
            raise RecogniseError(f"{anchor(node)}: Slice with steps on a cut axis, and of axis {axis} besides")
        keep, size = kept[axis], labels.shape[axis]
        until = None if step < 0 and end < -size else end
        chosen = np.arange(size)[start:until:step]
        indices = np.searchsorted(keep, chosen[np.isin(chosen, keep)]).astype(np.int64)
        out = ir.Value(name=fresh(cut.graph, f"{anchor(node)}_strided"), type=source.type)
        inputs = [x, initializer(cut.graph, f"{anchor(node)}_index", indices)]
        cut.graph.insert_before(node, ir.node("Gather", inputs, {"axis": axis}, outputs=[out]))
        x = out
    out, name = node.outputs[0], node.outputs[0].name
    out.replace_all_uses_with(x)
    cut.graph.remove(node, safe=True)
    x.name = name  # later edits look its labels up by name


def _moved_bounds(shape: tuple[int, ...], kept: Mapping[int, IntArray], axes: IntArray, bounds: IntArray) -> IntArray:
    """Each bound moved to where it stands among the kept positions."""
    new = bounds.astype(np.int64).copy()
    for i, axis in enumerate(axes.tolist()):
        if axis in kept and -shape[axis] < bounds[i] < shape[axis]:
            new[i] = int(np.searchsorted(kept[axis], int(bounds[i]) % shape[axis]))
    return new


@cut_edit("Gather")
def _gather_cut(cut: Cutting, node: ir.Node) -> None:
    """Indices among what is kept."""
    source, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    labels = cut.labels(source)
    keep = None if labels is None else cut.kept(source).get(axis % labels.ndim)
    if labels is None or keep is None:
        return
    indices = constant(node.inputs[1])
    if indices is None:
        raise RecogniseError(f"{anchor(node)}: Gather with computed indices on an axis that would be cut")
    flat = np.asarray(indices).astype(np.int64) % labels.shape[axis]
    new = np.searchsorted(keep, flat if flat.ndim == 0 else flat[np.isin(flat, keep)])
    node.replace_input_with(1, initializer(cut.graph, f"{anchor(node)}_index", np.asarray(new, dtype=np.int64)))


# -- single numbers -----------------------------------------------------------------------------------------------------


@moves("Concat", joins=True)
def _concat_moves(move: Moving, data: Sequence[Array]) -> Array:
    return np.concatenate(data, move.axis)


@moves("Split")
def _split_moves(move: Moving, data: Sequence[Array]) -> Array:
    ends = np.cumsum([shape[move.axis] for shape in move.shapes])[:-1]
    return np.split(data[0], ends, move.axis)[move.output]


@moves("Slice")
def _slice_moves(move: Moving, data: Sequence[Array]) -> Array:
    """Forwards alone."""
    starts, ends, axes, steps = [*move.given, None, None, None, None][:4]
    if starts is None or ends is None:
        raise ValueError("its bounds are attributes (before operator set 10)")
    axes = np.arange(starts.size) if axes is None else axes % data[0].ndim
    steps = np.ones(starts.size, np.int64) if steps is None else steps
    index = [slice(None)] * data[0].ndim
    for start, end, axis, step in zip(*(a.reshape(-1).tolist() for a in (starts, ends, axes, steps)), strict=True):
        if step < 0:
            raise ValueError("it runs backwards")
        index[axis] = slice(start, end, step)
    return data[0][tuple(index)]


@moves("Gather")
def _gather_moves(move: Moving, data: Sequence[Array]) -> Array:
    indices = move.given[0]
    assert indices is not None
    return np.take(data[0], indices, move.axis)


# -- what has grown by a constant ---------------------------------------------------------------------------------------


@shifts("Slice", "Gather")
def _pick_shifts(edits: Shifting, node: ir.Node, slot: int, delta: FloatArray) -> None:
    if slot != 0 or delta.ndim > 1:
        raise Stuck
    _leave_last_axis(edits, node)
    edits.shift(node.outputs[0], delta)


@raises("Slice", "Gather")
def _raise_pick(edits: Shifting, node: ir.Node, delta: FloatArray) -> None:
    """What it picks of."""
    source = node.inputs[0]
    if source is None or delta.ndim > 1:
        raise Stuck
    _leave_last_axis(edits, node)
    edits.raised(source, delta, node)


def _leave_last_axis(edits: Shifting, node: ir.Node) -> None:
    """A Slice or Gather picks along other axes than the last one, which keeps its size. Raises: Stuck."""
    source = node.inputs[0]
    assert source is not None
    before, after = edits.shape(source), edits.shape(node.outputs[0])
    if node.op_type == "Gather":
        if node.attributes.get_int("axis", 0) % len(before) == len(before) - 1:
            raise Stuck
        return
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None or any(int(a) % len(before) == len(before) - 1 for a in axes.reshape(-1)):
        raise Stuck
    if before[-1] != after[-1]:
        raise Stuck
