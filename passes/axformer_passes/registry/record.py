"""The registry of operators: one record an operator, of all that is known of it.

A file of `axformer_passes.operators` states what its kind of operator does, one decorated function a concern:

    @channels("Softmax")    which labels are united, which the output carries
    @tokens("Softmax")      which tokens of its inputs are needed where some tokens of the output are wanted
    @cut_edit("Split")      what counts or names channels, and must be written anew when some are cut
    @moves("Transpose")     where its numbers come from, if it only moves them
    @affine("Mul")          by what a constant operand scales and shifts the other
    @shifts("Softmax")      what it does with an input that has grown by a constant
    @row_shifts("Softmax")  the same for what differs from row to row, but not along the last axis
    @raises("Add")          which bias of its own lets its output grow by a constant
    @scales("MatMul")       which weights let its output grow by a factor
    @unrounded("Shape")     what becomes of it in a twin that does not round quantised activations
    @cost("MatMul")         multiply-accumulates

Whoever walks a graph asks `record_of(node)` and leaves alone what nothing is stated of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import onnx_ir as ir
from onnx import NodeProto

from axformer_passes.graph import operator
from axformer_passes.registry.additive import RaiseRule, RowShiftRule, ShiftRule
from axformer_passes.registry.cut_edits import CutRule
from axformer_passes.registry.number_moves import AffineRule, MoveRule
from axformer_passes.registry.scaling import ScaleRule
from axformer_passes.registry.token_rows import TokenRule
from axformer_passes.registry.unrounding import UnroundedRule
from axformer_passes.registry.walk import ChannelRule

CostRule = Callable[[ir.Node, list[tuple[int, ...]], tuple[int, ...]], int]
"""(node, shapes of its inputs, shape of its first output) -> multiply-accumulates."""


@dataclasses.dataclass
class Operator:
    """What is stated of one operator; None: nothing.

    channels     how labels pass it
    tokens       which tokens of its inputs some tokens of its outputs are made of
    cut_edit     what is edited where its channels are cut; None: shapes say it all
    cost         multiply-accumulates; None: none, as of lookups and elementwise work
    moves        where its numbers come from; None: it does more than move them
    affine       what a constant operand does to the other
    shifts       what becomes of an input that has grown by a constant; None: nobody makes up for it
    row_shifts   what becomes of an input that has grown by a number a row; None: nobody forgets it
    raises       how its output grows by a constant; None: nothing of its own brings it
    scales       how its output grows by a factor; None: no weight of its own brings it
    unrounded    its twin on floats; None: it has none, beside operators that only move numbers
    bears        labels are born in its weights, so that its rule runs on inputs without labels, too
    elementwise  an entry of its output is made of the same entry of its inputs, so constants can be narrowed through it
    orderly      it moves every number of its input once: nothing is picked, repeated or joined
    joins        it moves the numbers of all of its inputs
    told         its second input states the shape of the output, which need not be known beside it
    """

    channels: ChannelRule | None = None
    tokens: TokenRule | None = None
    cut_edit: CutRule | None = None
    cost: CostRule | None = None
    moves: MoveRule | None = None
    affine: AffineRule | None = None
    shifts: ShiftRule | None = None
    row_shifts: RowShiftRule | None = None
    raises: RaiseRule | None = None
    scales: ScaleRule | None = None
    unrounded: UnroundedRule | None = None
    bears: bool = False
    elementwise: bool = False
    orderly: bool = False
    joins: bool = False
    told: bool = False


OPERATORS: dict[str, Operator] = {}
"""By type; `com.microsoft` operators by "com.microsoft::Type"."""
_UNKNOWN = Operator()
_Rule = TypeVar("_Rule", bound=Callable[..., Any])


def record_of(node: ir.Node) -> Operator:
    """The record of a node's operator; an empty one where nothing is stated."""
    return OPERATORS.get(operator(node), _UNKNOWN)


def record_of_proto(node: NodeProto) -> Operator:
    """`record_of` a node of a protobuf."""
    return OPERATORS.get(f"{node.domain}::{node.op_type}" if node.domain else node.op_type, _UNKNOWN)


def channels(*operators: str, bears: bool = False, elementwise: bool = False) -> Callable[[ChannelRule], ChannelRule]:
    """Register a function as what these operators do to channels; `bears`, `elementwise`: see `Operator`."""
    return _stated("channels", operators, bears=bears, elementwise=elementwise)


def tokens(*operators: str) -> Callable[[TokenRule], TokenRule]:
    """Register a function as what these operators need of the tokens of their inputs."""
    return _stated("tokens", operators)


def cut_edit(*operators: str) -> Callable[[CutRule], CutRule]:
    """Register a function as what is edited in these operators where their channels are cut."""
    return _stated("cut_edit", operators)


def moves(
    *operators: str, orderly: bool = False, joins: bool = False, told: bool = False
) -> Callable[[MoveRule], MoveRule]:
    """Register a function as where the numbers of these operators come from; `orderly`, `joins`, `told`: see `Operator`."""
    return _stated("moves", operators, orderly=orderly, joins=joins, told=told)


def affine(*operators: str) -> Callable[[AffineRule], AffineRule]:
    """Register a function as what a constant operand of these operators does to the other."""
    return _stated("affine", operators)


def shifts(*operators: str) -> Callable[[ShiftRule], ShiftRule]:
    """Register a function as what these operators do with an input that has grown by a constant."""
    return _stated("shifts", operators)


def row_shifts(*operators: str) -> Callable[[RowShiftRule], RowShiftRule]:
    """Register a function as what these operators do with an input that has grown by a number a row."""
    return _stated("row_shifts", operators)


def raises(*operators: str) -> Callable[[RaiseRule], RaiseRule]:
    """Register a function as how the output of these operators grows by a constant."""
    return _stated("raises", operators)


def scales(*operators: str) -> Callable[[ScaleRule], ScaleRule]:
    """Register a function as how the output of these operators grows by a factor."""
    return _stated("scales", operators)


def unrounded(*operators: str) -> Callable[[UnroundedRule], UnroundedRule]:
    """Register a function as what becomes of these operators in a twin that does not round."""
    return _stated("unrounded", operators)


def cost(*operators: str) -> Callable[[CostRule], CostRule]:
    """Register a function as the multiply-accumulates of these operators."""
    return _stated("cost", operators)


def _stated(concern: str, operators: tuple[str, ...], **flags: bool) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        for name in operators:
            record = OPERATORS.setdefault(name, Operator())
            assert getattr(record, concern) is None, f"{name}: its {concern} are stated twice"
            for field, value in {concern: rule, **flags}.items():
                setattr(record, field, value)
        return rule

    return register


__all__ = [
    "OPERATORS", "Operator", "affine", "channels", "cost", "cut_edit", "moves", "raises", "record_of", "record_of_proto",
    "row_shifts", "scales", "shifts", "tokens", "unrounded",
]  # fmt: skip
