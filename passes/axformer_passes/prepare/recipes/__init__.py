"""How a fused operator is stated: a recipe of primitive steps, written down before anything is edited, and the table of rules.

`recipe` is how a rule writes its steps, `registry` the table of rules, `types` the element types and ranks that a file does not
state.
The rules themselves are in `axformer_passes.prepare.fused`.
"""

from __future__ import annotations

from axformer_passes.prepare.recipes.recipe import (
    Fixed,
    FusedInput,
    FusedInputPiece,
    FusedNode,
    Made,
    NotLowered,
    Recipe,
    RecipeStep,
    Ref,
)
from axformer_passes.prepare.recipes.registry import RULES, Lowered, Rule, fused
from axformer_passes.prepare.recipes.types import Types, width_of

__all__ = [
    "RULES",
    "Fixed",
    "FusedInput",
    "FusedInputPiece",
    "FusedNode",
    "Lowered",
    "Made",
    "NotLowered",
    "Recipe",
    "RecipeStep",
    "Ref",
    "Rule",
    "Types",
    "fused",
    "width_of",
]
