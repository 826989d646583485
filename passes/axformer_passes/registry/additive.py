"""A value that has grown by a constant, as the rules of operators see it: what each does with it, up to where it ends.

The bias of a product is left out; then all that read its sum make up for it, operator by operator (`simplify`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from axformer_passes.registry.number_moves import FloatArray


class Stuck(Exception):
    """Somebody reads a shifted value and cannot make up for it."""


class Shifting(Protocol):
    """The edits that make up for one constant; none is carried out before all are found."""

    opset: int

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The probed shape. Raises: Stuck where it is not known."""

    def shift(self, value: ir.Value, delta: FloatArray) -> None:
        """`value` has grown by `delta` (broadcast from the right): all that read it make up for it. Raises: Stuck."""

    def shift_rows(self, value: ir.Value) -> None:
        """`value` has grown by something that is the same along its last axis: all forget it. Raises: Stuck."""

    def raised(self, value: ir.Value, delta: FloatArray, but: ir.Node) -> None:
        """`value` shall be larger by `delta`; all that read it, except `but`, make up for it. Raises: Stuck."""

    def add(self, value: ir.Value | None, delta: FloatArray) -> None:
        """To a constant, which keeps its shape and has one reader. Raises: Stuck."""


ShiftRule = Callable[[Shifting, ir.Node, int, FloatArray], None]
"""(edits, node, slot, by how much that input has grown): make up for it, or hand it on. Raises: Stuck."""

RowShiftRule = Callable[[Shifting, ir.Node, int], None]
"""(edits, node, slot of an input that has grown by something that is the same along its last axis): forget it, or hand it on.
Raises: Stuck."""
RaiseRule = Callable[[Shifting, ir.Node, FloatArray], None]
"""(edits, node, by how much its output shall grow): let a bias of its own bring it. Raises: Stuck."""


def least(array: FloatArray) -> FloatArray:
    """Axes along which it is the same become 1; those in front go."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1 and (array == array.take([0], axis)).all():
            array = array.take([0], axis)
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return array


__all__ = ["RaiseRule", "RowShiftRule", "ShiftRule", "Shifting", "Stuck", "least"]
