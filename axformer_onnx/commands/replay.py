"""Replay a plan: plan and source in, the same graph out every time."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.compensate import load_weights, weights_path
from axformer_onnx.errors import ModelError, PlanError, RuntimeFailure, UsageError
from axformer_onnx.inputs import Source, left_beside, locate
from axformer_onnx.options import names_the_hub
from axformer_onnx.probing import size_note
from axformer_onnx.result import MODEL, copy_companions, staging
from axformer_onnx.runtime import run_once
from axformer_passes.io import is_checkpoint, read_regular, settings_folder, sha256_of
from axformer_passes.plan import Plan

if TYPE_CHECKING:
    from axformer_passes.cut import Weights

logger = logging.getLogger(__name__)
PLAN_BYTES = 2**28
"""A plan is not longer: it names at most every neuron of a model."""


def apply(
    plan: Path | Plan,
    model: Path,
    output: Path,
    *,
    overwrite: bool = False,
    sample: Path | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> Path:
    """Apply `plan` to `model`; returns the graph's path.

    plan    a file, a folder that holds plan.json, or a plan without weights
    model   for a checkpoint the graph that the plan was made for is looked for beside plan and output, where `optimize` leaves it;
            else it is exported into the user's cache
    output  a file name that ends in .onnx, or a folder: then the graph is model.onnx in it, with the plan and the
            tokenizer and config files of the source
    sample  an .npz file with inputs that the model takes; None: made of what its folder tells

    Raises: PlanError for a plan of another model, UsageError for an output that exists, VerifyError for a graph that
    failed its check; then nothing was written.
    """
    if isinstance(plan, Plan):
        return _apply_in_memory(plan, model, output, overwrite, sample, step)
    plan_path = plan / "plan.json" if plan.is_dir() else plan
    plan = read_plan(plan_path)
    source = _source_of(plan, plan_path, model, output, step)
    single = output.suffix == ".onnx"
    folder = output.parent if single else output
    _require_free(output, source, overwrite)
    with _staged(folder) as staging:
        path = staging / (output.name if single else MODEL)
        weights = weights_path(plan_path, plan.weights)
        opened = Source.of(source, sample, dequantise=plan.source == "dequantised")
        if size_note(opened.model):
            logger.warning("%s: %s", source, size_note(opened.model))
        written = _write(opened, plan, path, weights)
        del opened
        gc.collect()  # a graph is full of circles: until then its maps of the source's weights stay
        _verify(source, path, *written, sample)
        if not single:
            shutil.copyfile(plan_path, staging / "plan.json")
            if weights is not None:
                shutil.copyfile(weights, staging / weights.name)
            copy_companions(settings_folder(source), staging)
    return folder / path.name


def _apply_in_memory(
    plan: Plan, model: Path, output: Path, overwrite: bool, sample: Path | None, step: Callable[[str], None]
) -> Path:
    if plan.weights is not None:
        raise UsageError(f"the plan names its weights, {plan.weights}: give the file or folder that it was read from")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.json").write_text(plan.dumps(), encoding="utf-8")
        return apply(Path(folder), model, output, overwrite=overwrite, sample=sample, step=step)


def read_plan(path: Path) -> Plan:
    """The plan at `path`. Raises: PlanError."""
    try:
        text = read_regular(path, PLAN_BYTES).decode("utf-8")
    except ModelError as error:
        raise PlanError(str(error)) from None
    except UnicodeDecodeError:
        raise PlanError(f"{path}: not a plan: not UTF-8 text") from None
    return Plan.loads(text, str(path))


def _source_of(plan: Plan, plan_path: Path, model: Path, output: Path, step: Callable[[str], None]) -> Path:
    """The graph that `model` names, which must be the one that the plan was made for (or the plan for none in particular).

    Raises: PlanError; ModelError and RuntimeFailure as `locate`.
    """
    if plan.source_sha256 and (names_the_hub(model) or is_checkpoint(model)):
        for beside in (plan_path.resolve().parent, output.resolve()):
            left = left_beside(model, beside) / MODEL
            if left.is_file() and sha256_of(left) == plan.source_sha256:
                return left
    located = locate(model, None, None, step)
    found = sha256_of(located.path)
    if plan.source_sha256 not in ("", found):
        exported = located.name != str(located.path)
        hint = "; of a checkpoint that is the export which optimize left beside its output" if exported else ""
        raise PlanError(
            f"{plan_path}: a plan for another model (sha256 {plan.source_sha256[:12]}...), but {located.path} has "
            f"{found[:12]}...; give the model that the plan was made for{hint}"
        )
    return located.path


def write_planned(
    source: Source, plan: Plan, path: Path, weights_file: Path | None = None, built: Path | None = None
) -> None:
    """Write the graph of `plan` to `path`, verified against the file of `source`. Raises: PlanError, VerifyError.

    weights_file   where the weights that the plan names lie
    built          where the graph lies already, if it does: it is moved, and verified as any other
    """
    _verify(source.path, path, *_write(source, plan, path, weights_file, built), source.sample)


def _write(
    source: Source, plan: Plan, path: Path, weights_file: Path | None, built: Path | None = None
) -> tuple[Plan, Weights | None]:
    """Write the graph; returns the plan and its weights with each layer's ids written out."""
    from axformer_passes.apply import apply_plan
    from axformer_passes.blocks import expanded
    from axformer_passes.cut import expanded_weights, weight_shapes
    from axformer_passes.io import save_model

    examined = source.examined
    plan.validate(examined.anatomy)
    weights = load_weights(weights_file, weight_shapes(plan, examined)) if weights_file else None
    weights = expanded_weights(weights, plan, examined.anatomy) if weights else weights
    plan = expanded(plan, examined.anatomy)
    if built is None:
        save_model(apply_plan(source.model, plan, run_once, examined=examined, weights=weights), path)
    else:
        for part in built.parent.glob(f"{built.name}*"):  # its external data with it
            part.replace(path.parent / part.name)
    return plan, weights


def _verify(source: Path, path: Path, plan: Plan, weights: Weights | None, sample: Path | None) -> None:
    from axformer_onnx.result import verify

    verify(source, path, plan, weights=weights, sample=sample)


def _require_free(output: Path, source: Path, overwrite: bool) -> None:
    if source.resolve() in (output.resolve(), (output / MODEL).resolve()):
        raise UsageError(f"{output}: is the model to apply the plan to; the input is never modified. Use another -o")
    occupied = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if occupied and not overwrite:
        raise UsageError(f"{output}: exists. Use another -o, or --overwrite")


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """As `staging`; a folder that was made for it goes again if the block fails."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        raise RuntimeFailure(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        with staging(folder) as hidden:
            yield hidden
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
