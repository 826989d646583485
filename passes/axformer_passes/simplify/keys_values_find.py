"""Which products of one row with a projection can be written without the projection: keys (scores) and values (contexts).

    row[..,1,d] @ keys[..,d,S]      keys[f,j,s]    = column c(h,j) of x[b,s] @ W,   f = b H + h
    row[..,1,S] @ values[..,S,d]    values[f,s,j]  = likewise

That is decided by where the numbers come from (`provenance`), in probes of several batch sizes and lengths: c must be the same for
all rows of the batch, all tokens and all sizes. How an exporter writes heads, groups and packed projections does not matter.

A product is left as it is where the query has several rows; its right side is turned (rotary), normed, cached, quantised or
anything but moved; somebody else needs the projection; or it would not pay. For each token H rows of x are multiplied instead of
the N columns of the projection; a product of few rows is slower than one of many (a guess: by half), so 2 H must be at most N.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from axformer_passes.blocks import Matrix, Trail, Trails, Unfollowed, base_of, matrix_of, product_behind, way
from axformer_passes.graph import anchor, origin
from axformer_passes.probe import Facts, known
from axformer_passes.registry import FloatArray, IntArray

KeysOrValues = Literal["keys", "values"]
AxisOrder = tuple[int, int, int]
_ORDERS: tuple[AxisOrder, ...] = ((0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0))
AT_LEAST = 2
"""Columns of the projection for each head that reads them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Absorbable:
    """One product row @ projection(x).

    product   the projection, x @ W
    x         [B,S,D] or another order of these axes, which batch, token and channel name
    columns   int64[H,d]: of W, for each head; factor, offset float64[H,d]: what else happens to them
    prefix    axes of the product before the last two, in the first probe
    plain     prefix is [B,H]
    shared    W has other readers; columns are all of them, in order
    """

    node: ir.Node
    kind: KeysOrValues
    product: ir.Node
    x: ir.Value
    batch: int
    token: int
    channel: int
    width: int
    columns: IntArray
    factor: FloatArray
    offset: FloatArray
    prefix: tuple[int, ...]
    merged: bool
    shared: bool

    @property
    def matrix(self) -> Matrix:
        """W."""
        found = matrix_of(self.product)
        assert found is not None
        return found

    @property
    def heads(self) -> int:
        """H."""
        return len(self.columns)

    @property
    def is_plain(self) -> bool:
        """Is the product [B,H,1,..]?"""
        return not self.merged and len(self.prefix) == 2

    @property
    def row_of_tokens(self) -> list[int]:
        """The target that makes [B,H,S] the product's own [..,1,S]; 0 is the size that is there, so S may be any."""
        return [-1, 1, 0] if self.merged else [0, *self.prefix[1:], 1, -1]

    @property
    def rows_of_tokens(self) -> list[int]:
        """The inverse."""
        return [-1, self.heads, 0] if self.merged else [0, self.heads, -1]

    @property
    def row_of_channels(self) -> list[int]:
        """The target that makes [B,H,1,d] the product's own [..,1,d]."""
        inner = self.columns.shape[1]
        return [-1, 1, inner] if self.merged else [0, *self.prefix[1:], 1, inner]


def found_in(model: ir.Model, facts: Facts) -> tuple[list[Absorbable], tuple[str, ...]]:
    """(what can be absorbed, in graph order; why each other product of one row is left)."""
    sizes = frozenset(known(model.graph, facts)[0])
    found, left = list[Absorbable](), list[str]()
    for node in model.graph:
        if _has_one_row(node, facts):
            try:
                found.append(_Reading(facts, sizes, node).absorbable())
            except Unfollowed as why:
                left.append(f"{node.op_type} {anchor(node)!r}: {why}")
    found, costly = _paying(found)
    found, needed = _needless(model.graph, facts, found)
    return found, (*left, *costly, *needed)


def _has_one_row(node: ir.Node, facts: Facts) -> bool:
    """Is it a product of activations, and its left side one row in every probe?"""
    if node.op_type != "MatMul" or node.domain or any(map(origin, node.inputs)) or node.outputs[0].is_graph_output():
        return False
    shapes = facts.all_shapes(node.outputs[0])
    return all(shape is not None and len(shape) > 2 and shape[-2] == 1 for shape in shapes)


# -- is it worth it? --------------------------------------------------------------------------------------------------


def _paying(found: list[Absorbable]) -> tuple[list[Absorbable], list[str]]:
    heads: dict[ir.Node, int] = {}
    for one in found:
        heads[one.product] = heads.get(one.product, 0) + one.heads
    kept, left = list[Absorbable](), list[str]()
    for one in found:
        columns = one.matrix.columns
        if AT_LEAST * heads[one.product] <= columns:
            kept.append(one)
        else:
            left.append(
                f"MatMul {anchor(one.node)!r}: {heads[one.product]} heads read {columns} columns: it would not pay"
            )
    return kept, left


def _needless(graph: ir.Graph, facts: Facts, found: list[Absorbable]) -> tuple[list[Absorbable], list[str]]:
    """Those whose projection nobody else needs when all of them are absorbed."""
    left = list[str]()
    while True:
        dead = path_of(graph, facts, found)
        kept = [one for one in found if one.product in dead]
        left += [f"MatMul {anchor(one.node)!r}: {_reader(one, dead)}" for one in found if one.product not in dead]
        if len(kept) == len(found):
            return kept, left
        found = kept


def _reader(one: Absorbable, dead: set[ir.Node]) -> str:
    """Who else needs what lies between the projection and this product."""
    value = one.node.inputs[1]
    assert value is not None
    for step in (*way(value), one.product.outputs[0]):
        if step.is_graph_output():
            return f"its {one.kind} are the output {step.name!r}"
        for user, _ in step.uses():
            if user not in dead and user is not one.node:
                return f"{user.op_type} {anchor(user)!r} reads its {one.kind}, too"
    return f"its {one.kind} are read elsewhere, too"


def path_of(graph: ir.Graph, facts: Facts, found: list[Absorbable]) -> set[ir.Node]:
    """The nodes that nobody needs when these products read their right sides no more, and sizes are read elsewhere."""
    readers, sizes = {one.node for one in found}, sizes_along(graph, facts, found)
    dead = set[ir.Node]()
    for node in reversed(list(graph)):
        uses = [use for value in node.outputs for use in value.uses()]
        free = (user in dead or user in sizes or (user in readers and slot == 1) for user, slot in uses)
        if all(free) and not any(v.is_graph_output() for v in node.outputs):
            dead.add(node)
    return dead


Size = int | tuple[ir.Value, int]
"""A number, or the size of an axis of a tensor."""


def sizes_along(graph: ir.Graph, facts: Facts, found: list[Absorbable]) -> dict[ir.Node, list[Size]]:
    """What each Shape says that reads a tensor between these projections and products, where x says the same."""
    projections, sizes = {one.product: one for one in found}, dict[ir.Node, list[Size]]()
    for node in graph:
        value = node.inputs[0] if node.op_type == "Shape" and not node.domain else None
        product = product_behind(value) if value is not None else None
        if value is None or product not in projections:
            continue
        one = projections[product]
        said = [_size(facts, value, axis, one) for axis in range(len(facts.shape(value) or ()))]
        window = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(said)))
        if None not in said:
            sizes[node] = said[window]  # type: ignore[assignment]
    return sizes


def _size(facts: Facts, value: ir.Value, axis: int, one: Absorbable) -> Size | None:
    sizes = [shape[axis] if shape else None for shape in facts.all_shapes(value)]
    if len(set(sizes)) == 1:
        return sizes[0]
    for known_axis in (one.batch, one.token):
        if sizes == [shape[known_axis] if shape else None for shape in facts.all_shapes(one.x)]:
            return one.x, known_axis
    return None


# -- what are the numbers? --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
    """One probe: the trail of the right side, the axes of the product before the last two, the columns of the projection."""

    trail: Trail
    prefix: tuple[int, ...]
    columns: int


class _Reading:
    """What the probes say of one product."""

    def __init__(self, facts: Facts, sizes: frozenset[ir.Value], node: ir.Node) -> None:
        self.facts, self.sizes, self.node = facts, sizes, node
        right = node.inputs[1]
        assert right is not None
        self.right = right
        self.product = base_of(right)
        self.seen = [self._probe(n) for n in range(len(facts.shapes))]

    def absorbable(self) -> Absorbable:
        """Raises: Unfollowed."""
        for kind in ("keys", "values"):
            arranged = [self._arranged(seen, kind) for seen in self.seen]
            if all(one is not None for one in arranged):
                return self._at_tokens(kind, arranged)
        raise Unfollowed("its columns are not the same for all tokens")

    def _probe(self, number: int) -> _Seen:
        trails = Trails(self.facts, self.sizes, number, self.product.outputs[0])
        shape, left = trails.shape(self.node.outputs[0]), trails.shape(self.node.inputs[0])
        prefix, inner = shape[:-2], trails.shape(self.right)[-2:]
        if left != (*prefix, 1, inner[0]):
            raise Unfollowed(f"its left side {list(left)} is repeated to {[*prefix, 1, inner[0]]}")
        trail = trails.of(self.right).onto((*prefix, *inner))
        if not np.isfinite(trail.offset).all() or not np.isfinite(trail.factor).all():
            raise Unfollowed("its constants are not finite")
        return _Seen(trail, prefix, trails.shape(self.product.outputs[0])[-1])

    @staticmethod
    def _arranged(seen: _Seen, kind: str) -> tuple[Any, ...] | None:
        """(row [F,S] of the projection, its column, factor, offset [F,d]); None where they depend on more than that."""
        arrays: list[Any] = []
        for array in (seen.trail.place, seen.trail.factor, seen.trail.offset):
            flat = array.reshape(math.prod(seen.prefix), *array.shape[-2:])
            arrays.append(flat if kind == "keys" else flat.transpose(0, 2, 1))
        rows, columns = np.divmod(arrays[0], seen.columns)
        if (rows != rows[:, :1]).any() or any((a != a[:, :, :1]).any() for a in (columns, *arrays[1:])):
            return None
        return rows[:, 0], columns[:, :, 0], arrays[1][:, :, 0], arrays[2][:, :, 0]

    def _at_tokens(self, kind: Any, arranged: list[Any]) -> Absorbable:
        """The tensor x[B,S,D] at which rows are batches and tokens."""
        source = self.product.inputs[0]
        assert source is not None
        for x in way(source):
            for axes in _ORDERS if len(self.facts.shape(x) or ()) == 3 else ():
                found = [self._heads(n, x, source, axes, *one) for n, one in enumerate(arranged)]
                if found[0] is not None and _alike(found):
                    return self._made(kind, x, axes, *found[0])
        raise Unfollowed("its tokens are no axis of a tensor of three axes")

    def _heads(
        self, number: int, x: ir.Value, source: ir.Value, axes: AxisOrder, rows: IntArray, *of_heads: Any
    ) -> tuple[Any, ...] | None:
        """(columns, factor, offset) [H,d], where the rows are the tokens of x in order, for each head of each row of the batch."""
        try:
            trail = Trails(self.facts, self.sizes, number, x).of(source)
        except Unfollowed:
            return None
        shape = self.facts.all_shapes(x)[number]
        if shape is None or not trail.moves_alone or trail.place.shape[-1] != shape[axes[2]]:
            return None
        batch, token, channel = (
            np.unravel_index(trail.place.reshape(-1, trail.place.shape[-1]), shape)[a] for a in axes
        )
        heads, rest = divmod(len(rows), max(shape[axes[0]], 1))
        if rest or not heads or rows.shape[1] != shape[axes[1]] or (channel != np.arange(shape[axes[2]])).any():
            return None
        if any((a != a[:, :1]).any() for a in (batch, token)):
            return None
        whose = (np.arange(len(rows)) // heads)[:, None]
        if (batch[:, 0][rows] != whose).any() or (token[:, 0][rows] != np.arange(rows.shape[1])).any():
            return None
        by_row = [a.reshape(-1, heads, a.shape[1]) for a in of_heads]
        return None if any((a != a[:1]).any() for a in by_row) else tuple(a[0] for a in by_row)

    def _made(self, kind: Any, x: ir.Value, axes: AxisOrder, columns: Any, factor: Any, offset: Any) -> Absorbable:
        prefixes = [seen.prefix for seen in self.seen]
        batches = [self.facts.all_shapes(x)[n][axes[0]] for n in range(len(prefixes))]  # type: ignore[index]
        apart = all(p[0] == b and p[1:] == prefixes[0][1:] for p, b in zip(prefixes, batches, strict=True))
        if not apart and len(prefixes[0]) != 1:
            raise Unfollowed(f"its axes {list(prefixes[0])} are no batch and heads")
        shared = _is_shared(self.product)
        if shared and not np.array_equal(columns.reshape(-1), np.arange(self.seen[0].columns)):
            raise Unfollowed("other layers read its weight, too, and it takes a part of it")
        width = self.facts.shape(x)[axes[2]]  # type: ignore[index]
        return Absorbable(
            self.node, kind, self.product, x, *axes, width, columns, factor, offset, prefixes[0], not apart, shared
        )


def _alike(found: list[Any]) -> bool:
    """The same in all probes."""
    return all(
        one is not None and all(np.array_equal(a, b) for a, b in zip(one, found[0], strict=True)) for one in found
    )


def _is_shared(product: ir.Node) -> bool:
    return any(len(value.uses()) > 1 for value in _chain(product))


def _chain(product: ir.Node) -> Iterator[ir.Value]:
    value = product.inputs[1]
    while value is not None:
        yield value
        node = value.producer()
        value = node.inputs[0] if node is not None else None


__all__ = ["Absorbable", "found_in", "path_of", "sizes_along"]
