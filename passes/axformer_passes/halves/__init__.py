"""A graph in half precision: float16 or bfloat16, with nodes that stay float32 where a number would not fit.

`halve` is the last step that a plan's "half" asks for; `outgrown` says which nodes stay, from what was `seen` of them on data.
"""

from __future__ import annotations

from axformer_passes.halves.fit import TYPES, largest_of, outgrown, seen
from axformer_passes.halves.writing import halve

__all__ = ["TYPES", "halve", "largest_of", "outgrown", "seen"]
