"""A value that shall be some factor as large, as the rules of operators see it: which weights are scaled instead (`simplify`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

Edit = Callable[[], None]
"""One edit of a weight, carried out after all are found."""


class Scaling(Protocol):
    """One factor on its way up the graph. Both answers are None where it cannot go there."""

    def value(self, value: ir.Value | None) -> list[Edit] | None:
        """What makes `value` that many times as large, where nobody else reads it."""

    def weight(self, value: ir.Value | None) -> Edit | None:
        """What scales the float32 weight behind `value`, if it is this one's alone."""


ScaleRule = Callable[[Scaling, ir.Node], "list[Edit] | None"]
"""(the factor, node) -> what makes its output that many times as large; None: nothing does."""

__all__ = ["Edit", "ScaleRule", "Scaling"]
