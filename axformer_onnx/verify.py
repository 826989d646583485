"""Promise 1: a graph gets its name only after the full checker, ONNX Runtime, and a comparison with the source under the plan.

The comparison does not share code with the cut: the oracle is the source itself, run through gates (`search/stages.py`), whose
removed parts are zeroed and not cut out. Hard attention is written by the same code in both: the tests hold that against torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_onnx.errors import VerifyError
from axformer_passes.files import load_model
from axformer_passes.plan import Plan
from axformer_passes.trace import probe_feeds, probed

Array = npt.NDArray[Any]
TOLERANCE = 1e-3
"""Largest difference of an output, relative to the largest value of that output on the probe. float32 sums in another order stay
below 1e-5; half precision does not."""
_SHAPES = ((1, 3), (2, 9), (3, 5))


def verify(source: str | Path, candidate: str | Path, plan: Plan, *, provider: str = "cpu") -> float:
    """Check `candidate` = `source` with `plan` carried out; returns the largest relative difference.

    Raises: VerifyError with the first thing that is wrong.
    """
    import onnx

    from axformer_onnx.runtime import make_session

    try:
        onnx.checker.check_model(str(candidate), full_check=True)
    except Exception as error:  # the checker's two kinds of error share no base
        raise VerifyError(f"{candidate}: the ONNX checker refuses it: {_first_line(error)}") from None
    session = make_session(candidate, provider=provider)
    model, result = load_model(source), load_model(candidate)
    _same_face(model, result)
    return _compare(model, session, plan)


def _same_face(source: ir.Model, result: ir.Model) -> None:
    """Opset, IR version, input and output names, types and dynamic axes are the source's."""

    def face(model: ir.Model) -> dict[str, object]:
        values = [(v.name, str(v.dtype), str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
        return {"opset": dict(model.opset_imports), "IR version": model.ir_version, "inputs and outputs": values}

    before, after = face(source), face(result)
    for what, value in before.items():
        if after[what] != value:
            raise VerifyError(f"{what} changed from {value} to {after[what]}")


def _compare(model: ir.Model, session: Any, plan: Plan) -> float:
    from axformer_onnx.runtime import run_once, run_session

    feeds, _ = probed(model, run_once)
    open_length = any(not isinstance(d, int) for v in model.graph.inputs for d in list(v.shape or ())[1:])
    image = any(array.ndim > 2 for array in feeds.values())
    trials = [feeds] if image or not open_length else [probe_feeds(model, b, s, seed=s) for b, s in _SHAPES]
    worst = 0.0
    oracle = _Oracle(model, plan)
    for feeds in trials:
        expected, found = oracle(feeds), run_session(session, feeds)
        for name, array in expected.items():
            worst = max(worst, _difference(name, array, found[name]))
    return worst


def _difference(name: str, expected: Array, found: Array) -> float:
    if expected.shape != found.shape:
        raise VerifyError(f"output {name!r} has shape {found.shape}, expected {expected.shape}")
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-6)
    difference = float(np.abs(expected.astype(np.float64) - found).max(initial=0.0)) / scale
    if not difference <= TOLERANCE:
        raise VerifyError(
            f"output {name!r} differs from the source under the plan by {difference:.1e} of its largest value"
        )
    return difference


class _Oracle:
    """The source under a plan, through gates."""

    def __init__(self, model: ir.Model, plan: Plan) -> None:
        from axformer_onnx.search.stages import StageSessions, setting_of

        self.sessions = StageSessions(model)
        self.settings = [setting_of(stage, plan) for stage in self.sessions.stages]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        tensors = dict(feeds)
        for stage, setting in zip(self.sessions.stages, self.settings, strict=True):
            session = self.sessions.session(stage, setting.form)
            given = {**tensors, **setting.feeds}
            outputs = session.run(list(stage.outputs), {i.name: given[i.name] for i in session.get_inputs()})
            tensors.update(zip(stage.outputs, outputs, strict=True))
        return {name: tensors[name] for name in self.sessions.staged.graph_outputs}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


__all__ = ["TOLERANCE", "verify"]
