"""Data movement: executed on the label arrays themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.operators.channels import Walk, any_along, rule


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], walk.labels(node.inputs[0]).reshape(walk.shape(node.outputs[0])))


@rule("Transpose")
def _transpose(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    perm = node.attributes.get_ints("perm", list(range(labels.ndim))[::-1])
    walk.put(node.outputs[0], labels.transpose(perm))


@rule("Expand")
def _expand(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], np.broadcast_to(walk.labels(node.inputs[0]), walk.shape(node.outputs[0])))


@rule("Tile")
def _tile(walk: Walk, node: ir.Node) -> None:
    repeats = walk.integers(node.inputs[1])
    assert repeats is not None
    walk.put(node.outputs[0], np.tile(walk.labels(node.inputs[0]), repeats))


@rule("Concat")
def _concat(walk: Walk, node: ir.Node) -> None:
    parts = [walk.labels(v) for v in node.inputs]
    walk.put(node.outputs[0], np.concatenate(parts, node.attributes.get_int("axis")))


@rule("Split")
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


@rule("Slice")
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


@rule("Gather")
def _gather(walk: Walk, node: ir.Node) -> None:
    if not walk.has(node.inputs[0]):
        return
    indices = walk.integers(node.inputs[1])
    assert indices is not None
    walk.put(
        node.outputs[0],
        np.take(walk.labels(node.inputs[0]), indices, axis=node.attributes.get_int("axis", 0)),
    )


@rule("GatherND")
def _gather_nd(walk: Walk, node: ir.Node) -> None:
    if node.attributes.get_int("batch_dims", 0):
        walk.freeze(node, "GatherND with batch_dims")
        return
    indices = walk.integers(node.inputs[1])
    assert indices is not None
    walk.put(node.outputs[0], walk.labels(node.inputs[0])[tuple(np.moveaxis(indices, -1, 0))])


@rule("GatherElements")
def _gather_elements(walk: Walk, node: ir.Node) -> None:
    labels, axis = walk.labels(node.inputs[0]), node.attributes.get_int("axis", 0)
    walk.tie(labels, axis)
    walk.put(node.outputs[0], np.broadcast_to(any_along(labels, axis), walk.shape(node.outputs[0])))


@rule("ScatterElements")
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


@rule("Shape", "Size", "NonZero", "ConstantOfShape", "Range", "OneHot")
def _no_labels(walk: Walk, node: ir.Node) -> None:
    """Shapes and indices carry no channels; their values are evaluated again after a cut."""
