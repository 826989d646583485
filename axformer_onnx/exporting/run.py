"""The export itself: load, export, finish, check, copy, rename. Until the last step only a hidden folder exists."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from axformer_onnx.errors import ModelError, RuntimeFailure, UsageError
from axformer_onnx.exporting.check import check_graph, random_inputs, torch_outputs, worst_difference
from axformer_onnx.exporting.checkpoint import Attention, Checkpoint, copy_files, load_checkpoint
from axformer_onnx.exporting.exporters import EXPORTERS, OF_MODULES, Attempt, Exporter, attempts, write_raw
from axformer_onnx.exporting.graph import finish
from axformer_onnx.tasks import get_task, is_kind
from axformer_passes.io import SINGLE_FILE_LIMIT, load_model


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What was exported.

    path              the graph, model.onnx in the output folder
    exporter, opset   what was used, also where `auto` chose
    inputs, outputs   names, in the graph's order
    worst_difference  largest absolute difference from torch's outputs; None: not compared
    notes             what the user should know, one sentence each
    """

    path: Path
    exporter: Exporter
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    worst_difference: float | None
    notes: tuple[str, ...] = ()


def export(
    checkpoint: str | Path,
    out: Path,
    *,
    task: str | None = None,
    exporter: Literal["auto"] | Exporter = "auto",
    opset: int | None = None,
    attention: Attention | None = None,
    check: bool = True,
    single_file_limit: int = SINGLE_FILE_LIMIT,
    replace: bool = False,
) -> ExportResult:
    """Write a fine-tuned checkpoint to OUT/model.onnx, its tokenizer and config.json beside it.

    checkpoint         folder, or a name on the Hugging Face hub; of sentence-transformers a folder, whose pooling and
                       normalisation become part of the graph
    task               a GLUE name: recorded in the graph, its number of labels compared; or custom, or a kind
    attention          None: what transformers chooses, sdpa where the model has it
    check              compare with torch on random inputs (`check.SHAPES`, `check.TOLERANCE`)
    single_file_limit  bytes of weights above which they go to model.onnx.data
    replace            another export in OUT gives way to this one

    The same export again leaves OUT as it is, after checking it. Raises: UsageError, ModelError, RuntimeFailure,
    VerifyError; then nothing was written.
    """
    out, name = Path(out), _glue_name(task)
    attempts(exporter, opset)  # refuses before anything is loaded
    _require_free_or_model(out)
    loaded = load_checkpoint(checkpoint, attention)
    tries = attempts(exporter, opset, OF_MODULES if loaded.sentence else EXPORTERS)
    if name:
        _require_labels(loaded, name)
    request = _provenance(loaded, name, f"{exporter} {opset} {attention}")
    if (out / "model.onnx").is_file() and not (replace and _other(out, request)):
        return _again(loaded, out, request, check)
    with _beside(out) as folder:
        result = _first_that_works(loaded, tries, folder, request, check, single_file_limit)
        notes = (*result.notes, *copy_files(loaded, folder))
        _publish(folder, out, replace)
    return dataclasses.replace(result, path=out / "model.onnx", notes=notes)


def _first_that_works(
    checkpoint: Checkpoint,
    tries: list[Attempt],
    folder: Path,
    provenance: dict[str, str],
    check: bool,
    limit: int,
) -> ExportResult:
    notes: list[str] = []
    for attempt in tries:
        try:
            result = _one(checkpoint, attempt, folder, provenance, check, limit)
            return dataclasses.replace(result, notes=tuple(notes))
        except ModelError as error:
            if attempt is tries[-1]:
                raise
            notes.append(str(error))
    raise AssertionError("there is always something to try")


def _one(
    checkpoint: Checkpoint,
    attempt: Attempt,
    folder: Path,
    provenance: dict[str, str],
    check: bool,
    limit: int,
) -> ExportResult:
    axes = _axes(checkpoint)
    used = {"axformer.exporter": attempt.exporter, "axformer.attention": checkpoint.attention}
    path = folder / "model.onnx"
    with tempfile.TemporaryDirectory(dir=folder) as raw:
        graph = write_raw(checkpoint, attempt, Path(raw))
        model = finish(graph, path, axes, {**provenance, **used}, limit)
    check_graph(path)
    worst = worst_difference(checkpoint, path) if check else None
    return _result(path, model, attempt.exporter, worst)


def _result(path: Path, model: Any, exporter: Any, worst: float | None) -> ExportResult:
    names = [tuple(str(value.name) for value in values) for values in (model.graph.inputs, model.graph.outputs)]
    return ExportResult(path, exporter, model.opset_imports[""], names[0], names[1], worst)


def _axes(checkpoint: Checkpoint) -> dict[str, list[str | int]]:
    """Axes of inputs and outputs: torch is asked at two shapes, what moved with rows or tokens is named after them."""
    shapes = (2, min(7, checkpoint.longest)), (3, min(5, checkpoint.longest))
    arrays = []
    for batch, length in shapes:
        feeds = random_inputs(checkpoint, batch, length, padded=True, seed=0)
        arrays.append({**feeds, **torch_outputs(checkpoint, feeds)})

    def axis(sizes: tuple[int, int]) -> str | int:
        if sizes[0] == sizes[1]:
            return sizes[0]
        return "batch_size" if sizes == (2, 3) else "sequence_length"

    first, second = arrays
    return {k: [axis(sizes) for sizes in zip(first[k].shape, second[k].shape, strict=True)] for k in first}


def _glue_name(task: str | None) -> str | None:
    return None if task is None or task == "custom" or is_kind(task) else get_task(task).name


def _require_labels(checkpoint: Checkpoint, task: str) -> None:
    expected = get_task(task).kind.head_columns(get_task(task))
    found = checkpoint.config.num_labels
    if checkpoint.head != "ForSequenceClassification" or found != expected:
        raise UsageError(
            f"{checkpoint.name}: {checkpoint.head} with {found} labels, but task {task} needs sequence classification "
            f"with {expected}; give the task that it was trained on, or none"
        )


def _provenance(checkpoint: Checkpoint, task: str | None, request: str) -> dict[str, str]:
    import torch
    import transformers

    return {
        **({"axformer.task": task} if task else {}),
        **({"axformer.embedding": checkpoint.sentence.words} if checkpoint.sentence else {}),
        "axformer.checkpoint": checkpoint.name,
        "axformer.checkpoint_sha256": checkpoint.sha256,
        "axformer.export": f"{request}; torch {torch.__version__}, transformers {transformers.__version__}",
    }


def _again(checkpoint: Checkpoint, out: Path, request: dict[str, str], check: bool) -> ExportResult:
    """OUT holds a model: fine if it is this very export."""
    path = out / "model.onnx"
    if _other(out, request):
        raise UsageError(f"{out}: holds another model; give an empty or new folder")
    model = load_model(path)
    worst = worst_difference(checkpoint, path) if check else None
    result = _result(path, model, model.metadata_props["axformer.exporter"], worst)
    return dataclasses.replace(result, notes=(f"{out} already holds this export: left as it is",))


def _other(out: Path, request: dict[str, str]) -> bool:
    """Is the model in OUT another one than was asked for?"""
    found = load_model(out / "model.onnx").metadata_props
    return {key: found.get(key) for key in request} != request


def _require_free_or_model(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file; expected a folder to write model.onnx into")
    if out.is_dir() and any(out.iterdir()) and not (out / "model.onnx").is_file():
        raise UsageError(f"{out}: not empty, and no export is in it; give an empty or new folder")


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, gone afterwards unless it was renamed."""
    try:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.resolve().parent)
    except OSError as error:
        raise RuntimeFailure(f"{out}: cannot be written: {error.strerror or error}") from None
    with temporary as folder:
        (Path(folder) / "model").mkdir()  # with the user's own permissions, which a temporary folder has not
        yield Path(folder) / "model"


def _publish(folder: Path, out: Path, replace: bool) -> None:
    try:
        if out.is_dir() and replace:
            os.rename(out, folder.parent / "replaced")  # and goes with the hidden folder
        elif out.is_dir():
            out.rmdir()  # empty, or it fails
        os.rename(folder, out)
    except OSError as error:
        raise RuntimeFailure(f"{out}: cannot be written: {error.strerror or error}") from None
