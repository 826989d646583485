"""Bring a graph into the form that labels can walk: same function, same names, one use per constant, primitive operators.

Takes a model and gives a clone that shares its weights; `fused` states every fused operator in primitive ones and puts it back.
"""

from __future__ import annotations

from axformer_passes.prepare.constant_branches import take_decided
from axformer_passes.prepare.dequantising import dequantised, is_quantised, with_clipping
from axformer_passes.prepare.unrounded_twin import unrounded
from axformer_passes.prepare.walkable import isolate, prepared

__all__ = ["dequantised", "is_quantised", "isolate", "prepared", "take_decided", "unrounded", "with_clipping"]
