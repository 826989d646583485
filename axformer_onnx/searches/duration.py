"""How long a run will take: how often its search runs the model, at the speed that the model has here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from axformer_onnx.searches.search import search_named

if TYPE_CHECKING:
    from axformer_onnx.inputs import Given
    from axformer_onnx.options import OptimizeOptions

_SAMPLE = 64
"""Rows that the model is timed on."""
_BATCH = 32
_SPREAD = (0.9, 2.0)
"""Where runs end, as parts of what their tokens take: on two free cores the example's at 1.3 and 1.6, MiniLM's on SST-2 at 1.5."""
_REPORT_RUNS = 3
"""The source, the result, and the control of equal size."""
_LATENCIES_S = 15.0
"""Latencies are measured for so long, whatever the model."""


def expected_seconds(options: OptimizeOptions, given: Given) -> tuple[float, float]:
    """(shortest, longest) that a run will take here, nothing else running; the model is run on a few rows for it."""
    search = search_named(options.search)
    tokens = search.expected_tokens(options, given) + _REPORT_RUNS * float(given.encoded["report"].row_lengths.sum())
    seconds = _LATENCIES_S + tokens * _seconds_a_token(options, given)
    return seconds * _SPREAD[0], seconds * _SPREAD[1]


def _seconds_a_token(options: OptimizeOptions, given: Given) -> float:
    """The faster of two passes over the first search rows, padding and all."""
    from axformer_onnx.data import batches
    from axformer_onnx.runtime import run_session

    session = options.machine.session(given.source.path)
    names, output = [one.name for one in session.get_inputs()], given.reading.output.name
    tokens = given.encoded["search"]
    sample = tokens.take(range(min(_SAMPLE, tokens.rows)))
    found = []
    for _ in range(2):
        began = time.perf_counter()
        for batch in batches(sample, names, batch_size=_BATCH):
            run_session(session, batch.feeds, [output])
        found.append(time.perf_counter() - began)
    return min(found) / float(sample.row_lengths.sum())


__all__ = ["expected_seconds"]
