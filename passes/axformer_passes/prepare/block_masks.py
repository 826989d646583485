"""Products under a mask of blocks are products by heads: what associates to a projection of all tokens is written as one again.

Shapes: B batch, H heads, S tokens, D model width, d width of a head, N = H d; x[B,S,D]; M[H,N] is 0 but where column n is of head
h, the n // d-th.

    scores   ((q[B,1,N] M) W[N,D]) x^T[B,D,S]         ->  q[B,H,1,d] @ (x W^T)[B,H,d,S]
    context  sum over heads of ((p[B,H,S] x) W[D,N]) M  ->  p[B,H,1,S] @ (x W)[B,H,S,d]
             ..                ( .. + sum(p)[B,H,1] b)  ->  p[B,H,1,S] @ (x W + b)

Exact but for the rounding of sums. The zeros of M keep heads apart, which no label of a channel can say: in the products on the
left each row of the mask meets all channels of the weight. That q has one row and p has H is read off the Reshapes that make them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import Array, constant, fresh, initializer, origin


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """A mask M[H,N] of H blocks of d columns, and what it multiplies; `factor` [N] is None where all is 1."""

    data: ir.Value
    heads: int
    width: int
    factor: Array | None


def by_heads(model: ir.Model) -> int:
    """Edit `model` in place; returns how many products were written by heads. The caller removes what nobody reads now."""
    done = 0
    for node in list(model.graph):
        written = _scores(model.graph, node) or _context(model.graph, node)
        if written is not None:
            node.outputs[0].replace_all_uses_with(written)
            done += 1
    return done


def _scores(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """[B,H,S]."""
    left, right = _operands(node, "MatMul")
    turned = right.producer() if right is not None else None
    rows, weight = _operands(_maker(left), "MatMul")
    blocks = _blocks(rows)
    if blocks is None or weight is None or not _is_matrix(weight) or turned is None or turned.op_type != "Transpose":
        return None
    if _second_axis(blocks.data) != 1:
        return None
    if list(turned.attributes.get_ints("perm", [])) != [0, 2, 1] or turned.inputs[0] is None:
        return None
    put = _Writer(graph, node)
    keys = put("MatMul", turned.inputs[0], put("Transpose", weight, perm=[1, 0]))
    query = blocks.data if blocks.factor is None else put("Mul", blocks.data, put.constant(blocks.factor))
    scores = put(
        "MatMul",
        put.apart(query, blocks.heads, blocks.width),
        put.apart(keys, blocks.heads, blocks.width, (0, 2, 3, 1)),
    )
    return put.shaped(scores, [0, blocks.heads, -1])


def _context(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """[B,1,N]."""
    if node.op_type != "ReduceSum" or node.domain or node.attributes.get_int("keepdims", 1) != 1:
        return None
    blocks = _blocks(node.inputs[0]) if _axes(node) == [1] else None
    product, bias = _without_bias(blocks.data) if blocks is not None else (None, None)
    taken, weight = _operands(_maker(product), "MatMul")
    probabilities, x = _operands(_maker(taken), "MatMul")
    if blocks is None or weight is None or not _is_matrix(weight) or probabilities is None or x is None:
        return None
    if (
        origin(x) is not None
        or _second_axis(probabilities) != blocks.heads
        or (x.shape is not None and len(x.shape) != 3)
    ):
        return None
    put = _Writer(graph, node)
    projected = put("MatMul", x, weight)
    if bias is not None:
        projected = put("Add", projected, bias)
    values = put.apart(projected, blocks.heads, blocks.width)
    context = put("MatMul", put.shaped(probabilities, [0, blocks.heads, 1, -1]), values)
    joined = put.shaped(put("Transpose", context, perm=[0, 2, 1, 3]), [0, 1, blocks.heads * blocks.width])
    return joined if blocks.factor is None else put("Mul", joined, put.constant(blocks.factor))


# -- what is there ----------------------------------------------------------------------------------------------------


def _maker(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _operands(node: ir.Node | None, operator: str) -> tuple[ir.Value | None, ir.Value | None]:
    """Both inputs of such a node, else twice None."""
    if node is None or node.op_type != operator or node.domain:
        return None, None
    first, second = node.inputs
    return first, second


def _without_bias(value: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
    """(y, b) of y + sum(p)[B,H,1] b[N], where y is of these very p; else (value, None)."""
    for product, shift in (pair := _operands(_maker(value), "Add"), pair[::-1]):
        total, bias = _operands(_maker(shift), "Mul")
        summed, taken = _maker(total), _operands(_maker(product), "MatMul")[0]
        weights = _operands(_maker(taken), "MatMul")[0]
        if summed is None or summed.op_type != "ReduceSum" or weights is None or summed.inputs[0] is not weights:
            continue
        array = constant(bias)
        if (
            _axes(summed) == [2]
            and summed.attributes.get_int("keepdims", 1) == 1
            and array is not None
            and array.ndim == 1
        ):
            return product, bias
    return value, None


def _axes(node: ir.Node) -> list[int]:
    """What a ReduceSum sums over; nothing where that is computed."""
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_ints("axes", [])
    return [] if given is None else [int(a) for a in given]


def _is_matrix(value: ir.Value) -> bool:
    found = origin(value)
    return found is not None and len(found.axes) == 2


def _second_axis(value: ir.Value) -> int | None:
    """Size of axis 1 of three, where a Reshape states it."""
    node = _maker(value)
    target = constant(node.inputs[1]) if node is not None and node.op_type == "Reshape" and not node.domain else None
    return int(target[1]) if target is not None and target.shape == (3,) and target[1] > 0 else None


def _blocks(value: ir.Value | None) -> _Blocks | None:
    """What `value` is, if it is something times a mask of two or more blocks."""
    for data, mask in (pair := _operands(_maker(value), "Mul"), pair[::-1]):
        array = constant(mask)
        if data is None or array is None or array.ndim != 2 or origin(data) is not None:
            continue
        heads, columns = array.shape
        if not heads or not columns or columns % heads:
            continue
        parts = array.astype(np.float64).reshape(heads, heads, -1)
        factor = parts[np.arange(heads), np.arange(heads)]
        apart = np.zeros_like(parts)
        apart[np.arange(heads), np.arange(heads)] = factor
        if (parts == apart).all() and factor.all():
            plain = bool((factor == 1).all())
            return _Blocks(data, heads, columns // heads, None if plain else factor.reshape(-1).astype(array.dtype))
    return None


# -- what is written --------------------------------------------------------------------------------------------------


class _Writer:
    """New nodes before `node`."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.base = str(node.outputs[0].name)

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        out = ir.Value(name=fresh(self.graph, f"{self.base}_{operator.lower()}"), type=self.node.outputs[0].type)
        self.graph.insert_before(self.node, ir.node(operator, inputs, attributes, outputs=[out]))
        return out

    def constant(self, array: Array) -> ir.Value:
        return initializer(self.graph, f"{self.base}_factor", array)

    def shaped(self, value: ir.Value, target: list[int]) -> ir.Value:
        return self("Reshape", value, initializer(self.graph, f"{self.base}_to", np.array(target, np.int64)))

    def apart(
        self, value: ir.Value, heads: int, width: int, order: tuple[int, int, int, int] = (0, 2, 1, 3)
    ) -> ir.Value:
        """[B,S,N] as [B,H,S,d], or in another order of its axes B, S, H, d."""
        return self("Transpose", self.shaped(value, [0, -1, heads, width]), perm=list(order))


__all__ = ["by_heads"]
