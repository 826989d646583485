"""What a graph computes on small inputs of several sizes: shapes and integers.

Takes a model and a runner (whoever can run a graph) and gives concrete shapes and values. The float32 twins of
half-precision models, which probes run instead, are made here, too.
"""

from __future__ import annotations

from axformer_passes.probe.facts import Array, Facts, Shape, facts_of
from axformer_passes.probe.float32_twin import BFLOAT16, HALVES, holds, widened, widened_model, widening
from axformer_passes.probe.inputs import BATCH, convolved, probe_feeds, usual_tokens
from axformer_passes.probe.known_sizes import known
from axformer_passes.probe.masks import mask_inputs, ragged
from axformer_passes.probe.recipe import Recipe, TokenSequence, describe, recipe_of
from axformer_passes.probe.tracing import Runner, Step, probed, trace, traced

__all__ = [
    "BATCH",
    "BFLOAT16",
    "HALVES",
    "Array",
    "Facts",
    "Recipe",
    "Runner",
    "Shape",
    "Step",
    "TokenSequence",
    "convolved",
    "describe",
    "facts_of",
    "holds",
    "known",
    "mask_inputs",
    "probe_feeds",
    "probed",
    "ragged",
    "recipe_of",
    "trace",
    "traced",
    "usual_tokens",
    "widened",
    "widened_model",
    "widening",
]
