"""Score a plan without a cut: the graph in stages, with run-time inputs for heads, neurons, blocks and weights.

Takes an examined model and gives one small graph a block, in several forms with the same inputs and outputs.
"""

from __future__ import annotations

from axformer_passes.stages.stages import NO_K, Form, Stage, Staged
from axformer_passes.stages.weight_inputs import weight_feeds, writable

__all__ = ["NO_K", "Form", "Stage", "Staged", "weight_feeds", "writable"]
