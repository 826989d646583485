"""How far activations reach on rows of the task: which channels are moved into weights before they are rounded, and, where ranges
are static, by which step each is rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from axformer_onnx.data import Encoded, batches
from axformer_onnx.runtime import make_session, run_session
from axformer_passes.blocks import kind_of
from axformer_passes.integers import Reach, read_by_products, smoothed, with_steps
from axformer_passes.io import Detached
from axformer_passes.probe import trace

if TYPE_CHECKING:
    from axformer_passes.precision import Int8
    from axformer_passes.recognise import Examined

Array = npt.NDArray[Any]
ROWS = 32
"""On which outliers are looked for."""
STEP_ROWS = 128
"""On which the steps of static ranges are found."""


def outliers(examined: Examined, int8: Int8, encoded: Encoded, watch: Callable[[int, int], None]) -> Int8:
    """`int8` with "smooth" for every feed-forward block, as the first `ROWS` rows show it. watch: (rows done, rows).

    Raises: RuntimeFailure where the model does not run on a row.
    """
    every = int8.with_blocks((layer.index, "feed_forward") for layer in examined.anatomy.layers if layer.feed_forward)
    return smoothed(examined, every, _reach(examined, every, encoded, ROWS, watch)).with_blocks([])


def static_steps(examined: Examined, int8: Int8, encoded: Encoded, watch: Callable[[int, int], None]) -> Int8:
    """`int8` with "scales" for every block, as the first `STEP_ROWS` rows show them. watch: (rows done, rows).

    Raises: RuntimeFailure where the model does not run on a row.
    """
    every = int8.with_blocks(
        (layer.index, kind_of(block)) for layer in examined.anatomy.layers for block in layer.blocks
    )
    found = with_steps(examined, every, _reach(examined, every, encoded, STEP_ROWS, watch))
    return dataclasses.replace(found, attention=int8.attention, feed_forward=int8.feed_forward)


def _reach(
    examined: Examined, int8: Int8, encoded: Encoded, rows: int, watch: Callable[[int, int], None]
) -> dict[str, Reach]:
    """Of what the products of these blocks read, by name, on the first rows."""
    names, reach = read_by_products(examined, int8), dict[str, Reach]()
    for name, array in _seen(examined, names, encoded, rows, watch):
        own = Reach.of(array)
        reach[name] = own.joined(reach[name]) if name in reach else own
    return reach


def _seen(
    examined: Examined, names: Collection[str], encoded: Encoded, rows: int, watch: Callable[[int, int], None]
) -> Iterator[tuple[str, Array]]:
    """(name, array) of these activations on each of the first rows, one row at a time: without padding."""
    model, count, session = examined.labelling.model, min(rows, len(encoded)), None
    inputs = [str(value.name) for value in model.graph.inputs]

    def runner(traced: bytes | Detached, feeds: Mapping[str, Array]) -> dict[str, Array]:
        nonlocal session  # the same graph for every row
        session = session or make_session(traced, threads=1, optimize=False, widen=False)
        return run_session(session, feeds)

    for row in range(count if names else 0):
        watch(row, count)
        for part in batches(encoded.take([row]), inputs):
            for name, array in trace(model, runner, part.feeds, names).items():
                if name in names:  # a trace has integers and outputs, too
                    yield name, array


__all__ = ["ROWS", "outliers", "static_steps"]
