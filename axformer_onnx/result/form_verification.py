"""A runtime form against the portable graph that it was made of: the same face, the same answers on batches of unlike rows.

Nothing of what wrote the form is used: both files are run, with ONNX Runtime's own rewrites off, so that a wrong head count,
scale or mask shows. Where the graph rounds to integers or halves, both are compared without the rounding, which would make a
large difference of a last bit; the file as it is must then run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir

from axformer_onnx.errors import RuntimeFailure, VerifyError
from axformer_onnx.probing import open_model
from axformer_onnx.result.verification import require_near
from axformer_passes.io import load_model
from axformer_passes.prepare import unrounded
from axformer_passes.probe import HALVES, holds, probe_feeds, probed, ragged, usual_tokens, widened

FORM_TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest value. Sums in another order stay below 1e-5."""
_SHAPES = ((1, -2), (3, 0), (5, 3))
"""Rows, and tokens beside the probe's."""
_ROUNDING = re.compile(r"Quantize|^QLinear|^QAttention|^QGemm|^QEmbed|MatMulNBits")
Array = npt.NDArray[Any]


def verify_form(portable: Path, form: Path, *, provider: str = "cpu", sample: Path | None = None) -> float:
    """Check that `form` computes what `portable` does; returns the largest relative difference of an output.

    Raises: VerifyError with the first thing that is wrong; ModelError where the provider does not load it.
    """
    from axformer_onnx.runtime import make_session, run_once, run_session

    model, other = open_model(portable, sample), load_model(form)
    _same_face(model, other)
    feeds, values = probed(model, run_once)
    asked = run_session(make_session(form, provider=provider), feeds)
    for name, array in asked.items():
        if array.shape != values[name].shape:
            raise VerifyError(f"{form.name}: output {name!r} has shape {array.shape}, expected {values[name].shape}")
    before, after = (make_session(_plainly(path), optimize=False) for path in (portable, form))
    worst, compared = 0.0, 0
    for trial in _trials(model, feeds):
        try:
            expected = run_session(before, trial)
        except RuntimeFailure:  # a size that the portable graph does not take
            continue
        found = run_session(after, trial)
        for name, array in expected.items():
            what = f"{form.name}: output {name!r}"
            one = require_near(what, array, found[name], FORM_TOLERANCE, of="the portable graph's")
            worst = max(worst, one)
        compared += 1
    if not compared:
        raise VerifyError(f"{portable.name} runs on none of the batches that {form.name} is compared on")
    return worst


def _plainly(path: Path) -> Path | bytes:
    """The graph of a file without rounding to integers or halves, its operators as they are; the file, where it has none.

    Raises: RuntimeFailure where there is no such graph.
    """
    proto = onnx.load(str(path), load_external_data=False)
    if not holds(proto, HALVES) and not _rounding(proto):
        return path
    proto = onnx.load(str(path))
    smooth = unrounded(widened(proto) if holds(proto, HALVES) else proto)
    if _rounding(smooth):
        raise RuntimeFailure(f"{path.name}: {_rounding(smooth)} rounds and has no float form to compare with")
    try:
        return bytes(smooth.SerializeToString())
    except Exception:  # protobuf's own, whose kind depends on its implementation
        raise RuntimeFailure(f"{path.name}: too large to be compared without its rounding") from None


def _rounding(proto: onnx.ModelProto) -> str | None:
    """The first operator that rounds activations, fused ones included."""
    found = (node.op_type for node in proto.graph.node if node.op_type != "DequantizeLinear")
    return next((operator for operator in found if _ROUNDING.search(operator)), None)


def _same_face(portable: ir.Model, form: ir.Model) -> None:
    for what in ("inputs", "outputs"):
        before, after = (
            [(v.name, str(v.dtype), str(v.shape)) for v in getattr(model.graph, what)] for model in (portable, form)
        )
        if before != after:
            raise VerifyError(f"the {what} changed from {before} to {after}")
    missing = set(portable.opset_imports.items()) - set(form.opset_imports.items())
    if missing:
        raise VerifyError(f"the operator sets changed: {sorted(missing)} are gone")


def _trials(model: ir.Model, feeds: dict[str, Array]) -> Iterator[dict[str, Array]]:
    """The probe, batches of other sizes, and each with rows that differ in length."""
    yield feeds
    yield ragged(model, feeds)
    usual = usual_tokens(model)
    for rows, more in _SHAPES:
        trial = probe_feeds(model, rows, max(usual + more, 1), seed=17 + rows)
        yield trial
        yield ragged(model, trial)


__all__ = ["FORM_TOLERANCE", "verify_form"]
