"""Absorb keys and values: where a row has one query, its tokens need no projection (docs/method.md 3). Exact but for rounding.

Shapes: B batch, H heads of queries, S tokens, D model width, d width of a head; x[B,S,D].

    scores   q[B,H,1,d] @ (x Wk + bk)[B,H,d,S]   ->  (q Wk^T)[B,H,D] @ x^T[B,D,S] + q bk    q bk goes where a softmax forgets it
    context  p[B,H,1,S] @ (x Wv + bv)[B,H,S,d]   ->  (p x)[B,H,D] Wv[H,D,d] + sum(p) bv     sum(p) is 1 behind a softmax

Instead of S D H d multiply-accumulates H (S D + D d). Wk and Wv are cut to heads by where their numbers go, whatever moves lie
between (`keys_values_find`); a query head of a group gets the columns of its key head. The narrow read-out makes such queries.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.blocks import Matrix
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
        one, heads, width = self.one, self.one.heads, self.one.width
        query = self._apart(one.node.inputs[0], [-1, heads, 1, one.columns.shape[1]])
        through = self("MatMul", query, self._weight((1, 2, 0)))
        scores = self("MatMul", self._reshaped(through, [-1, heads, width]), self._tokens(one.channel, one.token))
        if one.offset.any() and not forgotten(one.node.outputs[0], self.facts, self.opset):
            shift = self("MatMul", query, self._constant("bias", one.offset[:, :, None]))
            scores = self("Add", scores, self._reshaped(shift, [-1, heads, 1]))
        return self._reshaped(scores, one.row_of_tokens)

    def _values(self) -> ir.Value:
        one, heads = self.one, self.one.heads
        weights = one.node.inputs[0]
        assert weights is not None
        rows = self._reshaped(weights, one.rows_of_tokens)
        taken = self("MatMul", rows, self._tokens(one.token, one.channel))
        context = self("MatMul", self._reshaped(taken, [-1, heads, 1, one.width]), self._weight((1, 0, 2)))
        if one.offset.any():
            bias = self._constant("bias", one.offset[:, None, :])
            if not adds_up(weights, self.opset):
                bias = self("Mul", self._reshaped(self._sum(rows), [-1, heads, 1, 1]), bias)
            context = self("Add", context, bias)
        return context if one.is_plain else self._reshaped(context, one.row_of_channels)

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

    def _apart(self, query: ir.Value | None, target: list[int]) -> ir.Value:
        assert query is not None
        return query if self.one.is_plain else self._reshaped(query, target)

    def _tokens(self, second: int, third: int) -> ir.Value:
        """x with the axis of the batch first, then these."""
        perm = [self.one.batch, second, third]
        return self.one.x if perm == [0, 1, 2] else self("Transpose", self.one.x, perm=perm)

    def _sum(self, rows: ir.Value) -> ir.Value:
        """[B,H,1] of [B,H,S]."""
        if self.opset < _AXES_ARE_INPUTS:
            return self("ReduceSum", rows, axes=[2], keepdims=1)
        return self(
            "ReduceSum", rows, initializer(self.graph, f"{self.base}_axes", np.array([2], np.int64)), keepdims=1
        )

    def _weight(self, perm: tuple[int, int, int]) -> ir.Value:
        """The columns of the heads, times their factors: [D,H,d], its axes in this order."""
        one, matrix = self.one, self.one.matrix
        scaled = bool((one.factor != 1).any())
        if one.shared:
            found = self._view(matrix, perm)
        else:
            array = matrix.tensor.numpy()
            array = np.asarray(array.T if matrix.turned else array)[:, one.columns]
            if scaled and matrix.cast is None:
                array, scaled = (array.astype(np.float64) * one.factor).astype(array.dtype), False
            name = f"{matrix.value.name}_{one.kind}"
            found = initializer(self.graph, name, np.ascontiguousarray(array.transpose(perm)))
        if matrix.cast is not None:
            found = self("Cast", found, to=matrix.cast)
        return self("Mul", found, self._constant("factor", one.factor[None].transpose(perm))) if scaled else found

    def _view(self, matrix: Matrix, perm: tuple[int, int, int]) -> ir.Value:
        """The same of a weight that other layers read, too: moved in the graph, so that the file holds it once."""
        rows = self("Transpose", matrix.value, perm=[1, 0]) if matrix.turned else matrix.value
        return self("Transpose", self._reshaped(rows, [self.one.width, *self.one.columns.shape]), perm=list(perm))


__all__ = ["Absorbed", "absorb", "keep_apart"]
