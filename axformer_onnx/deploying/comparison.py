"""Does a graph that was written for a target answer what the graph that it was made of answers?

Both files are run by ONNX Runtime, its own rewrites off, on batches of random tokens whose rows differ in length; inputs and
outputs correspond by their place. Nothing of what rewrote the graph is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from axformer_onnx.deploying.contents import Contents
from axformer_onnx.errors import RuntimeFailure, VerifyError

TOLERANCE = 1e-5
"""Largest difference of an output, relative to its largest value: the same sums in the same order, by kernels of another set."""
_SHAPES = ((1, -2), (3, 0), (5, 3))
"""Rows, and tokens beside the probe's."""


def require_same(contents: Contents, path: Path) -> float:
    """The largest relative difference of an output of the graph at `path` from that of `contents`.

    Raises: VerifyError where it is beyond the tolerance, or no batch could be compared; ModelError where ONNX Runtime refuses it.
    """
    from axformer_onnx.runtime import make_session, run_session
    from axformer_passes.probe import probe_feeds, ragged, usual_tokens

    before, after = make_session(contents.path, optimize=False), make_session(path, optimize=False)
    make_session(path)  # as it will run
    inputs = dict(zip(contents.inputs, [one.name for one in after.get_inputs()], strict=True))
    worst, compared = 0.0, 0
    for batch, more in _SHAPES:
        feeds = ragged(
            contents.model, probe_feeds(contents.model, batch, usual_tokens(contents.model) + more, seed=7 + more)
        )
        try:
            expected = run_session(before, feeds)
        except RuntimeFailure:  # a size that it does not take
            continue
        found = run_session(after, {inputs[name]: array for name, array in feeds.items()})
        for (name, one), other in zip(expected.items(), found.values(), strict=True):
            worst = max(worst, _difference(path, name, np.asarray(one), np.asarray(other)))
        compared += 1
    if not compared:
        raise VerifyError(
            f"{path.name}: the graph that it was made of runs at none of the sizes tried, so they were not compared"
        )
    return worst


def _difference(path: Path, name: str, expected: np.ndarray, found: np.ndarray) -> float:
    if found.size != expected.size:
        raise VerifyError(
            f"{path.name}: output {name!r} has shape {list(found.shape)}, expected {list(expected.shape)}"
        )
    wide = expected.astype(np.float64)
    difference = np.abs(wide - found.reshape(expected.shape)).max(initial=0.0) / max(
        np.abs(wide).max(initial=0.0), 1e-6
    )
    if not difference <= TOLERANCE:
        raise VerifyError(
            f"{path.name}: output {name!r} differs from the graph that it was made of by {difference:.1e} of its largest "
            f"value, expected at most {TOLERANCE:g}"
        )
    return float(difference)
