"""Fused operators: one definition each, in primitive operators, that serves every pass.

`lower` writes every fused node that has a rule as its primitive steps, before recognition; `lift` turns every group of steps that
still is its fused node into that node, after the passes. Whoever walks labels, cuts or gates knows primitive operators alone, and a
graph that came fused leaves fused. A rule is written with `axformer_passes.prepare.recipes`.
"""

from __future__ import annotations

from axformer_passes.prepare.fused import (  # noqa: F401  (their rules enter the table)
    activations,
    attention,
    grouped,
    matmul,
    norms,
    onnx_attention,
    quantized,
    rotary,
)
from axformer_passes.prepare.fused.lifting import lift
from axformer_passes.prepare.fused.lowering import MEMBER, NOT_LOWERED, lower

__all__ = ["MEMBER", "NOT_LOWERED", "lift", "lower"]
