"""Which channels reach so far, on rows of the task, that they are moved into weights before activations are rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from axformer_onnx.data import Encoded, batches
from axformer_onnx.runtime import run_once
from axformer_passes.integers import Reach, read_by_products, smoothed
from axformer_passes.probe import trace

if TYPE_CHECKING:
    from axformer_passes.precision import Int8
    from axformer_passes.recognise import Examined

ROWS = 32
"""On which activations are looked at."""


def outliers(examined: Examined, int8: Int8, encoded: Encoded, watch: Callable[[int, int], None]) -> Int8:
    """`int8` with "smooth" for every feed-forward block, as the first `ROWS` rows show it. watch: (rows done, rows).

    Raises: RuntimeFailure where the model does not run on a row.
    """
    every = int8.with_blocks((layer.index, "feed_forward") for layer in examined.anatomy.layers if layer.feed_forward)
    names, reach = read_by_products(examined, every), dict[str, Reach]()
    model, count = examined.labelling.model, min(ROWS, len(encoded))
    inputs = [str(value.name) for value in model.graph.inputs]
    for row in range(count if names else 0):
        watch(row, count)
        for part in batches(encoded.take([row]), inputs):
            for name, array in trace(model, run_once, part.feeds, names).items():
                if name in names:  # a trace has integers and outputs, too
                    own = Reach.of(array)
                    reach[name] = own.joined(reach[name]) if name in reach else own
    return smoothed(examined, every, reach).with_blocks([])


__all__ = ["ROWS", "outliers"]
