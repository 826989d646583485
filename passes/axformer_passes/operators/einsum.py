"""Einsum: a contraction whose equation says which axes are summed over, kept and shared.

ibh,hnd->ibnd    x[i,b,h], weight[h,n,d]: rows h, columns (n,d) together
bnij,jbnd->ibnd  two activations: j is tied on both sides, b, n, i, d meet in the output
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import Origin, origin
from axformer_passes.operators.contraction import data_side, summed_axis
from axformer_passes.registry import IntArray, Probes, Product, Stop, TokenRows, Walk, any_along, channels, cost, tokens


@channels("Einsum", bears=True)
def _einsum(walk: Walk, node: ir.Node) -> None:
    operands, output = letters_of(node)
    if operands is None or len(node.inputs) > 2:
        walk.freeze(node, "an Einsum with an ellipsis, a repeated letter or more than two operands")
        return
    constants = [origin(value) for value in node.inputs]
    if len(operands) == 1:
        _reduced(walk, node, operands[0], output)
    elif not any(constants):
        _activations(walk, node, operands, output)
    elif all(constants):
        walk.freeze(node, "a product of two constants")
    else:
        slot = 1 if constants[1] is not None else 0
        weight = constants[slot]
        assert weight is not None
        _weight(walk, node, weight, operands[slot], operands[1 - slot], output, 1 - slot)


def letters_of(node: ir.Node) -> tuple[list[str] | None, str]:
    """(letters of each operand, of the output); None for forms that the rule does not follow."""
    equation = node.attributes.get_string("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    if "." in equation or any(len(set(o)) != len(o) for o in operands):
        return None, ""
    if not arrow:
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    return operands, right


def _arranged(labels: IntArray, letters: str, output: str) -> IntArray:
    """Labels with axes named `letters` as an array that broadcasts against axes `output`; other axes must have size 1."""
    gone = tuple(i for i, c in enumerate(letters) if c not in output)
    kept = [c for c in letters if c in output]
    labels = labels.squeeze(axis=gone)
    order = sorted(range(len(kept)), key=lambda i: output.index(kept[i]))
    labels = labels.transpose(order)
    shape = iter(labels.shape)
    return labels.reshape([next(shape) if c in kept else 1 for c in output])


def _summed(walk: Walk, labels: IntArray, letters: str, output: str) -> IntArray:
    """`labels` with every axis that is summed over tied and of size 1."""
    for axis, letter in enumerate(letters):
        if letter not in output:
            walk.tie(labels, axis)
            labels = any_along(labels, axis)
    return labels


def _reduced(walk: Walk, node: ir.Node, letters: str, output: str) -> None:
    labels = _summed(walk, walk.labels(node.inputs[0]), letters, output)
    walk.put(node.outputs[0], _arranged(labels, letters, output))


def _activations(walk: Walk, node: ir.Node, operands: list[str], output: str) -> None:
    walk.products.append(Product(node, None, None, None))
    shape = walk.shape(node.outputs[0])
    met = []
    for value, letters in reversed(list(zip(node.inputs, operands, strict=True))):
        labels = _summed(walk, walk.labels(value), letters, output)
        met.append(np.broadcast_to(_arranged(labels, letters, output), shape))
    walk.put(node.outputs[0], walk.meet(met))


def _weight(walk: Walk, node: ir.Node, weight: Origin, w: str, x: str, output: str, slot: int) -> None:
    """`w`, `x`: letters of the weight and of the activation at input `slot`."""
    data = node.inputs[slot]
    assert data is not None
    inner = [c for c in w if c in x and c not in output]
    outer = [c for c in w if c not in x and c in output]
    if not inner and not walk.has(data):
        return  # an outer product, or a scaling, of what has no channels
    if not inner or not outer or len(inner) + len(outer) != len(w):
        walk.freeze(node, f"an Einsum {w},{x}->{output} whose weight is not a matrix of summed and handed-out axes")
        return
    rows = walk.born(weight.value, tuple(weight.axes[w.index(c)] for c in inner), node, "row")
    columns = walk.born(weight.value, tuple(weight.axes[w.index(c)] for c in outer), node, "column")
    walk.products.append(Product(node, str(weight.value.name), rows, columns))
    labels = walk.labels(data)
    walk.meet([labels, np.broadcast_to(_arranged(rows.labels, "".join(inner), x), labels.shape)])
    _summed(walk, labels, "".join(c if c in output or c in inner else "?" for c in x), output + "".join(inner))
    shape = walk.shape(node.outputs[0])
    walk.put(node.outputs[0], np.broadcast_to(_arranged(columns.labels, "".join(outer), output), shape))


def spread_rows(product: Product, rank: int) -> IntArray:
    """The row labels of a contraction, shaped to broadcast over its data operand of this rank."""
    assert product.rows is not None
    node, side = product.node, data_side(product.node)
    if node.op_type != "Einsum":
        shape = [1] * rank
        shape[summed_axis(node, side, rank)] = product.rows.size
        return product.rows.labels.reshape(shape)
    operands, output = letters_of(node)
    assert operands is not None
    inner = "".join(c for c in operands[1 - side] if c not in output)
    return _arranged(product.rows.labels, inner, operands[side])


def summed_width(node: ir.Node, right: tuple[int, ...]) -> int:
    """Over how many entries of its right operand (of shape `right`) a product of activations sums for one output."""
    if node.op_type != "Einsum":
        return right[-2]
    operands, output = letters_of(node)
    assert operands is not None
    return int(np.prod([n for n, c in zip(right, operands[1], strict=True) if c not in output]))


# -- tokens ----------------------------------------------------------------------------------------------------------


@tokens("Einsum")
def _einsum_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    operands, output = letters_of(node)
    if operands is None:
        raise Stop("an Einsum with an ellipsis or a repeated letter")
    token, batch = output[rows.axis], None if rows.batch is None else output[rows.batch]
    found: dict[int, TokenRows] = {}
    for slot, letters in enumerate(operands):
        if token in letters:
            place = None if batch is None else letters.find(batch)
            if place == -1:
                raise Stop("the batch is multiplied with the tokens")
            found[slot] = rows.at(letters.index(token), place)
    return found


# -- cost ---------------------------------------------------------------------------------------------------------------


@cost("Einsum")
def _einsum_cost(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    operands, _ = letters_of(node)
    sizes = {c: n for o, shape in zip(operands or [], inputs, strict=False) for c, n in zip(o, shape, strict=True)}
    return math.prod(sizes.values()) if len(inputs) > 1 else 0
