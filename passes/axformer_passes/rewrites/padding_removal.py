"""`"padding": "removed"`: what works on each token alone is computed for the real tokens of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axformer_passes.rewrites.rewrite import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.probe import Runner


def _remove(model: ir.Model, runner: Runner) -> None:
    from axformer_passes.padding import remove_padding

    remove_padding(model, runner)


REMOVE_PADDING = Rewrite(
    name="padding",
    on="removed",
    off="kept",
    help="removed: outside attention only real tokens of a batch are computed, exact up to rounding; for rows of unlike length.",
    usual=False,
    lifted=_remove,
)
