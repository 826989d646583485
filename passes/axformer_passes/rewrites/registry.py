"""Every exact rewrite by name, in the order in which `apply_plan` runs them."""

from __future__ import annotations

from axformer_passes.rewrites.constant_folding import FOLD_CONSTANTS
from axformer_passes.rewrites.key_value_absorption import ABSORB_KEYS_VALUES
from axformer_passes.rewrites.padding_removal import REMOVE_PADDING
from axformer_passes.rewrites.read_out import NARROW_READOUT
from axformer_passes.rewrites.rewrite import Rewrite

REWRITES: dict[str, Rewrite] = {
    rewrite.name: rewrite for rewrite in (NARROW_READOUT, FOLD_CONSTANTS, ABSORB_KEYS_VALUES, REMOVE_PADDING)
}
