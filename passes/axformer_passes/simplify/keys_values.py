"""Absorb keys and values: where a row has one query, its tokens need no projection (docs/method.md 3). Exact but for rounding.

Shapes: B batch, H heads of queries, S tokens, D model width, d width of a head; x[B,S,D], Wk[D,H d], Wv[D,H d]; M[H,H d] is 1 where
the column is of the head and 0 elsewhere.

    scores   q[B,H,1,d] @ (x Wk + bk)[B,H,d,S]  ->  ((q M)[B,H,H d] Wk^T) x^T[B,D,S] + q bk    q bk goes where a softmax forgets it
    context  p[B,H,1,S] @ (x Wv + bv)[B,H,S,d]  ->  sum over heads of (p x)[B,H,D] Wv M + sum(p) bv    sum(p) is 1 behind a softmax

Instead of S D H d multiply-accumulates H (S D + D H d). The weights stay matrices: what quantises or fuses a graph takes them for
projections, which they are, and H rows at once are faster than H products of one row. Where the numbers of Wk and Wv go is followed
whatever moves lie between (`keys_values_find`); a query head of a group gets the columns of its key head. The narrow read-out makes
such queries. `prepare` reads the form as attention again (`block_masks`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.graph import anchor, fresh, initializer, origin
from axformer_passes.operators import adds_up
from axformer_passes.prepare.fused import MEMBER
from axformer_passes.probe import Facts, Runner, facts_of
from axformer_passes.registry import FloatArray
from axformer_passes.simplify.keys_values_find import Absorbable, Size, found_in, path_of, sizes_along
from axformer_passes.simplify.offsets import forgotten

logger = logging.getLogger(__name__)
_AXES_ARE_INPUTS = 13
"""The operator set from which on ReduceSum reads its axes as an input."""


@dataclasses.dataclass(frozen=True)
class Absorbed:
    """Names of the scores and contexts that come without keys and values now, and why each other product of one row does not."""

    keys: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keys or self.values)


def absorb(model: ir.Model, runner: Runner) -> Absorbed:
    """Edit `model` in place. The caller cleans up. Nothing is done where it does not run on probes of several sizes."""
    if not any(map(_is_of_activations, model.graph)):
        return Absorbed()
    facts = facts_of(model, runner)
    if facts is None:
        return Absorbed(left=("the graph does not run on probes of several sizes",))
    wanted, left = found_in(model, facts)
    for shape, sizes in sizes_along(model.graph, facts, wanted).items():
        _say(model.graph, shape, sizes)
    for one in wanted:
        _Absorption(model, facts, one).carry_out()
    common.RemoveUnusedNodesPass()(model)
    for line in left:
        logger.info("left as it is: %s", line)
    keys, values = (tuple(anchor(one.node) for one in wanted if one.kind == kind) for kind in ("keys", "values"))
    return Absorbed(keys, values, left)


def keep_apart(model: ir.Model, runner: Runner) -> int:
    """Let `lift` leave in pieces what `absorb` will go into; returns how many fused nodes that are."""
    inside = [node for node in model.graph if MEMBER in node.meta and _is_of_activations(node)]
    facts = facts_of(model, runner) if inside else None
    if facts is None:
        return 0
    found, _ = found_in(model, facts)
    path = path_of(model.graph, facts, found) | {one.node for one in found}
    groups = {node.meta[MEMBER].group for node in path if MEMBER in node.meta}
    for node in model.graph:
        if MEMBER in node.meta and node.meta[MEMBER].group in groups:
            del node.meta[MEMBER]
    return len(groups)


def _is_of_activations(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and not node.domain and not any(map(origin, node.inputs))


def _say(graph: ir.Graph, shape: ir.Node, sizes: Sequence[Size]) -> None:
    """Sizes from where they are still known: Shape(keys) -> Concat(Shape(x)[0], 12, 32, Shape(x)[1])."""
    parts, base, kind = list[ir.Value](), str(shape.outputs[0].name), shape.outputs[0].type

    def put(operator: str, *inputs: ir.Value) -> ir.Value:
        out = ir.Value(name=fresh(graph, f"{base}_{operator.lower()}"), type=kind)
        attributes = {} if operator == "Shape" else {"axis": 0}
        graph.insert_before(shape, ir.node(operator, inputs, attributes, outputs=[out]))
        return out

    for size in sizes:
        number = initializer(graph, f"{base}_size", np.array([size if isinstance(size, int) else size[1]], np.int64))
        parts.append(number if isinstance(size, int) else put("Gather", put("Shape", size[0]), number))
    if parts:
        shape.outputs[0].replace_all_uses_with(put("Concat", *parts))


class _Absorption:
    """Write one product anew, before its node."""

    def __init__(self, model: ir.Model, facts: Facts, one: Absorbable) -> None:
        self.graph, self.opset = model.graph, model.opset_imports.get("", 0)
        self.facts, self.one = facts, one
        out = one.node.outputs[0]
        self.base, self.kind = str(out.name), out.type

    def carry_out(self) -> None:
        """Every reader of the product reads the new one."""
        out = self._keys() if self.one.kind == "keys" else self._values()
        self.one.node.outputs[0].replace_all_uses_with(out)

    def _keys(self) -> ir.Value:
        one, inner = self.one, self.one.columns.size
        query = one.node.inputs[0]
        assert query is not None
        apart = self("Mul", self._reshaped(query, [-1, 1, inner]), self._mask())
        scores = self("MatMul", self("MatMul", apart, self._weight(turned=True)), self._tokens(one.channel, one.token))
        if one.offset.any() and not forgotten(one.node.outputs[0], self.facts, self.opset):
            shift = self("MatMul", apart, self._constant("bias", one.offset.reshape(inner, 1)))
            scores = self("Add", scores, shift)
        return self._reshaped(scores, one.row_of_tokens)

    def _values(self) -> ir.Value:
        one = self.one
        weights = one.node.inputs[0]
        assert weights is not None
        rows = self._reshaped(weights, one.rows_of_tokens)
        taken = self("MatMul", rows, self._tokens(one.token, one.channel))
        context, bias = (
            self("MatMul", taken, self._weight(turned=False)),
            self._constant("bias", one.offset.reshape(-1)),
        )
        truncated = one.offset.any() and not adds_up(weights, self.opset)
        if truncated:
            context = self("Add", context, self("Mul", self._sum(rows, 2), bias))
        context = self._sum(self("Mul", context, self._mask()), 1)
        if one.offset.any() and not truncated:
            context = self("Add", context, bias)
        return self._reshaped(context, one.row_of_channels)

    # -- pieces --------------------------------------------------------------------------------------------------

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A new node before the product, and its output."""
        out = ir.Value(name=fresh(self.graph, f"{self.base}_{operator.lower()}"), type=self.kind)
        self.graph.insert_before(self.one.node, ir.node(operator, inputs, attributes, outputs=[out]))
        return out

    def _constant(self, name: str, array: FloatArray) -> ir.Value:
        return initializer(self.graph, f"{self.base}_{name}", array.astype(self.one.matrix.dtype.numpy()))

    def _reshaped(self, value: ir.Value, target: list[int]) -> ir.Value:
        return self("Reshape", value, initializer(self.graph, f"{self.base}_to", np.array(target, np.int64)))

    def _tokens(self, second: int, third: int) -> ir.Value:
        """x with the axis of the batch first, then these."""
        perm = [self.one.batch, second, third]
        return self.one.x if perm == [0, 1, 2] else self("Transpose", self.one.x, perm=perm)

    def _sum(self, value: ir.Value, axis: int) -> ir.Value:
        """Along `axis`, which stays, of size 1."""
        if self.opset < _AXES_ARE_INPUTS:
            return self("ReduceSum", value, axes=[axis], keepdims=1)
        axes = initializer(self.graph, f"{self.base}_axes", np.array([axis], np.int64))
        return self("ReduceSum", value, axes, keepdims=1)

    def _mask(self) -> ir.Value:
        """[H,H d]: 1 where the column is of the head (what is not yet in the weight of its factors), 0 elsewhere."""
        one = self.one
        factor = np.ones(one.columns.shape) if self._scales_weight else one.factor
        return self._constant("heads", _block_mask(factor))

    @property
    def _scales_weight(self) -> bool:
        """Is a weight written for this product alone, so that it can take the factors?"""
        return not self.one.shared and self.one.matrix.cast is None

    def _weight(self, turned: bool) -> ir.Value:
        """The columns of all heads, one head after the other: [D,H d], or [H d,D]."""
        one, matrix = self.one, self.one.matrix
        if one.shared:  # other layers read it, too: moved in the graph, so that the file holds it once
            found = matrix.value if matrix.turned == turned else self("Transpose", matrix.value, perm=[1, 0])
        else:
            array = matrix.tensor.numpy()
            array = np.asarray(array.T if matrix.turned else array)[:, one.columns.reshape(-1)]
            if self._scales_weight and (one.factor != 1).any():
                array = (array.astype(np.float64) * one.factor.reshape(-1)).astype(array.dtype)
            name = f"{matrix.value.name}_{one.kind}"
            found = initializer(self.graph, name, np.ascontiguousarray(array.T if turned else array))
        return found if matrix.cast is None else self("Cast", found, to=matrix.cast)


def _block_mask(factor: FloatArray) -> FloatArray:
    """[H,H d] of the factors [H,d]: those of head h in row h, at its columns; 0 elsewhere."""
    heads = len(factor)
    return np.asarray((np.eye(heads)[:, :, None] * factor).reshape(heads, -1))


__all__ = ["Absorbed", "absorb", "keep_apart"]
