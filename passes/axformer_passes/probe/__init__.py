"""What a graph computes on small inputs of several sizes: shapes, integers, where each number of a tensor comes from.

Takes a model and a runner (whoever can run a graph) and gives concrete shapes and values. The float32 twins of half-precision and
quantised models, which probes and checks run instead, are made here, too.
"""

from __future__ import annotations

from axformer_passes.probe.facts import Array, Facts, Shape, facts_of
from axformer_passes.probe.float32_twin import BFLOAT16, HALVES, holds, widened, widened_model, widening
from axformer_passes.probe.inputs import BATCH, probe_feeds
from axformer_passes.probe.known_sizes import known
from axformer_passes.probe.provenance import (
    FloatArray,
    IntArray,
    Matrix,
    Trail,
    Trails,
    Unfollowed,
    base_of,
    is_constant,
    matrix_of,
    product_behind,
    way,
)
from axformer_passes.probe.tracing import Runner, Step, probed, trace, traced
from axformer_passes.probe.unrounded_twin import unrounded

__all__ = [
    "BATCH",
    "BFLOAT16",
    "HALVES",
    "Array",
    "Facts",
    "FloatArray",
    "IntArray",
    "Matrix",
    "Runner",
    "Shape",
    "Step",
    "Trail",
    "Trails",
    "Unfollowed",
    "base_of",
    "facts_of",
    "holds",
    "is_constant",
    "known",
    "matrix_of",
    "probe_feeds",
    "probed",
    "product_behind",
    "trace",
    "traced",
    "unrounded",
    "way",
    "widened",
    "widened_model",
    "widening",
]
