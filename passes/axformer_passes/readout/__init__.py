"""Compute for single tokens what only single tokens are read of. Exact.

Takes a model and a runner, finds where outputs pick tokens and how far up the picks can move, and edits the graph in place.
"""

from __future__ import annotations

from axformer_passes.readout.narrowing import NarrowedReadout, narrow_readout
from axformer_passes.readout.picks import picked, upstream

__all__ = ["NarrowedReadout", "narrow_readout", "picked", "upstream"]
