"""Fused operators: one definition each, in primitive operators, that serves every pass.

    lower(model)   every fused node that has a rule -> its primitive steps          before recognition (`prepare.prepared`)
    lift(model)    every group of steps that still is its fused node -> that node   after the passes (`apply.apply_plan`)

Labels, cuts, hard attention and gates know primitive operators alone; a graph that came fused leaves fused.

    recipe.py       how a rule writes its steps
    registry.py     the table of rules
    types.py        element types and ranks that the file does not state
    lowering.py, lifting.py
    attention.py, norms.py, ...   the rules
"""

from __future__ import annotations

from axformer_passes.fused import (  # noqa: F401  (their rules enter the table)
    activations,
    attention,
    grouped,
    matmul,
    norms,
    onnx_attention,
    quantized,
    rotary,
)
from axformer_passes.fused.lifting import lift
from axformer_passes.fused.lowering import lower

__all__ = ["lift", "lower"]
