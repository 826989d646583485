"""The table of fused operators: one rule each, its specification in primitive steps and what a cut may narrow in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import constant
from axformer_passes.prepare.recipes.recipe import Array, FusedNode, Recipe


@dataclasses.dataclass(frozen=True)
class Lowered:
    """The nodes that a lowered group consists of now, by role."""

    members: Mapping[str, ir.Node]
    form: FusedNode

    def array(self, role: str, slot: int) -> Array:
        """The constant that the member reads at `slot`. Raises: LookupError where it is not one any more."""
        array = constant(self.members[role].inputs[slot])
        if array is None:
            raise LookupError(f"input {slot} of {role} is computed")
        return array

    def sizes(self, role: str) -> tuple[int, ...]:
        """The sizes of a Split."""
        if self.form.opset < 13:
            return tuple(self.members[role].attributes.get_ints("split"))
        return tuple(int(n) for n in self.array(role, 1))

    def target(self, role: str, axis: int) -> int:
        """One entry of the constant target of a Reshape."""
        return int(np.asarray(self.array(role, 1))[axis])


Lowering = Callable[[FusedNode, Recipe], None]
NarrowRule = Callable[[Lowered], dict[str, ir.Attr]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How an operator is lowered, and which attributes the node has after a cut."""

    lower: Lowering
    narrow: NarrowRule


RULES: dict[str, Rule] = {}
"""By operator: "Attention" for the default domain, "com.microsoft::Attention" for others."""


def unchanged(found: Lowered) -> dict[str, ir.Attr]:
    """No attribute depends on what a cut removes."""
    return {}


def fused(*operators: str, narrow: NarrowRule = unchanged) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of these operators."""

    def register(function: Lowering) -> Lowering:
        RULES.update(dict.fromkeys(operators, Rule(function, narrow)))
        return function

    return register
