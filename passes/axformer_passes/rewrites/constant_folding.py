"""`"constants": "folded"`: factors, biases and sizes go where they cost least, exact up to rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axformer_passes.rewrites.rewrite import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.probe import Runner


def _fold(model: ir.Model, runner: Runner) -> None:
    from axformer_passes.simplify import fold_constants

    fold_constants(model, runner)


FOLD_CONSTANTS = Rewrite(
    name="constants",
    on="folded",
    off="kept",
    help="folded: factors, biases and sizes move to where they cost least; exact up to rounding.",
    lifted=_fold,
)
