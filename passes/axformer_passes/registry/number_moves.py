"""What operators do to single numbers, as their rules say it: move them, or scale and shift them by a constant.

Moves are carried out on arrays that stand for the numbers: where each comes from, its factor, its offset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Moving:
    """One move, in one probe.

    output   which of the outputs is wanted
    shapes   of the outputs
    given    the integers of each input behind the data; None: absent, or known to depend on sizes alone
    """

    node: ir.Node
    output: int
    shapes: tuple[tuple[int, ...], ...]
    given: tuple[npt.NDArray[np.int64] | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output that is wanted."""
        return self.shapes[self.output]

    @property
    def axis(self) -> int:
        """The node's `axis`, 0 by default."""
        return self.node.attributes.get_int("axis", 0)


MoveRule = Callable[[Moving, Sequence[Array]], Array]
"""(move, data: of the first input, or of all where the operator `joins`) -> the output.

Raises: ValueError, LookupError, TypeError, AssertionError where it cannot be carried out.
"""
AffineRule = Callable[[int, FloatArray], tuple[FloatArray, FloatArray] | None]
"""(slot of the constant, the constant) -> (factor, offset) for the other operand; None where it is no such thing."""
