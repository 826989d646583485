"""Normalisations and reductions: what they compute along an axis ties its labels together."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.operators.axes import apart, axes_named
from axformer_passes.registry import (
    Cutting,
    FloatArray,
    Probes,
    Shifting,
    Stuck,
    TokenRows,
    Walk,
    aligned,
    any_along,
    channels,
    cut_edit,
    follow_beside,
    raises,
    row_shifts,
    shifts,
    tokens,
)

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip


def axes_of(walk: Walk, node: ir.Node, slot: int = 1) -> list[int] | None:
    """The `axes` of a node, as an input (newer operator sets) or attribute (older); None if neither is given."""
    if len(node.inputs) > slot and node.inputs[slot] is not None:
        given = walk.integers(node.inputs[slot])
        return None if given is None else [int(i) for i in given.reshape(-1)]
    if "axes" in node.attributes:
        return [int(i) for i in node.attributes.get_ints("axes")]
    return None


def softmax_axes(model: ir.Model, node: ir.Node, rank: int) -> list[int]:
    """The axes that a Softmax normalises over together: before opset 13 `axis` (1 by default) and all behind it."""
    if model.opset_imports.get("", 13) < 13:
        return list(range(node.attributes.get_int("axis", 1) % rank, rank))
    return [node.attributes.get_int("axis", -1) % rank]


@channels("Softmax", "LogSoftmax")
def _softmax(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    for axis in softmax_axes(walk.model, node, labels.ndim):
        walk.tie(labels, axis)
    walk.softmaxes.append(node)
    walk.put(node.outputs[0], labels)


@channels(*NORMS)
def _norm(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    for axis in range(node.attributes.get_int("axis", -1) % labels.ndim, labels.ndim):
        walk.tie(labels, axis)
    walk.put(node.outputs[0], labels)


@channels("GroupNormalization", "InstanceNormalization")
def _norm_in_groups(walk: Walk, node: ir.Node) -> None:
    """x[N, C, ..]: the channels of a group (InstanceNormalization: each alone), with all that is behind them."""
    if node.op_type == "GroupNormalization" and walk.model.opset_imports.get("", 21) < 21:
        walk.freeze(node, "GroupNormalization before operator set 21, whose scale is a number a group, not a channel")
        return
    labels = walk.labels(node.inputs[0])
    groups = node.attributes.get_int("num_groups", labels.shape[1])
    walk.tie(labels.reshape(labels.shape[0], groups, -1), -1)
    walk.put(node.outputs[0], labels)


@channels("LpNormalization", "Hardmax")
def _norm_one_axis(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    walk.tie(labels, node.attributes.get_int("axis", -1))
    walk.put(node.outputs[0], labels)


@channels(*REDUCTIONS)
def _reduce(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    axes = axes_of(walk, node)
    if axes is None:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(labels.ndim))
    axes = [a % labels.ndim for a in axes]
    for axis in axes:
        walk.tie(labels, axis)
    for axis in axes:
        labels = any_along(labels, axis)
    walk.put(node.outputs[0], labels.reshape(walk.shape(node.outputs[0])))


@channels("ArgMax", "ArgMin", "CumSum", "TopK")
def _along_one_axis(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    default = -1 if node.op_type == "TopK" else 0
    axis = node.attributes.get_int("axis", default)
    if node.op_type == "CumSum":
        given = walk.integers(node.inputs[1])
        axis = 0 if given is None else int(given.reshape(-1)[0])
    walk.tie(labels, axis)
    for value in node.outputs:
        shape = walk.shape(value) if value.name in walk.values else None
        if shape is not None and len(shape) == labels.ndim:
            kept = labels.take(range(min(shape[axis], labels.shape[axis])), axis)
            walk.put(value, np.broadcast_to(kept, shape))


# -- tokens ----------------------------------------------------------------------------------------------------------


@tokens("Softmax", "LogSoftmax")
def _softmax_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    apart(rows, softmax_axes(probes.model, node, probes.rank(node.outputs[0])))
    return {0: rows}


@tokens(*NORMS)
def _norm_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    rank = probes.rank(node.inputs[0])
    apart(rows, list(range(node.attributes.get_int("axis", -1) % rank, rank)))
    return {0: rows}


@tokens("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")
def _skip_norm_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    """x and what is added to it first; gain, shift and bias are of channels."""
    rank = probes.rank(node.inputs[0])
    apart(rows, [rank - 1])
    skip = aligned(probes, node.inputs[1], rows, rank)
    return {0: rows} if skip is None else {0: rows, 1: skip}


@tokens("ArgMax", "ArgMin", "Hardmax", "LpNormalization", "TopK")
def _along_one_axis_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    rank = probes.rank(node.inputs[0])
    axis = node.attributes.get_int("axis", 0 if node.op_type.startswith("Arg") else -1) % rank
    if node.op_type.startswith("Arg") and not node.attributes.get_int("keepdims", 1):
        return {0: rows.through(lambda a: a if a < axis else a + 1)}
    apart(rows, [axis])
    return {0: rows}


@tokens(*REDUCTIONS)
def _reduce_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    rank = probes.rank(node.inputs[0])
    axes = sorted(a % rank for a in axes_named(probes, node))
    if not node.attributes.get_int("keepdims", 1):
        left = [a for a in range(rank) if a not in axes]
        return {0: rows.through(lambda a: left[a])}
    apart(rows, axes)
    return {0: rows}


@tokens("CumSum")
def _cumulative_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    apart(rows, [a % probes.rank(node.inputs[0]) for a in axes_named(probes, node)])
    return {0: rows}


# -- the cut ------------------------------------------------------------------------------------------------------------


@cut_edit("GroupNormalization", "InstanceNormalization")
def _regroup(cut: Cutting, node: ir.Node) -> None:
    """Gain and shift follow. The channels of a group have one label, so whole groups go: as many are left as there are
    channels for."""
    follow_beside(cut, node, ((1, 1, -1), (2, 1, -1)))
    labels, keep = cut.labels(node.outputs[0]), cut.kept(node.outputs[0]).get(1)
    if labels is not None and keep is not None and "num_groups" in node.attributes:
        size = labels.shape[1] // node.attributes.get_int("num_groups")
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", len(keep) // size)


# -- what has grown by a constant ---------------------------------------------------------------------------------------


@shifts("Softmax")
def _softmax_shifts(edits: Shifting, node: ir.Node, slot: int, delta: FloatArray) -> None:
    """What is the same along the axis is forgotten."""
    source = node.inputs[0]
    assert source is not None
    same = not delta.ndim or delta.shape[-1] == 1
    if not same or not over_last_axis(node, len(edits.shape(source)), edits.opset):
        raise Stuck


@shifts("LayerNormalization")
def _norm_shifts(edits: Shifting, node: ir.Node, slot: int, delta: FloatArray) -> None:
    """What is the same for all channels is forgotten."""
    if slot != 0 or delta.size != 1:
        raise Stuck


@row_shifts("Softmax")
def _softmax_row_shifts(edits: Shifting, node: ir.Node, slot: int) -> None:
    source = node.inputs[0]
    assert source is not None
    if not over_last_axis(node, len(edits.shape(source)), edits.opset):
        raise Stuck


@raises("LayerNormalization")
def _raise_norm(edits: Shifting, node: ir.Node, delta: FloatArray) -> None:
    if len(node.inputs) < 3 or len(node.outputs) != 1 or delta.ndim > 1:
        raise Stuck
    edits.add(node.inputs[2], delta)


def adds_up(value: ir.Value, opset: int) -> bool:
    """Do its rows add up to 1?"""
    node = value.producer()
    return node is not None and not node.domain and node.op_type == "Softmax" and over_last_axis(node, None, opset)


def over_last_axis(node: ir.Node, rank: int | None, opset: int) -> bool:
    """Is it a softmax over the last axis alone? (Before operator set 13 over all axes from `axis` on, 1 by default.)"""
    axis = node.attributes.get_int("axis", -1 if opset >= 13 else 1)
    return axis == -1 or (rank is not None and axis == rank - 1)
