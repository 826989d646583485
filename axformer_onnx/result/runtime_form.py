"""The result in the form that its runtime computes fastest, beside the portable graph: by measurement, or not at all.

    model.onnx -> each form -> verified -> interleaved with it at the goal's shape -> the fastest once more, at all shapes -> kept

The fastest of several is a lucky one, so it is measured once more, and kept if the interval of that lies above 1, and holds.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.errors import AxformerError, VerifyError
from axformer_onnx.probing import open_model
from axformer_onnx.records import Interval
from axformer_onnx.result.form_verification import verify_form
from axformer_onnx.result.output_folder import RUNTIME_MODEL
from axformer_onnx.runtime import LatencyRow, run_once
from axformer_onnx.scoring import latency_of
from axformer_passes.io import save_model
from axformer_passes.runtime_forms import RUNTIME_FORMS, RuntimeForm

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.scoring import Machine
    from axformer_passes.probe import TokenSequence

logger = logging.getLogger(__name__)
_PORTABLE = "the portable graph"


@dataclasses.dataclass(frozen=True)
class TriedForm:
    """One form: how many times as fast as the portable graph (None: not measured), and what there is to say of it."""

    form: str
    speedup: Interval | None
    why: str


@dataclasses.dataclass(frozen=True)
class MeasuredForms:
    """What was tried, and what came of it.

    kept      the form of the file that was written; None: the portable graph is as fast as any
    latency   (portable graph, form) at every shape, measured anew; of the one that was kept, or was not after all
    contrib   has operators of com.microsoft
    """

    tried: tuple[TriedForm, ...]
    kept: str | None = None
    contrib: bool = False
    latency: tuple[LatencyRow, ...] = ()


def keep_faster_form(
    portable: Path,
    folder: Path,
    shapes: Sequence[tuple[int, int]],
    tokens: TokenSequence,
    machine: Machine,
    *,
    seed: int = 0,
    sample: Path | None = None,
    forms: Iterable[RuntimeForm] = tuple(RUNTIME_FORMS.values()),
) -> MeasuredForms:
    """Write RUNTIME_MODEL beside the graph at `portable` if one of `forms` is measured faster on this machine.

    folder   of the model's tokenizer and configuration
    shapes   (batch, length); the first one counts

    Raises: VerifyError where a form computes something else: a bug, and nothing was written.
    """
    model = open_model(portable, sample, folder=folder)
    tried, paths = list[TriedForm](), dict[str, Path]()
    with tempfile.TemporaryDirectory(dir=portable.parent, prefix=".forms-") as staging:
        for form in forms:
            why = _built(form, model, portable, Path(staging) / form.name, machine, sample)
            if why is None:
                paths[form.name] = Path(staging) / form.name / RUNTIME_MODEL
            else:
                tried.append(TriedForm(form.name, None, why))
        if not paths:
            return MeasuredForms(tuple(tried))
        first = _speeds(portable, paths, shapes[:1], tokens, machine, seed)
        speedups = {row.model: row.ratio for row in first if row.ratio is not None}
        tried += [
            TriedForm(name, found, RUNTIME_FORMS[name].help)
            if found.reliable
            else TriedForm(name, None, f"not measured: {found.why}")
            for name, found in speedups.items()
        ]
        best = max(speedups, key=lambda name: speedups[name].value)
        if speedups[best].low <= 1:
            return MeasuredForms(tuple(tried))
        again = _speeds(portable, {best: paths[best]}, shapes, tokens, machine, seed + 1)
        second = again[1].ratio
        holds = second is not None and second.reliable and second.low > 1
        if holds:
            for part in paths[best].parent.glob(f"{RUNTIME_MODEL}*"):  # its external data with it
                shutil.move(part, portable.parent / part.name)
    return MeasuredForms(tuple(tried), best if holds else None, RUNTIME_FORMS[best].contrib, tuple(again))


def _built(
    form: RuntimeForm, model: ir.Model, portable: Path, folder: Path, machine: Machine, sample: Path | None
) -> str | None:
    """Write the form of `model` into `folder`, verified; returns why there is none."""
    folder.mkdir()
    rewritten = form.of(model, run_once)
    if not rewritten.changed:
        return rewritten.left[0] if rewritten.left else "nothing in this graph has that form"
    path = folder / RUNTIME_MODEL
    try:
        save_model(rewritten.model, path)
        worst = verify_form(portable, path, provider=machine.provider, sample=sample)
    except VerifyError:
        raise
    except AxformerError as error:  # the provider has no such operator for these types
        return str(error)
    logger.info("%s: %d places, largest difference %.1e", form.name, len(rewritten.changed), worst)
    return None


def _speeds(
    portable: Path,
    forms: dict[str, Path],
    shapes: Sequence[tuple[int, int]],
    tokens: TokenSequence,
    machine: Machine,
    seed: int,
) -> list[LatencyRow]:
    return latency_of({_PORTABLE: portable, **forms}, shapes, tokens, machine, seed)


__all__ = ["MeasuredForms", "TriedForm", "keep_faster_form"]
