"""A constant that is added goes to where it costs nothing, or nowhere at all.

    softmax(q @ (k + b)^T)                   =  softmax(q @ k^T)                  q.b is the same for all keys
    softmax(..) @ (v + b) @ W + c            =  softmax(..) @ v @ W + (c + b W)   rows of probabilities add up to 1
    LayerNorm(y + b + r),  r = norm(..) + n  =  LayerNorm(y + r'),  r' = norm(..) + (n + b), and who else reads r' takes b away

The bias of a product goes where everybody who reads its sum can take it in: a rule for each operator says what becomes of a shift
of its input. What a softmax forgets, and what a bias that is there anyway takes up, ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import constant
from axformer_passes.operators import float_matrix, record_of
from axformer_passes.probe import Facts
from axformer_passes.registry import FloatArray, Moving, Stuck, least
from axformer_passes.simplify.scales import put

GEMM_WITHOUT_BIAS = 11
"""The operator set from which on a Gemm needs none."""


def fold_offsets(model: ir.Model, facts: Facts) -> int:
    """Edit `model` in place; returns how many additions went.

    First those that go into a norm, since they need the biases of queries and values to end in; then all others.
    """
    count, opset = 0, model.opset_imports.get("", 0)
    for hoisting in (True, False):
        for node in list(model.graph):
            bias = _bias_of(node)
            if bias is None or (node.op_type == "Gemm" and opset < GEMM_WITHOUT_BIAS):
                continue
            slot, vector = bias
            shifts = _Shifts(facts, opset, node)
            try:
                if hoisting:
                    shifts.hoist(node, vector)
                else:
                    shifts.shift(node.outputs[0], -vector)
            except Stuck:
                continue
            shifts.commit()
            _take_out(node, slot)
            count += 1
    return count


def _bias_of(node: ir.Node) -> tuple[int, FloatArray] | None:
    """(slot, its values) of a constant that the node adds."""
    if node.domain or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        found = constant(node.inputs[2])
        if found is None or found.dtype != np.float32:
            return None
        return 2, np.asarray(found, np.float64) * node.attributes.get_float("beta", 1.0)
    if node.op_type == "Add":
        for slot in (0, 1):
            found, other = constant(node.inputs[slot]), node.inputs[1 - slot]
            if found is not None and found.dtype == np.float32 and other is not None and _is_product(other):
                return slot, np.asarray(found, np.float64)
    return None


def _is_product(value: ir.Value) -> bool:
    """Is it x @ weight? Other constants are no biases: a mask that is made of sums needs its numbers as they are."""
    node = value.producer()
    return (
        node is not None and not node.domain and node.op_type == "MatMul" and float_matrix(node.inputs[1]) is not None
    )


def _take_out(node: ir.Node, slot: int) -> None:
    if node.op_type == "Gemm":
        node.replace_input_with(2, None)
        node.resize_inputs(2)
        return
    kept = node.inputs[1 - slot]
    assert kept is not None and node.graph is not None
    node.outputs[0].replace_all_uses_with(kept)
    node.graph.remove(node, safe=True)


def forgotten(value: ir.Value, facts: Facts, opset: int) -> bool:
    """Would nobody see it, if `value` grew by something that is the same along its last axis?"""
    try:
        _Shifts(facts, opset, None).shift_rows(value)
    except Stuck:
        return False
    return True


class _Shifts:
    """The edits that make up for one constant, that of `going`; nothing is edited before `commit`."""

    def __init__(self, facts: Facts, opset: int, going: ir.Node | None) -> None:
        self._facts, self.opset, self._going = facts, opset, going
        self._added: dict[ir.Value, FloatArray] = {}

    def commit(self) -> None:
        """Carry all out."""
        for value, added in self._added.items():
            assert value.const_value is not None
            put(value, np.asarray(value.const_value.numpy(), np.float64) + added)

    # -- upwards -------------------------------------------------------------------------------------------------

    def hoist(self, node: ir.Node, vector: FloatArray) -> None:
        """Let the other side of the sum that reads this bias bring it along. Raises: Stuck."""
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.domain:
            raise Stuck
        total = uses[0].node
        other = total.inputs[1 - uses[0].idx]
        if other is None or constant(other) is not None or other is node.outputs[0]:
            raise Stuck
        if len(self.shape(node.outputs[0])) != len(self.shape(other)):
            raise Stuck
        self.raised(other, vector, but=total)

    def raised(self, value: ir.Value, delta: FloatArray, but: ir.Node) -> None:
        """Make `value` larger by `delta` where it comes from; all that read it, except `but`, make up for it. Raises: Stuck."""
        node = value.producer()
        if node is None or value.is_graph_output():
            raise Stuck
        rule = record_of(node).raises
        if rule is None:
            raise Stuck
        rule(self, node, delta)
        self._spread(value, delta, but)

    # -- downwards -----------------------------------------------------------------------------------------------

    def shift(self, value: ir.Value, delta: FloatArray) -> None:
        """`value` has grown by `delta` (broadcast from the right): all that read it make up for it. Raises: Stuck."""
        self._spread(value, delta, None)

    def _spread(self, value: ir.Value, delta: FloatArray, but: ir.Node | None) -> None:
        if value.is_graph_output():
            raise Stuck
        for node, slot in value.uses():
            if node is not but:
                self._through(node, slot, delta)

    def _through(self, node: ir.Node, slot: int, delta: FloatArray) -> None:
        if not delta.any():
            return
        if node.domain or len(node.outputs) != 1 or node is self._going:
            raise Stuck  # what would end in the constant that goes would be lost with it
        record = record_of(node)
        if node.op_type == "Shape":
            return
        if record.orderly:
            self._move(node, [delta] * len(self._facts.shapes))
        elif record.shifts is not None:
            record.shifts(self, node, slot, delta)
        else:
            raise Stuck

    def _move(self, node: ir.Node, deltas: Sequence[FloatArray]) -> None:
        """Carry a shift, one entry a probe, through Reshapes and Transposes, until it is the same whatever the sizes are."""
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        before, after = self._facts.all_shapes(source), self._facts.all_shapes(out)
        moved = list[FloatArray]()
        for delta, shape, target in zip(deltas, before, after, strict=True):
            if shape is None or target is None:
                raise Stuck
            carried = record_of(node).moves
            assert carried is not None
            given = (None,) * (len(node.inputs) - 1)
            moved.append(carried(Moving(node, 0, (target,), given), [np.broadcast_to(delta, shape)]))
        fewest = [least(one) for one in moved]
        if all(np.array_equal(one, fewest[0]) for one in fewest) and (len(fewest) > 1 or self._facts.all_fixed):
            self.shift(out, fewest[0])
            return
        if out.is_graph_output():
            raise Stuck
        for user, _ in out.uses():
            if not (record_of(user).orderly or (user.op_type == "Shape" and not user.domain)) or user is self._going:
                raise Stuck
            if user.op_type != "Shape":
                self._move(user, moved)

    def shift_rows(self, value: ir.Value) -> None:
        """`value` has grown by something that is the same along its last axis. Raises: Stuck."""
        if value.is_graph_output():
            raise Stuck
        for node, slot in value.uses():
            rule = record_of(node).row_shifts
            if rule is not None:
                rule(self, node, slot)
            elif node.op_type != "Shape" or node.domain:
                raise Stuck

    # -- ends ----------------------------------------------------------------------------------------------------

    def add(self, value: ir.Value | None, delta: FloatArray) -> None:
        """To a constant, which keeps its shape."""
        found = constant(value)
        if value is None or found is None or found.dtype != np.float32 or len(value.uses()) != 1:
            raise Stuck
        try:
            grown = np.broadcast_to(_squeezed(delta, found.ndim), found.shape)
        except ValueError:
            raise Stuck from None
        self._added[value] = self._added[value] + grown if value in self._added else np.array(grown)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The probed shape. Raises: Stuck where it is not known."""
        shape = self._facts.shape(value)
        if shape is None:
            raise Stuck
        return shape


def _squeezed(array: FloatArray, rank: int) -> FloatArray:
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    return array


__all__ = ["fold_offsets", "forgotten"]
