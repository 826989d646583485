"""Refit of inner projections (queries, keys, values, up, gate): the source's own outputs, from the pruned model's inputs.

    source    x   what the projection reads for a token       target    x W + b    at the columns that stay
    pruned    x'  the same under the plan                     answer    x' W' + b' nearest to it, W' held to W

What was pruned below a block has moved its inputs; W' takes out of them what is linear in that. Nothing between the projection and
its place in the block needs to be known: whatever it is, it is fed nearly what it was. The sums [x' 1]^T [x' 1] and [x' 1]^T [x 1]
serve every projection that reads x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.compensate.algebra import refit, refit_without_bias
from axformer_onnx.compensate.moments import with_one
from axformer_passes.blocks import Inner, Role, inner_projections

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.scoring import StageSessions
    from axformer_passes.blocks import BlockKind, Inputs
    from axformer_passes.recognise import Examined

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Solved = dict[Role, tuple[FloatArray, FloatArray | None]]
"""By role: weight [R, K] and bias [K], None where the projection has none."""
_MOVED = 1e-5
"""Relative difference of inputs below which they are the source's but for rounding."""


@dataclasses.dataclass(frozen=True)
class Together:
    """Inner projections of one block that read the same tensor."""

    inputs: Inputs
    members: tuple[Inner, ...]


def read_together(
    sessions: StageSessions, number: int, layer: int, kind: BlockKind, known: Mapping[str, tuple[int, ...]] | None
) -> list[Together]:
    """The inner projections of a block which stage `number` computes, by what they read.

    known   shapes of weights by name: others are passed over (None: none are)
    """
    staged = sessions.staged
    made, found = staged.made_in(sessions.stages[number]), dict[str, list[Inner]]()
    for one in inner_projections(staged.examined, layer, getattr(staged.examined.anatomy.layers[layer], kind)):
        weight = one.place.weight
        there = known is None or known.get(str(weight.name)) == shape_of(weight)
        if there and one.place.node.outputs[0].name in made and one.inputs.layout is not None:
            found.setdefault(one.inputs.name, []).append(one)
    return [Together(members[0].inputs, tuple(members)) for members in found.values()]


def same_in(sessions: StageSessions, source: Together, layer: int, kind: BlockKind) -> Together | None:
    """The same projections of a block in another model; None where they are not all there, and do not read the same."""
    examined = sessions.staged.examined
    there = {one.role: one for one in inner_projections(examined, layer, getattr(examined.anatomy.layers[layer], kind))}
    own = tuple(there[one.role] for one in source.members if one.role in there)
    read = {one.inputs.name for one in own}
    if len(own) < len(source.members) or len(read) > 1 or own[0].inputs.layout is None:
        return None
    return Together(own[0].inputs, own)


def shapes_of(examined: Examined) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a model as passes name them."""
    return {str(name): shape_of(value) for name, value in examined.labelling.model.graph.initializers.items()}


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Of an initializer."""
    return tuple(value.const_value.shape.numpy()) if value.const_value is not None else ()


def solve_together(
    source: Sequence[Inner],
    kept: Sequence[npt.NDArray[np.int64]],
    pairs: Iterable[tuple[Array, Array]],
    ridge: float | None,
) -> Solved:
    """New weights of projections that read the same; empty where the inputs have not moved.

    source   the projections in the source; kept: of each, the columns that stay
    pairs    per sample (x', x), float32[tokens, R]: what they read in the pruned model and in the source
    """
    sums, moved, largest = None, 0.0, 0.0
    for after, before in pairs:
        if len(after):
            moved = max(moved, float(np.abs(after - before).max()))
            largest = max(largest, float(np.abs(before).max()))
            z, x = (with_one(tokens, np.float32) for tokens in (after, before))
            own = z.T @ np.hstack([z, x])  # of one sample in float32; the sum in float64
            sums = own.astype(np.float64) if sums is None else sums + own
    if sums is None or moved <= _MOVED * largest:
        return {}
    inputs, cross = np.hsplit(sums, 2)
    return {
        one.role: _solve(one, columns, inputs, cross, ridge)
        for one, columns in zip(source, kept, strict=True)
        if len(columns)
    }


def _solve(
    one: Inner, columns: npt.NDArray[np.int64], inputs: FloatArray, cross: FloatArray, ridge: float | None
) -> tuple[FloatArray, FloatArray | None]:
    weight, bias = one.place.weight_matrix()[:, columns], one.place.bias_vector()
    if bias is None:
        return refit_without_bias(inputs, cross[:-1, :-1] @ weight, weight, ridge), None
    return refit(inputs, cross @ np.vstack([weight, bias[columns]]), weight, bias[columns], ridge)


__all__ = ["Together", "read_together", "same_in", "shapes_of", "solve_together"]
