"""Promise 1: a graph gets its name only after the full checker, ONNX Runtime, and a comparison with the source under the plan.

The comparison does not share code with the cut: the oracle is the source itself, run through gates (`stages/gates.py`), whose
removed parts are zeroed and not cut out. It is read from its file and examined anew, since what a run holds in memory may be
wrong. Hard attention and new weights are written by the same code in both: the tests hold that against torch.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_onnx.errors import RuntimeFailure, VerifyError
from axformer_onnx.probing import at_its_sizes, open_model
from axformer_passes.cut import Weights
from axformer_passes.io import detached, load_model
from axformer_passes.plan import Plan
from axformer_passes.prepare import prepared, unrounded, with_clipping
from axformer_passes.probe import HALVES, describe, holds, probe_feeds, probed, ragged, recipe_of, usual_tokens, widened
from axformer_passes.recognise import recognise

logger = logging.getLogger(__name__)
Array = npt.NDArray[Any]
TOLERANCE = 1e-3
"""Largest difference of an output, relative to the largest value of that output on the probe. float32 sums in another order stay
below 1e-5."""
_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_SHAPES = ((1, -2), (2, 4), (3, 0))
"""Rows, and tokens beside the probe's."""
_RAGGED = ((5, 3), (3, 6))
"""The same of batches whose rows differ in length, where padding was removed."""


def verify(
    source: str | Path,
    candidate: str | Path,
    plan: Plan,
    *,
    provider: str = "cpu",
    weights: Weights | None = None,
    sample: Path | None = None,
) -> float:
    """Check `candidate` = `source` with `plan` and its `weights` carried out; returns the largest relative difference.

    sample   an .npz file with inputs that both take; None: made of what the source's folder tells

    Raises: VerifyError with the first thing that is wrong.
    """
    from axformer_onnx.runtime import make_session, run_once
    from axformer_passes.apply import reweighted

    if plan.int8 or plan.half:
        return _verify_rounded(source, Path(candidate), plan, provider, weights, sample)
    complaint = _complaint(candidate)
    if complaint is not None:
        if _complaint(source) is None:
            raise VerifyError(f"{candidate}: the ONNX checker refuses it: {complaint}")
        logger.warning(
            "%s: the ONNX checker refuses the source as it is (%s), so the result is held to ONNX Runtime and to the "
            "comparison with the source alone", source, complaint,
        )  # fmt: skip
    model, result = _opened(source, plan, sample), load_model(candidate)
    if _axes(model) != _axes(result):  # the source may run at one size alone, and the candidate state it
        at_its_sizes(model, lambda model: probed(model, run_once))
    _same_face(model, result)
    model = reweighted(model, plan, weights, run_once) if weights else model
    fine, finer = _smooth(model), _smooth(result)
    session = make_session(candidate, provider=provider, prepack=False)
    if fine is not model:
        logger.info("%s: compared with the source in float32 arithmetic, activations not rounded", candidate)
        _runs(model, session)
        session = make_session(detached(finer), provider=provider, optimize=False, prepack=False)
    trials, found = _answered(session, fine, plan)
    del session  # before the source's sessions are made: each maps all of its weights
    return _compare(_Oracle(fine, plan, optimize=fine is model), trials, found)


def _verify_rounded(
    source: str | Path, candidate: Path, plan: Plan, provider: str, weights: Weights | None, sample: Path | None
) -> float:
    """The same plan in float32 against the source, then the candidate against that (`integer_weights.py`, `half_weights.py`)."""
    from axformer_onnx.result.half_weights import put_halves
    from axformer_onnx.result.integer_weights import put_integers
    from axformer_onnx.result.static_ranges import require_ranges
    from axformer_onnx.runtime import make_session, run_once
    from axformer_passes.apply import apply_plan
    from axformer_passes.io import save_model

    complaint = _complaint(candidate)
    if complaint is not None and _complaint(source) is None:
        raise VerifyError(f"{candidate}: the ONNX checker refuses it: {complaint}")
    model, result, bare = (
        _opened(source, plan, sample),
        load_model(candidate),
        dataclasses.replace(plan, int8=None, half=None),
    )
    at_its_sizes(model, lambda model: probed(model, run_once))
    floats = apply_plan(model, bare, run_once, weights=weights, fused=not plan.int8)
    with tempfile.TemporaryDirectory(dir=candidate.parent, prefix=".in-float32-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(floats, path)
        worst = verify(source, path, bare, provider=provider, weights=weights, sample=sample)
    _same_face(model, result)
    if plan.int8:
        put_integers(floats, result)
    if plan.int8 and plan.int8.is_static:
        require_ranges(recognise(model, run_once), plan, result)
    if plan.half:
        put_halves(floats, result, plan.half.type)
    describe(floats, recipe_of(model))
    _runs(floats, make_session(candidate, provider=provider, prepack=False))
    finer = _smooth(result)
    if finer is result and any(node.op_type in _ROUNDING for node in result.graph):
        raise VerifyError(f"{candidate}: an operator computes with its integers that has no float form to compare with")
    session = make_session(detached(finer), provider=provider, optimize=False, prepack=False)
    trials, found = _answered(session, floats, plan)
    return max(worst, _compare(lambda feeds: run_once(detached(floats), feeds), trials, found))


def _opened(source: str | Path, plan: Plan, sample: Path | None) -> ir.Model:
    """The source in the form that `plan` is carried out on; its float32 form must answer what its integers do, not rounded.

    Raises: VerifyError.
    """
    from axformer_onnx.runtime import run_once
    from axformer_passes.apply import as_planned

    given = open_model(source, sample)
    model = as_planned(given, plan)
    if model is not given:
        smooth = _smooth(with_clipping(given))
        feeds, _ = probed(model, run_once)
        _compare(lambda trial: run_once(detached(smooth), trial), [feeds], [run_once(detached(model), feeds)])
    return model


def _complaint(path: str | Path) -> str | None:
    """What the full checker says against a file; None: nothing. ONNX Runtime's own tools write operators that it does not know."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker's two kinds of error share no base
        return _first_line(error)
    return None


def _smooth(model: ir.Model) -> ir.Model:
    """The twin that computes the same without rounding to half precision or integers; the model itself where it rounds nothing.

    Rounding makes a large difference of a small one, so that only the twins show whether a graph is cut right. ONNX Runtime
    would round again where weights are quantised: its rewrites stay off.
    """
    graph = detached(prepared(model))
    halves = holds(graph.proto, HALVES)
    if not halves and not any(node.op_type in _ROUNDING for node in graph.proto.graph.node):
        return model
    proto = graph.whole()
    twin = unrounded(widened(proto) if halves else proto)
    if twin is proto:
        return model
    smooth: ir.Model = ir.from_proto(twin)
    describe(smooth, recipe_of(model))
    return smooth


def _runs(model: ir.Model, session: Any) -> None:
    """The candidate itself runs on the source's probe."""
    from axformer_onnx.runtime import run_once, run_session

    feeds, values = probed(model, run_once)
    for name, array in run_session(session, feeds).items():
        if array.shape != values[name].shape:
            raise VerifyError(f"output {name!r} has shape {array.shape}, expected {values[name].shape}")


def _same_face(source: ir.Model, result: ir.Model) -> None:
    """Opset, IR version, input and output names, types and dynamic axes are the source's."""

    def face(model: ir.Model) -> dict[str, object]:
        values = [(v.name, str(v.dtype), str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
        return {"opset": dict(model.opset_imports), "IR version": model.ir_version, "inputs and outputs": values}

    before, after = face(source), face(result)
    for what, value in before.items():
        if after[what] != value:
            raise VerifyError(f"{what} changed from {value} to {after[what]}")


def _answered(session: Any, source: ir.Model, plan: Plan) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """(feeds, what the candidate answers): of several sizes, those that the source does not take left out.

    Raises: RuntimeFailure where the candidate does not run and the source does.
    """
    from axformer_onnx.runtime import run_once, run_session

    kept, found = list[dict[str, Array]](), list[dict[str, Array]]()
    feeds, _ = probed(source, run_once)
    for trial in (*_trials(source), *_ragged_trials(source, plan), feeds):
        if trial is feeds and kept:
            break
        try:
            found.append(run_session(session, trial))
            kept.append(trial)
        except RuntimeFailure:
            if trial is feeds or _takes(source, trial):
                raise
    return kept, found


def _takes(model: ir.Model, feeds: dict[str, Array]) -> bool:
    from axformer_onnx.runtime import run_once

    try:
        run_once(detached(model), feeds)
    except RuntimeFailure:
        return False
    return True


def _axes(model: ir.Model) -> list[str]:
    return [str(value.shape) for value in model.graph.inputs]


def _trials(model: ir.Model) -> list[dict[str, Array]]:
    """Of several sizes; none where only the probe's own is known to do."""
    open_length = any(not isinstance(d, int) for v in model.graph.inputs for d in list(v.shape or ())[1:])
    numbers = any(v.dtype is not None and v.dtype.is_floating_point() for v in model.graph.inputs)  # images, sound
    usual = usual_tokens(model)
    return [] if numbers or not open_length else [probe_feeds(model, b, usual + s, seed=5 + s) for b, s in _SHAPES]


def _ragged_trials(model: ir.Model, plan: Plan) -> list[dict[str, Array]]:
    if plan.padding == "kept":
        return []
    return [ragged(model, probe_feeds(model, b, usual_tokens(model) + s, seed=11 + s)) for b, s in _RAGGED]


def _compare(
    oracle: Callable[[dict[str, Array]], Mapping[str, Array]],
    trials: list[dict[str, Array]],
    found: list[dict[str, Array]],
) -> float:
    worst = 0.0
    for feeds, outputs in zip(trials, found, strict=True):
        for name, array in oracle(feeds).items():
            one = require_near(f"output {name!r}", array, outputs[name], TOLERANCE, of="the source under the plan")
            worst = max(worst, one)
    return worst


def require_near(what: str, expected: Array, found: Array, tolerance: float, *, of: str) -> float:
    """The largest difference, relative to the largest expected value. `of`: whose value is expected, for the message.

    Raises: VerifyError where it is beyond `tolerance`, or no number, or the shapes differ.
    """
    if expected.shape != found.shape:
        raise VerifyError(f"{what} has shape {found.shape}, expected {expected.shape}")
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-6)
    difference = float(np.abs(expected.astype(np.float64) - found).max(initial=0.0)) / scale
    if not difference <= tolerance:
        raise VerifyError(
            f"{what} differs from {of} by {difference:.1e} of its largest value, expected at most {tolerance:g}"
        )
    return difference


class _Oracle:
    """The source under a plan, through gates."""

    def __init__(self, model: ir.Model, plan: Plan, optimize: bool) -> None:
        from axformer_onnx.scoring import StageSessions

        self.sessions = StageSessions(model, optimize=optimize, prepack=False)
        self.settings = self.sessions.settings(plan)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        tensors = dict(feeds)
        for stage, setting in zip(self.sessions.stages, self.settings, strict=True):
            tensors.update(self.sessions.run(stage, setting.form, {**tensors, **setting.feeds}))
        return {name: tensors[name] for name in self.sessions.staged.graph_outputs}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


__all__ = ["TOLERANCE", "verify"]
