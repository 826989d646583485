"""The rule table: how each operator carries channel labels. One rule per operator, none per model or exporter.

A rule reads `walk.labels(input)`, may unite or tie labels, and calls `walk.put(output, labels)`.
Data movement is executed on the label arrays themselves, with the concrete integers of the probe run.
docs/adding-an-operator.md shows how a rule is added.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.labels import Carrier, IntArray, Product, Walk, any_along, rule
from axformer_passes.prepare import Origin, origin

BEARERS = frozenset({"MatMul", "Gemm", "Conv"})
"""Operators in whose weights labels are born; their rules run on unlabelled inputs too."""

UNARY = (
    "Abs", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tan",
    "Tanh", "ThresholdedRelu", "Trilu", "com.microsoft::FastGelu", "com.microsoft::Gelu", "com.microsoft::QuickGelu",
)  # fmt: skip
NARY = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod",
    "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
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


# -- elementwise ----------------------------------------------------------------------------------------------------


@rule(*UNARY)
def _unary(walk: Walk, node: ir.Node) -> None:
    walk.put(node.outputs[0], walk.labels(node.inputs[0]))


@rule(*NARY)
def _nary(walk: Walk, node: ir.Node) -> None:
    labelled = [walk.labels(v) for v in node.inputs if v is not None and walk.has(v)]
    shape = walk.shape(node.outputs[0])
    walk.put(node.outputs[0], walk.meet(np.broadcast_to(x, shape) for x in labelled))


# -- normalisation and reduction ------------------------------------------------------------------------------------


def softmax_axes(model: ir.Model, node: ir.Node, rank: int) -> list[int]:
    """The axes that a Softmax normalises over together: before opset 13 `axis` (1 by default) and all behind it."""
    if model.opset_imports.get("", 13) < 13:
        return list(range(node.attributes.get_int("axis", 1) % rank, rank))
    return [node.attributes.get_int("axis", -1) % rank]


@rule("Softmax", "LogSoftmax")
def _softmax(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    for axis in softmax_axes(walk.model, node, labels.ndim):
        walk.tie(labels, axis)
    walk.softmaxes.append(node)
    walk.put(node.outputs[0], labels)


@rule(*NORMS)
def _norm(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    for axis in range(node.attributes.get_int("axis", -1) % labels.ndim, labels.ndim):
        walk.tie(labels, axis, mark=True)
    walk.put(node.outputs[0], labels)


@rule("LpNormalization", "Hardmax")
def _norm_one_axis(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    walk.tie(labels, node.attributes.get_int("axis", -1), mark=True)
    walk.put(node.outputs[0], labels)


@rule(*REDUCTIONS)
def _reduce(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    axes = axes_of(walk, node)
    if axes is None:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(labels.ndim))
    axes = [a % labels.ndim for a in axes]
    for axis in axes:
        walk.tie(labels, axis, mark=True)
    for axis in axes:
        labels = any_along(labels, axis)
    walk.put(node.outputs[0], labels.reshape(walk.shape(node.outputs[0])))


@rule("ArgMax", "ArgMin", "CumSum", "TopK")
def _along_one_axis(walk: Walk, node: ir.Node) -> None:
    labels = walk.labels(node.inputs[0])
    default = -1 if node.op_type == "TopK" else 0
    axis = node.attributes.get_int("axis", default)
    if node.op_type == "CumSum":
        given = walk.integers(node.inputs[1])
        axis = 0 if given is None else int(given.reshape(-1)[0])
    walk.tie(labels, axis, mark=True)
    for value in node.outputs:
        shape = walk.shape(value) if value.name in walk.values else None
        if shape is not None and len(shape) == labels.ndim:
            kept = labels.take(range(min(shape[axis], labels.shape[axis])), axis)
            walk.put(value, np.broadcast_to(kept, shape))


# -- data movement --------------------------------------------------------------------------------------------------


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
    walk.tie(labels, axis, mark=True)
    walk.put(node.outputs[0], np.broadcast_to(any_along(labels, axis), walk.shape(node.outputs[0])))


@rule("Shape", "Size", "NonZero", "ConstantOfShape", "Range", "OneHot")
def _no_labels(walk: Walk, node: ir.Node) -> None:
    """Shapes and indices carry no channels; their values are evaluated again after a cut."""


# -- contractions ---------------------------------------------------------------------------------------------------


def _weight_axes(weight: Origin, node: ir.Node, slot: int) -> tuple[int, int]:
    """(axis that is summed over, axis that is handed out) of a weight operand, in the initializer's own axes."""
    first, second = weight.axes[-2], weight.axes[-1]
    if slot == 0:
        first, second = second, first
    flip = node.op_type == "Gemm" and node.attributes.get_int("transA" if slot == 0 else "transB", 0) == 1
    return (second, first) if flip else (first, second)


def _positions(labels: IntArray, axis: int, carrier: Carrier) -> IntArray:
    """The carrier's labels, shaped to broadcast along `axis` of `labels`."""
    shape = [1] * labels.ndim
    shape[axis] = carrier.size
    return (carrier.first + np.arange(carrier.size)).reshape(shape)


def _times_weight(walk: Walk, node: ir.Node, x: ir.Value, weight: Origin, slot: int) -> None:
    inner, outer = _weight_axes(weight, node, slot)
    rows = walk.born(weight.value, inner, node, "row")
    columns = walk.born(weight.value, outer, node, "column")
    walk.products.append(Product(node, str(weight.value.name), rows, columns))
    labels = walk.labels(x)
    axis = labels.ndim - 1 if slot == 1 else labels.ndim - 2
    if node.op_type == "Gemm" and node.attributes.get_int("transB" if slot == 0 else "transA", 0) == 1:
        axis = labels.ndim - 1 if axis == labels.ndim - 2 else labels.ndim - 2
    walk.meet([labels, _positions(labels, axis, rows)])
    out = np.full(walk.shape(node.outputs[0]), -1, dtype=np.int64)
    out_axis = out.ndim - 1 if slot == 1 else out.ndim - 2
    walk.put(node.outputs[0], np.broadcast_to(_positions(out, out_axis, columns), out.shape))


@rule("MatMul", "Gemm")
def _matmul(walk: Walk, node: ir.Node) -> None:
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    left, right = origin(a), origin(b)
    if right is not None and left is None and _is_matrix(right):
        _times_weight(walk, node, a, right, 1)
    elif left is not None and right is None and _is_matrix(left):
        _times_weight(walk, node, b, left, 0)
    elif left is None and right is None:
        _times_activation(walk, node, a, b)
    else:
        walk.freeze(node, "a product with a constant that is not a matrix")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if walk.has(bias) and walk.has(node.outputs[0]):
        labels = walk.labels(node.outputs[0])
        walk.meet([labels, np.broadcast_to(walk.labels(bias), labels.shape)])


def _is_matrix(weight: Origin) -> bool:
    shape = weight.value.const_value.shape  # type: ignore[union-attr]
    return len(weight.axes) >= 2 and all(int(shape[a]) == 1 for a in weight.axes[:-2])  # type: ignore[arg-type]


def _times_activation(walk: Walk, node: ir.Node, a: ir.Value, b: ir.Value) -> None:
    """Q K^T and P V: the channels that are summed over are one class; what remains of both sides meets."""
    walk.products.append(Product(node, None, None, None))
    left, right = walk.labels(a), walk.labels(b)
    if node.op_type == "Gemm":
        left = left.T if node.attributes.get_int("transA", 0) else left
        right = right.T if node.attributes.get_int("transB", 0) else right
    if left.ndim < 2 or right.ndim < 2:
        walk.freeze(node, "a product of vectors")
        return
    walk.tie(left, -1)
    walk.tie(right, -2)
    shape = walk.shape(node.outputs[0])
    over_left, over_right = np.broadcast_to(any_along(left, -1), shape), np.broadcast_to(any_along(right, -2), shape)
    walk.put(node.outputs[0], walk.meet([over_right, over_left]))


@rule("Conv")
def _conv(walk: Walk, node: ir.Node) -> None:
    """x[B,C,..] * weight[D,C/groups,..] -> y[B,D,..]. Input channels are left whole unless groups is 1."""
    x, weight = node.inputs[0], origin(node.inputs[1])
    assert x is not None
    if weight is None or weight.axes != tuple(range(len(weight.axes))):
        walk.freeze(node, "a convolution whose weight is computed")
        return
    if node.attributes.get_int("group", 1) != 1:
        walk.freeze(node, "a grouped convolution")
        columns = walk.born(weight.value, 0, node, "column")
        walk.products.append(Product(node, str(weight.value.name), None, columns))
    else:
        rows, columns = walk.born(weight.value, 1, node, "row"), walk.born(weight.value, 0, node, "column")
        walk.products.append(Product(node, str(weight.value.name), rows, columns))
        labels = walk.labels(x)
        walk.meet([labels, _positions(labels, 1, rows)])
    out = np.full(walk.shape(node.outputs[0]), -1, dtype=np.int64)
    walk.put(node.outputs[0], np.broadcast_to(_positions(out, 1, columns), out.shape))


# -- fused operators ------------------------------------------------------------------------------------------------


def by_heads(labels: IntArray, heads: int) -> IntArray:
    """[B,S,H*E] -> [B,H,S,E]; a 4-D array is returned as it is."""
    if labels.ndim == 4:
        return labels
    batch, tokens, width = labels.shape
    return labels.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3)


@rule("Attention")
def _attention(walk: Walk, node: ir.Node) -> None:
    """ai.onnx Attention-23: q[B,H,S,E], k[B,G,T,E], v[B,G,T,V] (or 3-D with heads in attributes) -> y[B,H,S,V]."""
    if len(node.outputs) > 1 and any(v.uses() for v in node.outputs[1:]):
        walk.freeze(node, "an Attention node whose present or score outputs are used")
        return
    q, k, v = (walk.labels(x) for x in node.inputs[:3])
    if q.ndim == 3:
        heads = node.attributes.get_int("q_num_heads")
        groups = node.attributes.get_int("kv_num_heads")
        q, k, v = by_heads(q, heads), by_heads(k, groups), by_heads(v, groups)
    share = q.shape[1] // k.shape[1]
    walk.tie(q, -1)
    walk.tie(k, -1)
    walk.tie(v, -2)
    k, v = np.repeat(k, share, axis=1), np.repeat(v, share, axis=1)
    over_q, over_k = any_along(q, -1), any_along(k, -1)
    walk.classes.unite(any_along(over_q, -2).reshape(-1), any_along(over_k, -2).reshape(-1))
    over_v = np.broadcast_to(any_along(v, -2), (*q.shape[:3], v.shape[-1]))
    out = walk.meet([over_v, np.broadcast_to(over_q, over_v.shape)])
    walk.softmaxes.append(node)
    shape = walk.shape(node.outputs[0])
    walk.put(node.outputs[0], out if len(shape) == 4 else out.transpose(0, 2, 1, 3).reshape(shape))
