"""Rewrites that compute the same with less, exact up to rounding: constants folded, keys and values absorbed.

Takes a graph on which a plan has been carried out and edits it in place; what it does not know, it leaves as it is.
"""

from __future__ import annotations

from axformer_passes.simplify.fold import fold_constants
from axformer_passes.simplify.keys_values import absorb, keep_apart

__all__ = ["absorb", "fold_constants", "keep_apart"]
