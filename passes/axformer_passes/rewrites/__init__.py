"""The exact rewrites by the keys that a plan has for them: what each is called, says and runs; `apply_plan` runs those of a plan.

A rewrite is one file with one object, and its place in `registry.py`.
"""

from __future__ import annotations

from axformer_passes.rewrites.registry import REWRITES
from axformer_passes.rewrites.rewrite import Rewrite

__all__ = ["REWRITES", "Rewrite"]
