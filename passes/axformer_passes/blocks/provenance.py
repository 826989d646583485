"""Where each number of a tensor comes from: followed upwards through what only moves numbers, repeats them, or scales and shifts
them by constants.

    x @ W -> + b -> Reshape -> Transpose -> x 0.35      out[i] = factor[i] * (x @ W)[place[i]] + offset[i]

What moves numbers, and what scales or shifts them by a constant, is stated of each operator (`registry`). Moves are executed on
index arrays, with the shapes of one probe. What a move reads beside its data must be constant or a sum of products of sizes, so
that probes of unlike sizes speak for all (`probe.Facts`); for the target of a Reshape or Expand it is enough that it depends on
sizes alone. Anything else raises `Unfollowed`, and says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.graph import anchor, constant, made_of_shapes
from axformer_passes.operators import Operator, record_of
from axformer_passes.probe import Facts
from axformer_passes.registry import AffineRule, Moving

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


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
            place, factor, offset = (np.broadcast_to(one, shape) for one in self.arrays)
        except ValueError:
            raise Unfollowed(f"{list(self.place.shape)} cannot be repeated to {list(shape)}") from None
        return Trail(place, factor, offset)

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """place, factor and offset."""
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
        elif node is None or not _follows(node):
            what = f"the input {one.name!r}" if node is None else f"{node.op_type} {anchor(node)!r}"
            raise Unfollowed(
                f"its right side comes from {what}, which is neither moved nor a projection by a constant matrix"
            )
        else:
            sources = node.inputs[:1] if _moves_one(node) else node.inputs
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
        if node is None or not sources or not _follows(node) or (len(sources) > 1 and not _moves_one(node)):
            return None
        value = sources[0]
    return product_of(value)


def way(value: ir.Value) -> Iterator[ir.Value]:
    """`value`, and what it is moved from, as long as that is one tensor."""
    while True:
        yield value
        node = value.producer()
        if node is None or not _moves_one(node) or node.inputs[0] is None:
            return
        value = node.inputs[0]


def _follows(node: ir.Node) -> bool:
    """Does it move numbers, or scale or shift them where an operand is constant?"""
    return record_of(node).moves is not None or record_of(node).affine is not None


def _moves_one(node: ir.Node) -> bool:
    """Does it move the numbers of its first input alone?"""
    return record_of(node).moves is not None and not record_of(node).joins


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
        record = record_of(node)
        if record.moves is not None:
            return self._moved(node, value, record)
        if record.affine is not None:
            return self._combined(node, value, record.affine)
        raise Unfollowed(f"{node.op_type} {anchor(node)!r} is neither a move nor a projection")

    def _combined(self, node: ir.Node, value: ir.Value, affine: AffineRule) -> Trail:
        """A constant is added, subtracted, a factor or a divisor."""
        slot = next((i for i in (1, 0) if is_constant(node.inputs[i])), None)
        data = None if slot is None else node.inputs[1 - slot]
        found = None if slot is None else affine(slot, self._number(node.inputs[slot]))
        if data is None or found is None:
            raise Unfollowed(f"{node.op_type} {anchor(node)!r} combines it with what is no constant")
        factor, offset = found
        trail = self.of(data).onto(self.shape(value))
        return Trail(trail.place, trail.factor * factor, trail.offset * factor + offset)

    def _moved(self, node: ir.Node, value: ir.Value, record: Operator) -> Trail:
        sources = [v for v in (node.inputs if record.joins else node.inputs[:1]) if v is not None]
        if not sources or record.moves is None:
            raise Unfollowed(f"{node.op_type} {anchor(node)!r} moves nothing")
        given = () if record.joins else tuple(self._integers(node, v) for v in node.inputs[1:])
        trails = [self.of(v) for v in sources]
        shapes = () if record.joins else tuple(self.shape(v) for v in node.outputs)
        move = Moving(node, value.index() or 0, shapes, given)
        try:
            place, factor, offset = (record.moves(move, some) for some in zip(*(t.arrays for t in trails), strict=True))
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            raise Unfollowed(f"{node.op_type} {anchor(node)!r}: {error}") from None
        return Trail(place, factor, offset)

    def _integers(self, node: ir.Node, value: ir.Value | None) -> IntArray | None:
        """What a move reads beside its data. Raises: Unfollowed where that could differ from input to input."""
        if value is None:
            return None
        array = constant(value)
        if array is not None:
            return np.asarray(array, np.int64)
        if record_of(node).told and made_of_shapes(value):
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
