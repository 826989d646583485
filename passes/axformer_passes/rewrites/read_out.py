"""`"readout": "narrow"`: what only a picked token needs is computed for that token alone, where that is legal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axformer_passes.rewrites.rewrite import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.probe import Runner


def _narrow(model: ir.Model, runner: Runner) -> None:
    from axformer_passes.readout import narrow_readout

    narrow_readout(model, runner)


NARROW_READOUT = Rewrite(
    name="readout",
    on="narrow",
    off="whole",
    help="narrow: the last layer computes only the token that the output reads, where that is exact.",
    walked=_narrow,
)
