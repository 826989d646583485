"""From an output projection to the addition that writes the residual stream: where a block can be taken out.

branch = projection (+ bias, scale, reshape ...)      sum = residual + branch
branch = norm(projection)                             the same: of what is not added nothing is left, whatever its norm would be
branch = roll(projection)                             the same: its tokens in another order (Swin's windows)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import anchor, find, operator, origin
from axformer_passes.operators import NORMS, REDUCTIONS, SCALED, record_of
from axformer_passes.recognise.labelling import Labelling

_READS_SHAPE = frozenset({"Shape", "Size"})
_JOINS = frozenset({"Concat"})
_RESHAPES = frozenset({"Reshape", "Expand", "Unsqueeze", "Squeeze", "Transpose", "Flatten", "Slice"})
_STEPS = 32
"""Nodes of a norm or a roll, at most."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """`sum` = `residual` + `branch`, or three Nones and the reason `why` there is no such place."""

    branch: str | None
    residual: str | None
    sum: str | None
    why: str | None = None


def branch_of(labelling: Labelling, value: ir.Value) -> Branch:
    """Follow `value`, the output of an output projection, to the addition to the residual stream."""
    while True:
        users = [use for use in value.uses() if use.node.op_type not in _READS_SHAPE]
        if len(users) > 1 and (joined := _joined(labelling, value)) is not None:
            value = joined
            continue
        if value.is_graph_output() or len(users) != 1:
            return _none(f"{value.name} is read {len(users)} times on its way to the residual stream, expected once")
        node, index = users[0]
        others = [v for i, v in enumerate(node.inputs) if i != index and v is not None]
        scaled = node.op_type == "Mul" or (node.op_type == "Div" and index == 0)  # a branch of 0 stays 0
        if (
            scaled
            or (node.op_type in _RESHAPES and index == 0)
            or (all(origin(v) is not None for v in others) and len(node.outputs) == 1)
        ):
            value = node.outputs[0]
        elif node.op_type in ("Add", "Sum") and len(others) == 1:
            return _at(labelling, value, others[0], node)
        else:
            return _none(f"{value.name} ends in {node.op_type} ({node.outputs[0].name}), expected an Add")


def _joined(labelling: Labelling, value: ir.Value) -> ir.Value | None:
    """Where all that is made of `value` becomes one tensor again, by the steps of a norm (elementwise ones and reductions) or of a
    roll (parts, joined again).

    x / sqrt(mean(x * x) + c) reads x twice, concat(x[n:], x[:n]) does; nothing else goes in, and one tensor comes out. None where
    it is otherwise.
    """
    made, done = {value}, set[ir.Node]()
    waiting = {labelling.order[anchor(user)]: user for user in _readers(value)}
    while waiting and len(done) < _STEPS:
        node = waiting.pop(min(waiting))
        done.add(node)
        others = [v for v in node.inputs if v is not None and v not in made]
        if len(node.outputs) != 1 or not _is_step(node) or any(origin(v) is None for v in others):
            return None
        (out,) = node.outputs
        if out.is_graph_output():
            return None
        made.add(out)
        waiting |= {labelling.order[anchor(user)]: user for user in _readers(out)}
        if all(made.intersection(user.inputs) == {out} for user in waiting.values()):
            return out
    return None


def _readers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses() if use.node.op_type not in _READS_SHAPE]


def _is_step(node: ir.Node) -> bool:
    known = node.op_type in _RESHAPES or node.op_type in _JOINS
    return known or record_of(node).elementwise or operator(node) in (*NORMS, *REDUCTIONS, *SCALED)


def _at(labelling: Labelling, branch: ir.Value, residual: ir.Value, node: ir.Node) -> Branch:
    shapes = [np.shape(labelling.values[str(v.name)]) for v in (branch, residual, node.outputs[0])]
    if len(set(shapes)) != 1:
        return _none(f"{node.outputs[0].name} adds shapes {shapes[0]} and {shapes[1]}, expected equal ones")
    return Branch(str(branch.name), str(residual.name), str(node.outputs[0].name))


def added_to(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """(the other operand of the one addition that reads `value`, its sum); None where something else reads it."""
    uses = [use for use in value.uses() if use.node.op_type not in _READS_SHAPE]
    if value.is_graph_output() or len(uses) != 1:
        return None
    node, index = uses[0]
    if node.op_type not in ("Add", "Sum") or len(node.inputs) != 2 or node.inputs[1 - index] is None:
        return None
    other = node.inputs[1 - index]
    return None if other is None else (other, node.outputs[0])


def why_not_apart(labelling: Labelling, total: str) -> str | None:
    """Why neither of two blocks that are added to one another can be taken out; None where their sum is added to the stream."""
    value = find(labelling.model.graph, total)
    found = added_to(value)
    if found is None:
        return f"two blocks are added to one another, and {total} is read by more than one Add, which would add it to the stream"
    shapes = [np.shape(labelling.values[str(v.name)]) for v in (value, *found)]
    return (
        None
        if len(set(shapes)) == 1
        else f"{found[1].name} adds shapes {shapes[0]} and {shapes[1]}, expected equal ones"
    )


def _none(why: str) -> Branch:
    return Branch(None, None, None, why)
