"""Which rows of its inputs an operator needs, when some rows of its output are wanted: one rule per operator.

A rule answers {slot: rows of that input}; an input that it does not name is read as it is, whole. What is computed token by token
carries the rows on; what mixes tokens has no rule, or raises `Stop`.

    y[B,S,F] = x[B,S,D] @ w[D,F]           rows of y <- the same rows of x
    p[B,H,S,T] @ v[B,H,T,E]                rows of the context <- rows of the probabilities; values whole
    s[B,H,S,T] + mask[B,1,S,T]             both; a mask [B,1,1,T] as it is
    [B,S,D] -> Reshape -> [B*S,D]          the same tokens of an axis that holds batch and tokens
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import constant
from axformer_passes.operators import NARY, NORMS, REDUCTIONS, UNARY, letters_of, softmax_axes
from axformer_passes.readout.rows import Probes, Rows, Shapes, Stop, aligned, rule

OPEN = -1
"""A target of Reshape that follows from the others."""


# -- elementwise and along other axes ---------------------------------------------------------------------------------


@rule(*(name for name in UNARY if name != "Trilu"))
def _unary(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    return {0: rows}


@rule(*NARY)
def _nary(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    rank = probes.rank(node.outputs[0])
    found = {slot: aligned(probes, value, rows, rank) for slot, value in enumerate(node.inputs) if value is not None}
    return {slot: one for slot, one in found.items() if one is not None}


def _apart(rows: Rows, axes: list[int]) -> None:
    if any(rows.touches(axis) for axis in axes):
        raise Stop("it mixes tokens")


@rule("Softmax", "LogSoftmax")
def _softmax(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    _apart(rows, softmax_axes(probes.model, node, probes.rank(node.outputs[0])))
    return {0: rows}


@rule(*NORMS)
def _norm(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    rank = probes.rank(node.inputs[0])
    _apart(rows, list(range(node.attributes.get_int("axis", -1) % rank, rank)))
    return {0: rows}


@rule("ArgMax", "ArgMin", "Hardmax", "LpNormalization", "TopK")
def _along_one_axis(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    rank = probes.rank(node.inputs[0])
    axis = node.attributes.get_int("axis", 0 if node.op_type.startswith("Arg") else -1) % rank
    if node.op_type.startswith("Arg") and not node.attributes.get_int("keepdims", 1):
        return {0: rows.through(lambda a: a if a < axis else a + 1)}
    _apart(rows, [axis])
    return {0: rows}


@rule(*REDUCTIONS)
def _reduce(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    rank = probes.rank(node.inputs[0])
    axes = sorted(a % rank for a in _axes(probes, node))
    if not node.attributes.get_int("keepdims", 1):
        left = [a for a in range(rank) if a not in axes]
        return {0: rows.through(lambda a: left[a])}
    _apart(rows, axes)
    return {0: rows}


def _axes(probes: Probes, node: ir.Node, slot: int = 1) -> list[int]:
    """The axes that a node names, as an input or attribute. Raises: Stop where it names none, or computes them."""
    if len(node.inputs) > slot and node.inputs[slot] is not None:
        given = constant(node.inputs[slot])
        if given is not None:
            return [int(a) for a in given.reshape(-1)]
    elif "axes" in node.attributes:
        return [int(a) for a in node.attributes.get_ints("axes")]
    raise Stop("it does not say its axes")


@rule("CumSum")
def _cumulative(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    _apart(rows, [a % probes.rank(node.inputs[0]) for a in _axes(probes, node)])
    return {0: rows}


@rule("QuantizeLinear", "DequantizeLinear", "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear")
def _quantise(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    """By given scales: of the tensor, or of the channels of another axis."""
    if math.prod(probes.shape(node.inputs[1])[0]) != 1:
        _apart(rows, [node.attributes.get_int("axis", 1) % probes.rank(node.inputs[0])])
        if node.attributes.get_int("block_size", 0):
            raise Stop("it is quantised in blocks")
    return {0: rows}


# -- products ---------------------------------------------------------------------------------------------------------

_OPERANDS = {"QLinearMatMul": (0, 3)}
_SCALARS = {"MatMulInteger": (2,), "QLinearMatMul": (1, 2, 6, 7)}
"""Scales and zero points that may be of rows: here they must be of the tensor."""


@rule("MatMul", "MatMulInteger", "QLinearMatMul")
def _matmul(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    rank = probes.rank(node.outputs[0])
    parts = [node.inputs[slot] for slot in _SCALARS.get(node.op_type, ()) if slot < len(node.inputs)]
    if any(math.prod(probes.shape(part)[0]) != 1 for part in parts if part is not None):
        raise Stop("it is quantised by rows")
    found: dict[int, Rows] = {}
    for side, slot in enumerate(_OPERANDS.get(node.op_type, (0, 1))):
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


@rule("Gemm")
def _gemm(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    side = rows.axis
    axis = (side + node.attributes.get_int(("transA", "transB")[side], 0)) % 2
    if rows.batch is not None and not rows.merged:
        raise Stop("the batch is multiplied with the tokens")
    found = {side: rows.at(axis, axis if rows.merged else None)}
    bias = aligned(probes, node.inputs[2], rows, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return found if bias is None else {**found, 2: bias}


@rule("Einsum")
def _einsum(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    operands, output = letters_of(node)
    if operands is None:
        raise Stop("an Einsum with an ellipsis or a repeated letter")
    token, batch = output[rows.axis], None if rows.batch is None else output[rows.batch]
    found: dict[int, Rows] = {}
    for slot, letters in enumerate(operands):
        if token in letters:
            place = None if batch is None else letters.find(batch)
            if place == -1:
                raise Stop("the batch is multiplied with the tokens")
            found[slot] = rows.at(letters.index(token), place)
    return found


@rule("Conv")
def _conv(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    """x[B,C,S]: a kernel of one position, without padding."""
    kernel = probes.shape(node.inputs[1])[0][2:]
    plain = all(n == 1 for n in (*kernel, *node.attributes.get_ints("strides", [1])))
    padded = any(node.attributes.get_ints("pads", [0])) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    if not plain or padded or rows.axis < 2 or rows.batch == 1:
        raise Stop("it mixes tokens")
    return {0: rows}


# -- data movement ----------------------------------------------------------------------------------------------------


@rule("Transpose")
def _transpose(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    perm = list(node.attributes.get_ints("perm", list(range(probes.rank(node.outputs[0])))[::-1]))
    return {0: rows.through(lambda a: int(perm[a]))}


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    source, out = probes.shape(node.inputs[0]), probes.shape(node.outputs[0])
    if node.op_type == "Squeeze":
        _axes(probes, node)  # else it would take a single token for an axis too many
    found = _behind(source, out, rows)
    if node.op_type == "Reshape":
        retargeted(probes, node, rows, found)
    return {0: found}


def _behind(source: Shapes, out: Shapes, rows: Rows) -> Rows:
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


def retargeted(probes: Probes, node: ir.Node, rows: Rows, source: Rows | None = None) -> dict[int, int]:
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


@rule("Expand")
def _expand(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    retargeted(probes, node, rows)
    found = aligned(probes, node.inputs[0], rows, probes.rank(node.outputs[0]))
    return {} if found is None else {0: found}


@rule("Tile")
def _tile(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    source, out = probes.shape(node.inputs[0]), probes.shape(node.outputs[0])
    _apart(rows, [a for a in range(len(out[0])) if any(s[a] != o[a] for s, o in zip(source, out, strict=True))])
    return {0: rows}


@rule("Concat")
def _concat(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    _apart(rows, [node.attributes.get_int("axis") % probes.rank(node.outputs[0])])
    return dict.fromkeys(range(len(node.inputs)), rows)


@rule("Split")
def _split(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    _apart(rows, [node.attributes.get_int("axis", 0) % probes.rank(node.inputs[0])])
    return {0: rows}


@rule("Slice")
def _slice(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    rank = probes.rank(node.inputs[0])
    given = len(node.inputs) > 3 or "axes" in node.attributes
    axes = _axes(probes, node, 3) if given else list(range(np.size(probes.whole(node.inputs[1])[0])))
    _apart(rows, [a % rank for a in axes])
    return {0: rows}


@rule("Gather")
def _gather(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    """data[.., g, ..], indices[..]: the tokens are an axis of the data, or of the indices (a table of embeddings)."""
    rank, inner = probes.rank(node.inputs[0]), probes.rank(node.inputs[1])
    axis = node.attributes.get_int("axis", 0) % rank
    inside = [axis <= a < axis + inner for a in (rows.axis, rows.batch) if a is not None]
    if all(inside):
        return {1: rows.through(lambda a: a - axis)}
    if any(inside):
        raise Stop("it looks tokens up by the row of the batch")
    return {0: rows.through(lambda a: a if a < axis else a - inner + 1)}


@rule("GatherElements", "ScatterElements")
def _elements(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    """Every row is looked up, or written, in itself."""
    out = probes.shape(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(out[0])
    _apart(rows, [axis])
    for value in node.inputs:
        shapes = probes.shape(value)
        others = [a for a in range(len(out[0])) if a != axis]
        if any(s[a] != o[a] for s, o in zip(shapes, out, strict=True) for a in others):
            raise Stop("it leaves rows out")
    return dict.fromkeys(range(len(node.inputs)), rows)


@rule("RotaryEmbedding", "com.microsoft::RotaryEmbedding")
def _rotary(probes: Probes, node: ir.Node, rows: Rows) -> dict[int, Rows]:
    """x[B,S,H*E] or x[B,H,S,E]; positions[B,S] that look tables up, or tables[B,S,E/2] themselves."""
    if rows.axis != probes.rank(node.inputs[0]) - 2 or rows.batch not in (None, 0):
        raise Stop("it mixes tokens")
    positions = 1 if node.domain else 3
    slots = [positions] if len(node.inputs) > positions and node.inputs[positions] is not None else [1, 2]
    for slot in slots:
        if any(len(s) < 2 or s[1] != n for s, n in zip(probes.shape(node.inputs[slot]), rows.count, strict=True)):
            raise Stop("its positions are not given token by token")
    return {0: rows, **dict.fromkeys(slots, rows.at(1, rows.batch))}
