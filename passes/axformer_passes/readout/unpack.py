"""Take a packed projection apart where only a part of it is wanted for single tokens: queries, but not keys and values.

    x[B,S,D] @ W[D,3N] + b -> Reshape -> Split -> q, k, v   ->   Reshape(x @ Wq + bq), Reshape(x @ Wk + bk), Reshape(x @ Wv + bv)

Then the pick can move on, through the queries' own product. A part is any output of a Split, Slice or Gather behind the product
whose numbers are columns of it, the same for all tokens (`provenance`). Exact: every number is the same sum.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_passes.blocks import Trails, Unfollowed, is_constant, matrix_of, product_behind, way
from axformer_passes.graph import PART_OF, fresh, initializer, whole_of
from axformer_passes.probe import Facts, Runner, facts_of, known
from axformer_passes.readout.walk import Narrowing
from axformer_passes.registry import FloatArray, IntArray

_WHOLE = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_PARTS = frozenset({"Gather", "Slice", "Split"})
_CONSTANTS = frozenset({"Add", "Sub", "Mul", "Div"})
_MOST_AXES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """value = Transpose(Reshape(x @ (W[:, columns] * factor) + offset, [0, 0, *rest]), perm)."""

    value: ir.Value
    x: ir.Value
    columns: IntArray
    factor: FloatArray
    offset: FloatArray
    rest: tuple[int, ...]
    perm: tuple[int, ...]


def unpack(model: ir.Model, runner: Runner, found: Narrowing) -> int:
    """Edit `model` in place where `found` stops at such a product; returns how many were taken apart."""
    products = list(dict.fromkeys(_stopped(found)))
    facts = facts_of(model, runner) if products else None
    if facts is None:
        return 0
    sizes, count = frozenset(known(model.graph, facts)[0]), 0
    for product in products:
        try:
            parts = [_read(facts, sizes, product, value) for value in _cut(product.outputs[0], model.graph)]
        except Unfollowed:
            continue
        for part in parts:
            _write(model.graph, product, part)
        count += bool(parts)
    return count


def _stopped(found: Narrowing) -> Iterator[ir.Node]:
    """Products of all tokens, of which some reader wants single ones."""
    for node, slots in found.needs.items():
        for slot in slots:
            value = node.inputs[slot]
            product = product_behind(value) if value is not None and value not in found.wanted else None
            if product is not None and product not in found.needs:
                yield product


def _cut(value: ir.Value, graph: ir.Graph) -> Iterator[ir.Value]:
    """The parts of it. Raises: Unfollowed where somebody reads the whole."""
    if value.is_graph_output():
        raise Unfollowed(f"{value.name!r} is an output")
    for user, _ in value.uses():
        if user.domain or user.graph is not graph:
            raise Unfollowed(f"{user.op_type} reads the whole")
        if user.op_type in _PARTS:
            yield from (v for v in user.outputs if v.uses() or v.is_graph_output())
        elif user.op_type in _WHOLE or (user.op_type in _CONSTANTS and any(map(is_constant, user.inputs))):
            yield from _cut(user.outputs[0], graph)
        else:
            raise Unfollowed(f"{user.op_type} reads the whole")


def _read(facts: Facts, sizes: frozenset[ir.Value], product: ir.Node, value: ir.Value) -> _Part:
    """Raises: Unfollowed."""
    matrix, source = matrix_of(product), product.inputs[0]
    if matrix is None or matrix.cast is not None or source is None or value.is_graph_output():
        raise Unfollowed("it cannot be cut")
    trails = [Trails(facts, sizes, n, product.outputs[0]) for n in range(len(facts.shapes))]
    for x in way(source):
        if not _is_flat(facts, sizes, x, source):
            continue
        shapes = [shape or () for shape in facts.all_shapes(x)]
        rank = len(trails[0].shape(value))
        for perm in itertools.permutations(range(rank)) if 2 < rank <= _MOST_AXES else ():
            seen = [_columns(t, value, shape, perm, matrix.columns) for t, shape in zip(trails, shapes, strict=True)]
            columns = seen[0]
            if columns is None or any(one is None or not _equal(one, columns) for one in seen):
                continue
            rest = tuple(trails[0].shape(value)[a] for a in perm[2:])
            return _Part(value, x, *columns, rest, tuple(int(a) for a in np.argsort(perm)))
    raise Unfollowed(f"{value.name!r} holds no columns of all tokens")


def _is_flat(facts: Facts, sizes: frozenset[ir.Value], x: ir.Value, source: ir.Value) -> bool:
    """Is x of three axes, and `source` the same numbers in the same order?"""
    if len(facts.shape(x) or ()) != 3:
        return False
    try:
        found = [Trails(facts, sizes, n, x).of(source) for n in range(len(facts.shapes))]
    except Unfollowed:
        return False
    return all(one.moves_alone and (np.diff(one.place.reshape(-1)) == 1).all() for one in found)


def _columns(
    trails: Trails, value: ir.Value, shape: tuple[int, ...], perm: tuple[int, ...], columns: int
) -> tuple[IntArray, FloatArray, FloatArray] | None:
    """(columns, factor, offset) [n], where `value` with its axes in this order is [B,S,..] of them."""
    trail, own = trails.of(value), trails.shape(value)
    if tuple(own[a] for a in perm[:2]) != shape[:2]:
        return None
    tokens = shape[0] * shape[1]
    place, factor, offset = (a.transpose(perm).reshape(tokens, -1) for a in (trail.place, trail.factor, trail.offset))
    rows, which = np.divmod(place, columns)
    if (rows != np.arange(tokens)[:, None]).any() or any((a != a[:1]).any() for a in (which, factor, offset)):
        return None
    return (which[0], factor[0], offset[0]) if np.isfinite(offset[0]).all() and np.isfinite(factor[0]).all() else None


def _equal(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))


def _write(graph: ir.Graph, product: ir.Node, part: _Part) -> None:
    """Every reader of the part reads its own product."""
    matrix = matrix_of(product)
    assert matrix is not None

    def put(operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        out = ir.Value(name=fresh(graph, f"{part.value.name}_{operator.lower()}"), type=part.value.type)
        graph.insert_before(product, ir.node(operator, inputs, attributes, outputs=[out]))
        return out

    array = matrix.tensor.numpy()
    array = np.asarray(array.T if matrix.turned else array)[:, part.columns]
    if (part.factor != 1).any():
        array = (array.astype(np.float64) * part.factor).astype(array.dtype)
    made = put("MatMul", part.x, initializer(graph, f"{matrix.value.name}_part", np.ascontiguousarray(array)))
    made.meta[PART_OF] = whole_of(product)
    if part.offset.any():
        made = put("Add", made, initializer(graph, f"{part.value.name}_bias", part.offset.astype(array.dtype)))
    if len(part.rest) != 1:
        made = put("Reshape", made, initializer(graph, f"{part.value.name}_to", np.array([0, 0, *part.rest], np.int64)))
    if part.perm != tuple(range(len(part.perm))):
        made = put("Transpose", made, perm=list(part.perm))
    part.value.replace_all_uses_with(made)


__all__ = ["unpack"]
