"""What probes of several sizes say of every tensor: shapes, and the values of small ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.probe.tracing import Runner, Step, traced

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
MOST = 256
"""Elements of a tensor whose values are kept."""
_STEPS = (Step(0, 0, 0), Step(1, 1, 1), Step(3, 3, 3))


@dataclasses.dataclass(frozen=True)
class Facts:
    """One entry a probe. `shapes`: of every tensor that was computed; `small`: values of those of at most MOST elements."""

    shapes: tuple[dict[str, Shape], ...]
    small: tuple[dict[str, Array], ...]

    @property
    def all_fixed(self) -> bool:
        """Is one probe enough, since all sizes are given?"""
        return len(self.shapes) == 1

    def shape(self, value: ir.Value) -> Shape | None:
        """In the first probe; of an initializer its own."""
        return self.all_shapes(value)[0]

    def all_shapes(self, value: ir.Value) -> tuple[Shape | None, ...]:
        """In every probe."""
        if value.const_value is not None:
            own = tuple(int(n) for n in value.const_value.shape)  # type: ignore[arg-type]
            return (own,) * len(self.shapes)
        return tuple(shapes.get(str(value.name)) for shapes in self.shapes)

    def put(self, value: ir.Value, shapes: tuple[Shape, ...]) -> None:
        """A tensor has other shapes now; what it holds is forgotten."""
        for own, small, shape in zip(self.shapes, self.small, shapes, strict=True):
            own[str(value.name)] = shape
            small.pop(str(value.name), None)

    def like(self, made: ir.Value, known: ir.Value) -> None:
        """A new tensor has the shapes of a known one."""
        for shapes in self.shapes:
            if str(known.name) in shapes:
                shapes[str(made.name)] = shapes[str(known.name)]

    def values(self, value: ir.Value) -> list[Array] | None:
        """In every probe; None where they were not kept."""
        found = [small.get(str(value.name)) for small in self.small]
        return None if any(one is None for one in found) else found  # type: ignore[return-value]


_COUNTING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose sizes depend on what is in a tensor, and not on sizes alone."""


def facts_of(model: ir.Model, runner: Runner) -> Facts | None:
    """Three probes of unlike sizes, one of a graph whose sizes are all fixed; None where the model does not run on them.

    Masks are of ones with zeros at the end, so that what is counted in them is no size.
    """
    if any(node.op_type in _COUNTING for node in model.graph.all_nodes()):
        return None
    fixed = all(isinstance(d, int) for v in model.graph.inputs for d in v.shape or ())
    traces = traced(model, runner, _STEPS[:1] if fixed else _STEPS, padded=True)
    if traces is None:
        return None
    shapes = tuple({name: tuple(np.shape(array)) for name, array in values.items()} for values in traces)
    small = tuple(
        {name: np.asarray(array) for name, array in values.items() if np.size(array) <= MOST} for values in traces
    )
    return Facts(shapes, small)


__all__ = ["Array", "Facts", "facts_of"]
