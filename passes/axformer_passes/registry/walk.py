"""The state of a walk of channel labels through a graph, as the rules of operators see it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import Refusal
from axformer_passes.graph import anchor, constant, origin
from axformer_passes.probe import Array
from axformer_passes.registry.classes import Classes, IntArray, distinct, labels_in


@dataclasses.dataclass(frozen=True)
class Carrier:
    """The labelled axes of one weight, one in most: position (i, j, ..) of `axes` has the label first + its place in C order.

    role   "row" (reads) or "column" (writes)
    """

    initializer: str
    axes: tuple[int, ...]
    first: int
    shape: tuple[int, ...]
    node: str
    role: str

    @property
    def size(self) -> int:
        """How many labels there are."""
        return math.prod(self.shape)

    @property
    def labels(self) -> IntArray:
        """int64[shape]: the labels."""
        return (self.first + np.arange(self.size)).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Product:
    """One contraction: `weight` is the initializer's name, None for activation x activation."""

    node: ir.Node
    weight: str | None
    rows: Carrier | None
    columns: Carrier | None


class Walk:
    """The state of one walk, as the rules see it."""

    def __init__(self, model: ir.Model, values: Mapping[str, Array]) -> None:
        self.model = model
        self.values = values
        self.classes = Classes()
        self.of: dict[str, IntArray] = {}
        self.carriers: list[Carrier] = []
        self.products: list[Product] = []
        self.softmaxes: list[ir.Node] = []
        self.frozen: list[int] = []
        self.refusals: list[Refusal] = []

    # -- reading -------------------------------------------------------------------------------------------------

    def has(self, value: ir.Value | None) -> bool:
        """Does this tensor carry labels?"""
        return value is not None and value.name in self.of

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The probed shape."""
        if str(value.name) in self.values:
            return tuple(self.values[str(value.name)].shape)
        behind = origin(value)
        if behind is None or behind.value.const_value is None:
            raise KeyError(value.name)
        shape = tuple(int(n) for n in behind.value.const_value.shape)  # type: ignore[arg-type]
        return tuple(shape[a] for a in behind.axes)

    def labels(self, value: ir.Value | None) -> IntArray:
        """The label array; all -1 for a tensor without labels. The operator's specification demands the input."""
        assert value is not None
        if self.has(value):
            return self.of[str(value.name)]
        return np.full(self.shape(value), -1, dtype=np.int64)

    def integers(self, value: ir.Value | None) -> IntArray | None:
        """The concrete value of an integer tensor, constant or probed; None where the input is missing."""
        if value is None:
            return None
        array = constant(value)
        return np.asarray(self.values[str(value.name)] if array is None else array).astype(np.int64)

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, value: ir.Value, labels: IntArray) -> None:
        """Give `value` its label array (broadcast to its probed shape); all -1 is the same as none."""
        if (distinct(labels)[0] >= 0).any():
            self.of[str(value.name)] = np.broadcast_to(labels, self.shape(value))

    def born(self, weight: ir.Value, axes: int | tuple[int, ...], node: ir.Node, role: str) -> Carrier:
        """New labels for one axis of a weight, or for several together."""
        axes = (axes,) if isinstance(axes, int) else axes
        shape = tuple(int(weight.const_value.shape[axis]) for axis in axes)  # type: ignore[union-attr,arg-type]
        first = self.classes.new(math.prod(shape))
        carrier = Carrier(str(weight.name), axes, int(first[0]) if first.size else 0, shape, anchor(node), role)
        self.carriers.append(carrier)
        return carrier

    def meet(self, arrays: Iterable[IntArray]) -> IntArray:
        """Unite arrays of labels elementwise (broadcasting) and return the union."""
        out: IntArray | None = None
        for labels in arrays:
            if out is None:
                out = labels
                continue
            a, b = np.broadcast_arrays(out, labels)
            self.classes.unite(a, b)
            out = a if (distinct(a)[0] >= 0).all() else np.where(a >= 0, a, b)
        assert out is not None
        return out

    def tie(self, labels: IntArray, axis: int) -> None:
        """Unite all labels along `axis`."""
        moved = np.moveaxis(labels, axis, -1)
        if moved.shape[-1] > 1:
            self.classes.unite(moved, np.broadcast_to(any_along(moved, -1), moved.shape))

    def freeze(self, node: ir.Node, reason: str) -> None:
        """No rule for this node: whatever enters it stays whole."""
        for value in node.inputs:
            if value is not None and self.has(value):
                self.frozen.extend(labels_in(self.of[str(value.name)]).tolist())
        self.refusals.append(Refusal(anchor(node), node.op_type, reason))


def any_along(labels: IntArray, axis: int) -> IntArray:
    """One label of those along `axis` (kept, of size 1): the first position may have none, behind padding or a prefix."""
    shape = list(labels.shape)
    shape[axis] = 1
    return np.broadcast_to(distinct(labels)[0].max(axis=axis, keepdims=True), shape)


ChannelRule = Callable[[Walk, ir.Node], None]
