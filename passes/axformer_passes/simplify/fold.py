"""Fold constants: rewrites that compute the same with fewer operators (docs/method.md 3). Exact but for the rounding of sums.

    moves     Reshapes and Transposes in a row that amount to one Transpose
    expands   an Expand that nobody needs, since what reads it broadcasts anyway
    sizes     what is computed of sizes and is always the same, and the targets of Reshapes
    scales    a constant factor goes into the weights before it
    offsets   a constant that is added goes to where it costs nothing, or nowhere at all

It comes last, when a plan has been carried out and fused nodes are whole again: what it does not know, it leaves as it is.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.prepare import isolate
from axformer_passes.probe import Runner, facts_of
from axformer_passes.simplify.expands import fold_expands
from axformer_passes.simplify.moves import fold_moves
from axformer_passes.simplify.offsets import fold_offsets
from axformer_passes.simplify.scales import fold_scales
from axformer_passes.simplify.sizes import fold_sizes


@dataclasses.dataclass(frozen=True)
class Folded:
    """How many moves and Expands went, tensors and Reshape targets became constants, and factors and additions went."""

    moves: int = 0
    expands: int = 0
    sizes: int = 0
    scales: int = 0
    offsets: int = 0

    def __bool__(self) -> bool:
        return bool(self.moves or self.expands or self.sizes or self.scales or self.offsets)


def fold_constants(model: ir.Model, runner: Runner) -> Folded:
    """Edit `model` in place. The caller cleans up. Nothing is done where it does not run on probes of several sizes."""
    isolate(model)
    facts = facts_of(model, runner)
    if facts is None:
        return Folded()
    moves, expands = fold_moves(model, facts), fold_expands(model, facts)
    common.RemoveUnusedNodesPass()(model)
    sizes = fold_sizes(model, facts)
    common.RemoveUnusedNodesPass()(model)  # a Shape that nobody reads any more is no reader
    return Folded(moves, expands, sizes, fold_scales(model), fold_offsets(model, facts))


__all__ = ["Folded", "fold_constants"]
