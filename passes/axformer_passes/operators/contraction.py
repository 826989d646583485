"""Contractions: labels are born in their weights; products of activations unite along what they sum over."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import Origin, constant, origin
from axformer_passes.operators.normalisation import adds_up
from axformer_passes.registry import (
    Carrier,
    Cutting,
    Edit,
    FloatArray,
    IntArray,
    Probes,
    Product,
    Scaling,
    Shifting,
    Stop,
    Stuck,
    TokenRows,
    Walk,
    aligned,
    any_along,
    channels,
    cost,
    cut_edit,
    follow_beside,
    scales,
    shifts,
    tokens,
)

OPERANDS = {"QLinearMatMul": (0, 3), "QLinearConv": (0, 3)}
"""Slots of the two tensors that are multiplied, where they are not 0 and 1."""


def operands(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The two tensors that a contraction multiplies."""
    a, b = (node.inputs[slot] for slot in OPERANDS.get(node.op_type, (0, 1)))
    assert a is not None and b is not None
    return a, b


def data_side(node: ir.Node) -> int:
    """Which of the two operands of a contraction by a weight is the data: 0 in `x @ weight`, 1 in `weight @ x`."""
    return 0 if origin(operands(node)[1]) is not None else 1


def summed_axis(node: ir.Node, side: int, rank: int) -> int:
    """The axis of operand `side` (of this rank) that a contraction sums over."""
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return 1
    flip = node.op_type == "Gemm" and node.attributes.get_int(("transA", "transB")[side], 0) == 1
    return rank - 1 if (side == 0) != flip else rank - 2


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
    return carrier.labels.reshape(shape)


def _times_weight(walk: Walk, node: ir.Node, x: ir.Value, weight: Origin, slot: int) -> None:
    inner, outer = _weight_axes(weight, node, slot)
    if int(weight.value.const_value.shape[inner]) == 1 and not walk.has(x):  # type: ignore[union-attr,arg-type]
        return  # an outer product, such as positions x frequencies: nothing is summed, so the constant is no projection
    rows = walk.born(weight.value, inner, node, "row")
    columns = walk.born(weight.value, outer, node, "column")
    walk.products.append(Product(node, str(weight.value.name), rows, columns))
    labels = walk.labels(x)
    axis = summed_axis(node, 1 - slot, labels.ndim)
    walk.meet([labels, _positions(labels, axis, rows)])
    out = np.full(walk.shape(node.outputs[0]), -1, dtype=np.int64)
    out_axis = out.ndim - 1 if slot == 1 else out.ndim - 2
    walk.put(node.outputs[0], np.broadcast_to(_positions(out, out_axis, columns), out.shape))


@channels("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", bears=True)
def _matmul(walk: Walk, node: ir.Node) -> None:
    a, b = operands(node)
    left, right = origin(a), origin(b)
    if right is not None and left is None and _is_matrix(right):
        _times_weight(walk, node, a, right, 1)
    elif left is not None and right is None and _is_matrix(left):
        _times_weight(walk, node, b, left, 0)
    elif walk.has(a) or walk.has(b) or (left is None and right is None):  # a constant of several matrices has no labels
        _times_activation(walk, node, a, b)
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
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


@channels("Conv", "ConvInteger", "QLinearConv", bears=True)
def _conv(walk: Walk, node: ir.Node) -> None:
    """x[B,C,..] * weight[D,C/groups,..] -> y[B,D,..]. Input channels are left whole unless groups is 1."""
    x, kernel = operands(node)
    weight = origin(kernel)
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


# -- tokens ----------------------------------------------------------------------------------------------------------


_SCALARS = {"MatMulInteger": (2,), "QLinearMatMul": (1, 2, 6, 7)}
"""Scales and zero points that may be of rows: here they must be of the tensor."""


@tokens("MatMul", "MatMulInteger", "QLinearMatMul")
def _matmul_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    rank = probes.rank(node.outputs[0])
    parts = [node.inputs[slot] for slot in _SCALARS.get(node.op_type, ()) if slot < len(node.inputs)]
    if any(math.prod(probes.shape(part)[0]) != 1 for part in parts if part is not None):
        raise Stop("it is quantised by rows")
    found: dict[int, TokenRows] = {}
    for side, slot in enumerate(OPERANDS.get(node.op_type, (0, 1))):
        absent = (
            rank - 1 - side
        )  # the axis of the output that this operand has not: columns on the left, rows on the right
        if probes.rank(node.inputs[slot]) < 2:
            raise Stop("a product with a vector")
        one = None if rows.axis == absent else aligned(probes, node.inputs[slot], rows, rank)
        if one is not None and rows.batch == absent:
            raise Stop("the batch is multiplied with the tokens")
        if one is not None:
            found[slot] = one
    return found


@tokens("Gemm")
def _gemm_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    side = rows.axis
    axis = (side + node.attributes.get_int(("transA", "transB")[side], 0)) % 2
    if rows.batch is not None and not rows.merged:
        raise Stop("the batch is multiplied with the tokens")
    found = {side: rows.at(axis, axis if rows.merged else None)}
    bias = aligned(probes, node.inputs[2], rows, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return found if bias is None else {**found, 2: bias}


@tokens("Conv")
def _conv_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    """x[B,C,S]: a kernel of one position, without padding."""
    kernel = probes.shape(node.inputs[1])[0][2:]
    plain = all(n == 1 for n in (*kernel, *node.attributes.get_ints("strides", [1])))
    padded = any(node.attributes.get_ints("pads", [0])) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    if not plain or padded or rows.axis < 2 or rows.batch == 1:
        raise Stop("it mixes tokens")
    return {0: rows}


# -- the cut ------------------------------------------------------------------------------------------------------------


_BESIDE = {
    "Gemm": ((2, -1, -1), (2, -2, -2)),
    "Conv": ((2, 1, -1),),
    "MatMulInteger": ((2, -2, -1), (3, -1, -1)),
    "ConvInteger": ((3, 1, -1),),
    "QLinearMatMul": ((1, -2, -1), (2, -2, -1), (4, -1, -1), (5, -1, -1)),
    "QLinearConv": ((4, 1, -1), (5, 1, -1), (8, 1, -1)),
}
"""Bias, scales and zero points: (slot, axis of the output that it goes with, its own axis from the right)."""


@cut_edit(*_BESIDE)
def _contraction_cut(cut: Cutting, node: ir.Node) -> None:
    follow_beside(cut, node, _BESIDE[node.op_type])


@cut_edit("MatMul")
def _batched(cut: Cutting, node: ir.Node) -> None:
    """An operand without labels (positions, projected in advance) follows on the axes that are not multiplied."""
    labels = cut.labels(node.outputs[0])
    for axis, keep in cut.kept(node.outputs[0]).items():
        for slot, value in enumerate(node.inputs):
            if value is not None and labels is not None and axis < labels.ndim - 2:
                cut.follow(node, slot, axis - labels.ndim, keep)


# -- cost ---------------------------------------------------------------------------------------------------------------


@cost("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")
def _matmul_cost(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    turned = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1
    return math.prod(output) * inputs[0][0 if turned else -1]


@cost("Conv", "ConvInteger", "QLinearConv")
def _conv_cost(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return math.prod(output) * math.prod(inputs[OPERANDS.get(node.op_type, (0, 1))[1]][1:])


# -- what has grown by a constant ---------------------------------------------------------------------------------------


@shifts("Gemm")
def _gemm_shifts(edits: Shifting, node: ir.Node, slot: int, delta: FloatArray) -> None:
    weight = constant(node.inputs[1])
    if slot != 0 or weight is None or node.attributes.get_int("transA", 0) != 0 or delta.ndim > 1:
        raise Stuck
    weight = np.asarray(weight.T if node.attributes.get_int("transB", 0) else weight, np.float64)
    found = np.broadcast_to(delta, (len(weight),)) @ weight * node.attributes.get_float("alpha", 1.0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        edits.shift(node.outputs[0], found)
        return
    beta = node.attributes.get_float("beta", 1.0)
    if not beta:
        raise Stuck
    edits.add(bias, -found / beta)


@shifts("MatMul")
def _matmul_shifts(edits: Shifting, node: ir.Node, slot: int, delta: FloatArray) -> None:
    """x @ weight; softmax(..) @ (v + b), whose rows of probabilities add up to 1; q @ (k + b)^T, the same for all keys."""
    left, right = node.inputs
    assert left is not None and right is not None
    weight, out = float_matrix(right), node.outputs[0]
    if slot == 0:
        if weight is None or delta.ndim > 1:
            raise Stuck
        edits.shift(out, np.broadcast_to(delta, (len(weight),)) @ weight)
        return
    rows, columns = (delta.shape[a] if delta.ndim >= -a else 1 for a in (-2, -1))
    if constant(left) is not None or delta.ndim < 1:
        raise Stuck
    if rows == 1 and adds_up(left, edits.opset):
        edits.shift(out, delta)
    elif columns == 1:
        edits.shift_rows(out)
    else:
        raise Stuck


def float_matrix(value: ir.Value | None) -> FloatArray | None:
    """float64[R, D]: a float32 weight, also behind Transposes; None where `value` is something else."""
    if value is None:
        return None
    found, transposed = value, False
    while (node := found.producer()) is not None:
        if node.op_type != "Transpose" or node.inputs[0] is None:
            return None
        found, transposed = node.inputs[0], not transposed
    array = constant(found)
    if array is None or array.ndim != 2 or array.dtype != np.float32:
        return None
    return np.asarray(array.T if transposed else array, np.float64)


# -- what shall be larger by a factor -----------------------------------------------------------------------------------


@scales("MatMul")
def _scale_matmul(scaling: Scaling, node: ir.Node) -> list[Edit] | None:
    """Its weight; where it has none, either operand."""
    first, second = node.inputs
    for side in (second, first):
        edit = scaling.weight(side)
        if edit is not None:
            return [edit]
    if origin(first) is not None or origin(second) is not None:
        return None
    found = scaling.value(first)
    return found if found is not None else scaling.value(second)


@scales("Gemm")
def _scale_gemm(scaling: Scaling, node: ir.Node) -> list[Edit] | None:
    """Weight and bias."""
    edits = [scaling.weight(v) for v in node.inputs[1:] if v is not None]
    found = [edit for edit in edits if edit is not None]
    return found if len(found) == len(edits) else None
