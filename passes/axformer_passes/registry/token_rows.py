"""Token rows of a tensor: some positions of the axis that holds its tokens, and what two probes say about shapes.

x[B,S,D]     axis 1                      the same tokens for every row of the batch
x[B,S,D]     axis 1, batch 0             a token of its own for every row of the batch
x[B*S,D]     axis 0, batch 0             batch and tokens in one axis, the tokens of a row side by side
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import constant, origin
from axformer_passes.probe import Array, Runner, Step, traced

Shapes = tuple[tuple[int, ...], ...]
"""The shape of one tensor in each probe."""


class Stop(Exception):
    """These rows cannot be wanted of the inputs instead; the text says why."""


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Some positions of the axis of a tensor that holds its tokens.

    axis     the token axis
    batch    the axis of the batch, where every row of it has a token of its own; `axis` itself where the batch lies in the same
             axis, tokens within rows; None: the same tokens everywhere
    tokens   positions, negative ones from the end; or the name of int[B]: one position for each row of the batch
    count    how many tokens there are, in each probe
    onto     (rank, axis): a tensor without a batch gets one there, as it is picked for each row
    """

    axis: int
    batch: int | None
    tokens: tuple[int, ...] | str
    count: tuple[int, ...]
    onto: tuple[int, int] | None = None

    @property
    def merged(self) -> bool:
        """Do batch and tokens share an axis?"""
        return self.batch == self.axis

    @property
    def by_row(self) -> bool:
        """Has every row of the batch its own token?"""
        return isinstance(self.tokens, str)

    @property
    def kept(self) -> int:
        """How many tokens stay."""
        return 1 if isinstance(self.tokens, str) else len(self.tokens)

    def at(self, axis: int | None, batch: int | None) -> TokenRows:
        """The same tokens in a tensor where they lie elsewhere. Raises: Stop where an axis is missing."""
        if axis is None or (batch is None and self.batch is not None):
            raise Stop("its tokens or its batch lie in no axis of their own")
        return dataclasses.replace(self, axis=axis, batch=batch)

    def through(self, place: Callable[[int], int | None]) -> TokenRows:
        """The same tokens where `place` puts each axis."""
        return self.at(place(self.axis), None if self.batch is None else place(self.batch))

    def touches(self, axis: int) -> bool:
        """Is this the axis of the tokens or of the batch?"""
        return axis in (self.axis, self.batch)


@dataclasses.dataclass(frozen=True)
class Probes:
    """Shapes and integers of every tensor of `model` at several batch sizes and lengths, by name."""

    model: ir.Model
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    integers: tuple[Mapping[str, Array], ...]

    def shape(self, value: ir.Value | None) -> Shapes:
        """The shape in each probe. Raises: Stop where it is not known."""
        if value is None:
            raise Stop("an input is missing")
        if all(value.name in shapes for shapes in self.shapes):
            return tuple(shapes[str(value.name)] for shapes in self.shapes)
        found = origin(value)
        if found is None or found.value.const_value is None:
            raise Stop(f"the shape of {value.name} is not known")
        dims = [int(n) for n in found.value.const_value.shape]  # type: ignore[arg-type]
        return (tuple(dims[a] for a in found.axes),) * len(self.shapes)

    def rank(self, value: ir.Value | None) -> int:
        """How many axes it has."""
        return len(self.shape(value)[0])

    def whole(self, value: ir.Value | None) -> tuple[Array, ...]:
        """The integers that a tensor holds in each probe. Raises: Stop where they are not known."""
        array = constant(value)
        if array is not None:
            return (array,) * len(self.shapes)
        if value is None or any(value.name not in integers for integers in self.integers):
            raise Stop("it reads integers that are not known")
        return tuple(integers[str(value.name)] for integers in self.integers)


def probes_of(model: ir.Model, runner: Runner, steps: Sequence[Step]) -> Probes | None:
    """One probe a step; None where the graph does not run on all of them."""
    values = traced(model, runner, steps)
    return None if values is None else Probes(model, tuple(map(_shapes, values)), tuple(map(_integers, values)))


def _shapes(values: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(np.shape(array)) for name, array in values.items()}


def _integers(values: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.asarray(array) for name, array in values.items() if np.asarray(array).dtype.kind in "iu"}


def aligned(probes: Probes, value: ir.Value | None, rows: TokenRows, rank: int) -> TokenRows | None:
    """The rows of an operand that is broadcast to an output of `rank`; None: it is the same for all tokens."""
    shapes = probes.shape(value)
    shift = rank - len(shapes[0])
    axis = rows.axis - shift
    sizes = [shape[axis] for shape in shapes] if axis >= 0 else [1]
    if all(n == 1 for n in sizes):
        return None
    if rows.merged:
        return rows.at(axis, axis)
    if tuple(sizes) != rows.count:
        raise Stop(f"it meets {sizes} positions for {list(rows.count)} tokens")
    if rows.batch is None:
        return rows.at(axis, None)
    batch = rows.batch - shift
    if batch >= 0 and any(shape[batch] != 1 for shape in shapes):
        return rows.at(axis, batch)
    return dataclasses.replace(rows, axis=axis, batch=None, onto=(rank, rows.batch))


TokenRule = Callable[[Probes, ir.Node, TokenRows], dict[int, TokenRows]]
"""(probes, node, rows of its outputs) -> {slot: rows of that input}; an input that it does not name is read whole. Raises: Stop."""
