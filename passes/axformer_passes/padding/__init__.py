"""Padding removed: what works on each token alone is computed for the real tokens of a batch, and for no others. Exact.

Takes a model and a runner, finds the operators that act on each token alone and edits the graph in place.
"""

from __future__ import annotations

from axformer_passes.padding.removal import remove_padding

__all__ = ["remove_padding"]
