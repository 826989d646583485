"""Which nodes cannot be in half precision: those whose numbers do not fit on rows of the task."""

from __future__ import annotations

import onnx_ir as ir

from axformer_onnx.data import Encoded, batches
from axformer_onnx.runtime import run_once
from axformer_passes.halves import TYPES, outgrown, seen
from axformer_passes.precision import Half, HalfType
from axformer_passes.probe import trace

ROWS = 32
"""On which all values are looked at."""


def half_for(model: ir.Model, kind: HalfType, encoded: Encoded) -> Half:
    """What a plan says of half precision for `model`, a prepared graph: its values on the first `ROWS` rows decide.

    Raises: RuntimeFailure where the model does not run.
    """
    largest = dict[str, float]()
    names = [str(value.name) for value in model.graph.inputs]
    for one in range(min(ROWS, len(encoded))):  # one at a time: all values of a run are in memory
        for part in batches(encoded.take([one]), names):
            found = seen(trace(model, run_once, part.feeds))
            largest.update((name, max(value, largest.get(name, 0.0))) for name, value in found.items())
    return Half(kind, outgrown(model, largest, TYPES[kind]))


__all__ = ["ROWS", "half_for"]
