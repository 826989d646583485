"""Where each number of a tensor comes from: followed upwards through what only moves numbers, repeats them, or scales and shifts
them by constants.

    x @ W -> + b -> Reshape -> Transpose -> x 0.35      out[i] = factor[i] * (x @ W)[place[i]] + offset[i]

The moves are executed on index arrays, with the shapes of one probe. What a move reads beside its data must be constant or a sum of
products of sizes, so that probes of unlike sizes speak for all (`constants/facts.py`); for the target of a Reshape or Expand it is
enough that it depends on sizes alone. Anything else raises `Unfollowed`, and says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.graph import anchor, constant, made_of_shapes
from axformer_passes.probe.facts import Facts

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
_SHAPED = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_MOVES = _SHAPED | {"Concat", "Expand", "Gather", "Identity", "Slice", "Split", "Tile", "Transpose"}
_TOLD = frozenset({"Expand", "Reshape"})
_CONSTANTS = frozenset({"Add", "Sub", "Mul", "Div"})


class Unfollowed(Exception):
    """Numbers cannot be followed through this; the text says why."""


@dataclasses.dataclass(frozen=True)
class Trail:
    """out = factor * base.reshape(-1)[place] + offset, in one probe; three arrays of the tensor's shape."""

    place: IntArray
    factor: FloatArray
    offset: FloatArray

    @property
    def moves_alone(self) -> bool:
        """Are the numbers as they were?"""
        return bool((self.factor == 1).all() and not self.offset.any())

    def onto(self, shape: tuple[int, ...]) -> Trail:
        """Broadcast. Raises: Unfollowed."""
        try:
            place, factor, offset = (np.broadcast_to(one, shape) for one in self._arrays)
        except ValueError:
            raise Unfollowed(f"{list(self.place.shape)} cannot be repeated to {list(shape)}") from None
        return Trail(place, factor, offset)

    @property
    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return self.place, self.factor, self.offset


def product_of(value: ir.Value | None) -> ir.Node | None:
    """The MatMul or Gemm that makes `value`, whose second operand is a constant matrix; None where it is something else."""
    node = value.producer() if value is not None else None
    if (
        node is None
        or node.domain
        or node.op_type not in ("MatMul", "Gemm")
        or node.attributes.get_int("transA", 0) != 0
    ):
        return None
    return node if matrix_of(node) is not None and not is_constant(node.inputs[0]) else None


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The constant matrix [R,C] of a product: its initializer, is that [C,R]?, and the type that it is cast to (None: its own)."""

    value: ir.Value
    turned: bool
    cast: int | None

    @property
    def tensor(self) -> ir.TensorProtocol:
        """What the initializer holds."""
        assert self.value.const_value is not None
        return self.value.const_value

    @property
    def columns(self) -> int:
        """C."""
        return int(self.tensor.shape[0 if self.turned else 1])  # type: ignore[arg-type]

    @property
    def dtype(self) -> ir.DataType:
        """Element type of what the product reads."""
        return self.tensor.dtype if self.cast is None else ir.DataType(self.cast)


def matrix_of(node: ir.Node) -> Matrix | None:
    """What a product reads as its second operand; None where that is no plain matrix of numbers."""
    value, turned, cast = node.inputs[1], bool(node.attributes.get_int("transB", 0)), None
    while value is not None and (maker := value.producer()) is not None:
        if maker.domain or maker.op_type not in ("Transpose", "Identity", "Cast"):
            return None
        if maker.op_type == "Cast":
            if cast is not None:
                return None
            cast = maker.attributes.get_int("to")
        turned ^= maker.op_type == "Transpose"
        value = maker.inputs[0]
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    floats = all(t.is_floating_point() for t in (value.const_value.dtype, ir.DataType(cast or 1)))
    return Matrix(value, turned, cast) if floats else None


def is_constant(value: ir.Value | None) -> bool:
    """Is it an initializer, or the Cast of one?"""
    return value is not None and number_of(value) is not None


def number_of(value: ir.Value) -> npt.NDArray[Any] | None:
    """The array of an initializer, or of the Cast of one; None where it is computed otherwise."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Cast", "Identity") or node.inputs[0] is None:
        return constant(value)
    array = number_of(node.inputs[0])
    return array if array is None or node.op_type == "Identity" else array.astype(_cast_to(node).numpy())


def _cast_to(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes.get_int("to", int(ir.DataType.FLOAT)))


def base_of(value: ir.Value) -> ir.Node:
    """The one product that all numbers of `value` come from. Raises: Unfollowed."""
    queue, seen, found = [value], set[ir.Value](), set[ir.Node]()
    while queue:
        one = queue.pop()
        product, node = product_of(one), one.producer()
        if product is not None:
            found.add(product)
        elif node is None or node.domain or node.op_type not in _MOVES | _CONSTANTS:
            what = f"the input {one.name!r}" if node is None else f"{node.op_type} {anchor(node)!r}"
            raise Unfollowed(
                f"its right side comes from {what}, which is neither moved nor a projection by a constant matrix"
            )
        else:
            sources = node.inputs[:1] if node.op_type in _MOVES - {"Concat"} else node.inputs
            new = [v for v in sources if v is not None and v not in seen and not is_constant(v)]
            seen.update(new)
            queue.extend(new)
    if len(found) != 1:
        raise Unfollowed(f"its right side comes from {len(found)} projections, expected 1")
    return found.pop()


def product_behind(value: ir.Value) -> ir.Node | None:
    """The product that `value` is moved from, a constant added or not; None where it is made otherwise."""
    while product_of(value) is None:
        node = value.producer()
        sources = [v for v in node.inputs if v is not None and not is_constant(v)] if node is not None else []
        if node is None or node.domain or not sources:
            return None
        if node.op_type not in _MOVES | _CONSTANTS or (len(sources) > 1 and node.op_type not in _MOVES - {"Concat"}):
            return None
        value = sources[0]
    return product_of(value)


def way(value: ir.Value) -> Iterator[ir.Value]:
    """`value`, and what it is moved from, as long as that is one tensor."""
    while True:
        yield value
        node = value.producer()
        if node is None or node.domain or node.op_type not in _MOVES - {"Concat"} or node.inputs[0] is None:
            return
        value = node.inputs[0]


class Trails:
    """The trails of the tensors of one probe back to one product `base` (its bias is offset), or to any tensor `base`."""

    def __init__(self, facts: Facts, sizes: frozenset[ir.Value], probe: int, base: ir.Value) -> None:
        self._facts, self._sizes, self._probe, self._base = facts, sizes, probe, base
        self._known: dict[ir.Value, Trail] = {}

    def of(self, value: ir.Value) -> Trail:
        """Raises: Unfollowed."""
        if value not in self._known:
            self._known[value] = self._begin() if value is self._base else self._through(value)
        return self._known[value]

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """In this probe. Raises: Unfollowed."""
        found = self._facts.all_shapes(value)[self._probe] if value is not None else None
        if found is None:
            raise Unfollowed(f"the shape of {value.name if value is not None else None!r} is not known")
        return found

    def _begin(self) -> Trail:
        shape = self.shape(self._base)
        place = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
        factor, offset = 1.0, np.zeros(1)
        node = product_of(self._base)
        if node is not None and node.op_type == "Gemm":
            factor = node.attributes.get_float("alpha", 1.0)
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                offset = self._number(node.inputs[2]) * node.attributes.get_float("beta", 1.0)
        return Trail(place, np.full(shape, factor), np.zeros(shape) + offset)

    def _through(self, value: ir.Value) -> Trail:
        node = value.producer()
        if node is None:
            raise Unfollowed(f"{value.name!r} is no projection")
        if not node.domain and node.op_type in _MOVES:
            return self._moved(node, value)
        if not node.domain and node.op_type in _CONSTANTS:
            return self._combined(node, value)
        raise Unfollowed(f"{node.op_type} {anchor(node)!r} is neither a move nor a projection")

    def _combined(self, node: ir.Node, value: ir.Value) -> Trail:
        """A constant is added, subtracted, a factor or a divisor."""
        slot = next((i for i in (1, 0) if is_constant(node.inputs[i])), None)
        data = None if slot is None else node.inputs[1 - slot]
        if slot is None or data is None or (slot == 0 and node.op_type == "Div"):
            raise Unfollowed(f"{node.op_type} {anchor(node)!r} combines it with what is no constant")
        shape, other = self.shape(value), self._number(node.inputs[slot])
        trail = self.of(data).onto(shape)
        if node.op_type in ("Mul", "Div"):
            by = other if node.op_type == "Mul" else 1 / np.where(other == 0, np.nan, other)
            return Trail(trail.place, trail.factor * by, trail.offset * by)
        if node.op_type == "Sub":
            sign = -1.0 if slot == 0 else 1.0  # c - x
            return Trail(trail.place, trail.factor * sign, sign * (trail.offset - other))
        return Trail(trail.place, trail.factor, trail.offset + other)

    def _moved(self, node: ir.Node, value: ir.Value) -> Trail:
        if node.op_type == "Concat":
            parts = [self.of(v)._arrays for v in node.inputs if v is not None]
            axis = node.attributes.get_int("axis")
            place, factor, offset = (np.concatenate(some, axis) for some in zip(*parts, strict=True))
            return Trail(place, factor, offset)
        source = node.inputs[0]
        if source is None:
            raise Unfollowed(f"{node.op_type} {anchor(node)!r} moves nothing")
        given = [self._integers(node, v) for v in node.inputs[1:]]
        trail = self.of(source)
        if node.op_type == "Expand":
            return trail.onto(self.shape(value))
        try:
            place, factor, offset = (self._move(node, value, one, given) for one in trail._arrays)
        except (ValueError, LookupError, TypeError) as error:
            raise Unfollowed(f"{node.op_type} {anchor(node)!r}: {error}") from None
        return Trail(place, factor, offset)

    def _move(
        self, node: ir.Node, value: ir.Value, array: npt.NDArray[Any], given: list[IntArray | None]
    ) -> npt.NDArray[Any]:
        kind, shape, axis = node.op_type, self.shape(value), node.attributes.get_int("axis", 0)
        if kind in _SHAPED:
            return array.reshape(shape)
        if kind == "Transpose":
            return array.transpose(node.attributes.get_ints("perm", list(range(array.ndim))[::-1]))
        if kind == "Tile":
            return np.tile(array, given[0])  # type: ignore[arg-type]
        if kind == "Gather":
            return np.take(array, given[0], axis)  # type: ignore[arg-type]
        if kind == "Split":
            ends = np.cumsum([self.shape(v)[axis] for v in node.outputs])[:-1]
            return np.split(array, ends, axis)[value.index() or 0]
        if kind == "Slice":
            return array[_window(array.ndim, given)]
        return array

    def _integers(self, node: ir.Node, value: ir.Value | None) -> IntArray | None:
        """What a move reads beside its data. Raises: Unfollowed where that could differ from input to input."""
        if value is None:
            return None
        array = constant(value)
        if array is not None:
            return np.asarray(array, np.int64)
        if node.op_type in _TOLD and made_of_shapes(value):
            return None
        found = self._facts.values(value) if value in self._sizes else None
        if found is None:
            raise Unfollowed(
                f"{node.op_type} {anchor(node)!r} moves by {value.name!r}, which is not made of sizes alone"
            )
        return np.asarray(found[self._probe], np.int64)

    def _number(self, value: ir.Value | None) -> FloatArray:
        array = number_of(value) if value is not None else None
        if array is None:
            raise Unfollowed(f"{value.name if value is not None else None!r} is no constant")
        return np.asarray(array, np.float64)


def _window(rank: int, given: list[IntArray | None]) -> tuple[slice, ...]:
    """The index of a Slice with these starts, ends, axes and steps."""
    starts, ends, axes, steps = [*given, None, None][:4]
    if starts is None or ends is None:
        raise ValueError("its bounds are attributes (before operator set 10)")
    axes = np.arange(starts.size) if axes is None else axes % rank
    steps = np.ones(starts.size, np.int64) if steps is None else steps
    index = [slice(None)] * rank
    for start, end, axis, step in zip(*(a.reshape(-1).tolist() for a in (starts, ends, axes, steps)), strict=True):
        if step < 0:
            raise ValueError("it runs backwards")
        index[axis] = slice(start, end, step)
    return tuple(index)


__all__ = [
    "FloatArray",
    "IntArray",
    "Trail",
    "Trails",
    "Unfollowed",
    "base_of",
    "is_constant",
    "matrix_of",
    "product_behind",
    "product_of",
    "way",
]
