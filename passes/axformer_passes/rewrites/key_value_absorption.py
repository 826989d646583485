"""`"keys_values": "absorbed"`: where the read-out leaves one query, keys and values of all tokens are not projected.

It is found before fused nodes are lifted, which would hide it, and carried out behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from axformer_passes.rewrites.rewrite import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.probe import Runner


def _keep_apart(model: ir.Model, runner: Runner) -> None:
    from axformer_passes.simplify import keep_apart

    keep_apart(model, runner)


def _absorb(model: ir.Model, runner: Runner) -> None:
    from axformer_passes.simplify import absorb

    absorb(model, runner)


ABSORB_KEYS_VALUES = Rewrite(
    name="keys_values",
    on="absorbed",
    off="projected",
    help="absorbed: behind a narrow read-out the last layer projects no keys and values for all tokens; exact up to rounding.",
    walked=_keep_apart,
    lifted=_absorb,
)
