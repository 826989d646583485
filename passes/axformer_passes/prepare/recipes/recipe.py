"""A recipe: the primitive steps that compute what one fused node computes, written down before anything is edited.

A rule reads the fused node through a `FusedNode` and writes its steps with a `Recipe`:

    x, bias = recipe.given(0), recipe.given(1)
    recipe.finish(recipe("Relu", recipe("Add", x, bias)))

The same rule run again on what the passes have left of a node says whether that is still the node (`lift`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.graph import constant, origin

Array = npt.NDArray[Any]
T = TypeVar("T")


class NotLowered(Exception):
    """This form of the operator has no lowering: the node stays as it is."""


@dataclasses.dataclass(frozen=True)
class FusedInput:
    """The fused node's input `slot`, as it is."""

    slot: int


@dataclasses.dataclass(frozen=True, eq=False)
class FusedInputPiece:
    """One of the pieces of the vector at input `slot`, numbered 0 to `count` - 1."""

    slot: int
    number: int
    count: int
    array: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed:
    """A constant of the lowering's own."""

    array: Array


@dataclasses.dataclass(frozen=True)
class Made:
    """Output `output` of the step of this role."""

    role: str
    output: int = 0


Ref = FusedInput | FusedInputPiece | Fixed | Made


@dataclasses.dataclass(frozen=True)
class RecipeStep:
    """One primitive node; `role` is unique within its recipe."""

    role: str
    op_type: str
    domain: str
    inputs: tuple[Ref | None, ...]
    attributes: Mapping[str, ir.Attr]
    outputs: int


@dataclasses.dataclass
class FusedNode:
    """A fused node as a rule sees it: attributes, inputs, operator set, and what is known of the inputs.

    inputs    one value a slot, None where it is left out
    read      for each output: does anything read it?
    opset     version of the default operator set
    facts     what a rule has asked about the surroundings; kept, so that the rule decides alike after a cut
    """

    op_type: str
    attributes: Mapping[str, ir.Attr]
    inputs: tuple[ir.Value | None, ...]
    read: tuple[bool, ...]
    opset: int
    facts: dict[str, Any]

    def has(self, slot: int) -> bool:
        """Is this input given?"""
        return slot < len(self.inputs) and self.inputs[slot] is not None

    def value(self, slot: int) -> ir.Value:
        """The input at `slot`. Raises: NotLowered where it is left out."""
        value = self.inputs[slot] if slot < len(self.inputs) else None
        if value is None:
            raise NotLowered(f"input {slot} is missing")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return self.attributes[name].as_int() if name in self.attributes else default

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        return self.attributes[name].as_float() if name in self.attributes else default

    def fact(self, key: str, find: Callable[[], T]) -> T:
        """What `find` said when the node was lowered."""
        if key not in self.facts:
            self.facts[key] = find()
        found: T = self.facts[key]
        return found

    def rank(self, slot: int) -> int:
        """Number of axes of an input. Raises: NotLowered where it is not known."""
        rank = self.fact(f"rank {slot}", lambda: _rank(self.value(slot)))
        if rank is None:
            raise NotLowered(f"the rank of input {slot} is not known")
        return rank

    def dtype(self, slot: int) -> ir.DataType:
        """Element type of an input. Raises: NotLowered where it is not known."""
        dtype = self.fact(f"dtype {slot}", lambda: self.value(slot).dtype)
        if dtype is None:
            raise NotLowered(f"the type of input {slot} is not known")
        return dtype

    def size(self, slot: int, axis: int) -> int:
        """The size of a constant's axis, now. Raises: NotLowered where the input is computed."""
        found = origin(self.value(slot))
        if found is None or found.value.const_value is None:
            raise NotLowered(f"input {slot} is computed")
        return int(found.value.const_value.shape[found.axes[axis]])  # type: ignore[arg-type]

    def refuse(self, condition: bool, reason: str) -> None:
        """Raises: NotLowered where `condition` holds."""
        if condition:
            raise NotLowered(reason)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


class Recipe:
    """Steps in order; calling it adds one and returns what refers to its first output."""

    def __init__(self, form: FusedNode) -> None:
        self.form = form
        self.steps: list[RecipeStep] = []
        self.results: dict[int, Ref] = {}
        self._roles: dict[str, int] = {}

    def __call__(
        self,
        op_type: str,
        *inputs: Ref | None,
        role: str = "",
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> Made:
        base = role or op_type.lower()
        count = self._roles[base] = self._roles.get(base, 0) + 1
        step = RecipeStep(
            role=base if count == 1 else f"{base}_{count}",
            op_type=op_type,
            domain=domain,
            inputs=inputs,
            attributes={a.name: a for a in ir.convenience.convert_attributes(attributes)} if attributes else {},
            outputs=outputs,
        )
        self.steps.append(step)
        return Made(step.role)

    def given(self, slot: int) -> Ref:
        """The fused node's input at `slot`. Raises: NotLowered where it is left out."""
        self.form.value(slot)
        return FusedInput(slot)

    def fixed(self, values: object, dtype: ir.DataType = ir.DataType.INT64) -> Ref:
        """A constant of the lowering's own."""
        with np.errstate(over="ignore"):  # a mask's -3.4e38 is minus infinity in half precision, as in ONNX Runtime
            return Fixed(np.array(values).astype(dtype.numpy()))

    def parts(self, slot: int, sizes: tuple[int, ...]) -> tuple[Ref, ...]:
        """The input at `slot`, a vector, in pieces of these sizes: of the constant itself, or by Split where it is computed."""
        array = constant(self.form.value(slot))
        if array is None or array.ndim != 1:
            return self.split(self.given(slot), sizes, axis=0)
        self.form.refuse(sum(sizes) != array.size, f"input {slot} has {array.size} values, expected {sum(sizes)}")
        pieces = np.split(array, np.cumsum(sizes)[:-1])
        return tuple(FusedInputPiece(slot, i, len(sizes), piece) for i, piece in enumerate(pieces))

    def finish(self, ref: Ref, output: int = 0) -> None:
        """`ref` is what the fused node's output `output` is."""
        self.results[output] = ref

    # -- operators whose writing depends on the operator set ---------------------------------------------------------

    def split(self, x: Ref, sizes: tuple[int, ...], axis: int = -1, role: str = "parts") -> tuple[Made, ...]:
        """x in pieces of these sizes."""
        if self.form.opset < 13:
            first = self("Split", x, role=role, outputs=len(sizes), axis=axis, split=list(sizes))
        else:
            first = self("Split", x, self.fixed(sizes), role=role, outputs=len(sizes), axis=axis)
        return tuple(Made(first.role, i) for i in range(len(sizes)))

    def unsqueeze(self, x: Ref, axes: list[int]) -> Made:
        """x with new axes of size 1."""
        if self.form.opset < 13:
            return self("Unsqueeze", x, axes=axes)
        return self("Unsqueeze", x, self.fixed(axes))

    def reduced(self, op_type: str, x: Ref, axis: int, keepdims: int) -> Made:
        """ReduceSum or ReduceMean over one axis."""
        since = 13 if op_type == "ReduceSum" else 18
        if self.form.opset < since:
            return self(op_type, x, axes=[axis], keepdims=keepdims)
        return self(op_type, x, self.fixed([axis]), keepdims=keepdims)

    def size(self, x: Ref, axis: int) -> Made:
        """int64[1]: the size of one axis of x, at run time."""
        return self("Gather", self("Shape", x), self.fixed([axis]), axis=0)

    def range(self, size: Ref) -> Made:
        """int64[n]: 0, 1, ..., n - 1 of an int64[1] n."""
        n = self("Squeeze", size) if self.form.opset < 13 else self("Squeeze", size, self.fixed([0]))
        return self("Range", self.fixed(0), n, self.fixed(1))
