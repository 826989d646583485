"""What a run was pointed at: a graph, a folder that holds one, a checkpoint, or a name on the hub; and the task that it states."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from axformer_onnx.data import read_json
from axformer_onnx.errors import RuntimeFailure, UsageError
from axformer_onnx.inputs.hub_models import snapshot
from axformer_onnx.options import names_the_hub
from axformer_onnx.runtime import cache_folder
from axformer_onnx.tasks import GLUE, get_task, is_kind, model_label_names, spelled_alike
from axformer_passes.errors import AxformerError
from axformer_passes.io import graph_files, is_checkpoint, model_path


@dataclasses.dataclass(frozen=True)
class Located:
    """A graph, and how it was come by.

    name    what people call it: its path, or the checkpoint or the name on the hub that it is of
    notes   sentences for the user
    """

    path: Path
    name: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StatedTask:
    """A task that a model names, and where."""

    name: str
    where: str


def locate(
    model: Path, beside: Path | None, task: str | None, step: Callable[[str], None] = lambda text: None
) -> Located:
    """The graph that `model` names; a checkpoint, of a folder or of the hub, is exported, unless that export is there already.

    beside  the export goes to `left_beside` this path; None: into the user's cache, where a later one of the same checkpoint
            takes its place
    task    GLUE's name of what it was fine-tuned for, where that is known: the export compares the labels

    Raises: ModelError where nothing is found; RuntimeFailure without torch, without huggingface_hub or without the hub.
    """
    name = str(model)
    if not names_the_hub(model):
        if not is_checkpoint(model) or graph_files(model):
            path = model_path(model)
            return Located(path, str(path))
        return _exported(model, beside, task, step)
    folder = snapshot(name, step)
    if folder is not None:
        return Located(model_path(folder), name, (f"the hub's model {name} is read from {folder}",))
    return _exported(model, beside, task, step)


def left_beside(model: Path, beside: Path) -> Path:
    """Where the export of a checkpoint goes that is made for an output at `beside`: `<its name>-onnx` in the same folder."""
    return beside.parent / f"{_name_of(model)}-onnx"


def stated_task(metadata: Mapping[str, str], folder: Path) -> StatedTask | None:
    """The task that a model names itself: in the graph's metadata, in config.json, by a folder of sentence-transformers."""
    told = metadata.get("axformer.task")
    if told and (told in GLUE or is_kind(told)):
        return StatedTask(told, "the graph's metadata")
    if metadata.get("axformer.embedding"):
        return StatedTask("embedding", "the graph's metadata")
    named = read_json(folder / "config.json").get("finetuning_task")
    if isinstance(named, str):
        try:
            return StatedTask(get_task(named).name, "config.json, finetuning_task")
        except AxformerError:
            pass
    if (folder / "modules.json").is_file():
        return StatedTask("embedding", "modules.json: of sentence-transformers")
    return None


def likely_tasks(folder: Path) -> tuple[str, ...]:
    """Tasks that the names of the model's labels speak for, the best known first; none where they say nothing."""
    config = read_json(folder / "config.json")
    if config.get("problem_type") == "multi_label_classification":
        return ("multilabel",)
    names = spelled_alike(model_label_names(config) or ())
    found = [task.name for task in GLUE.values() if names and spelled_alike(task.labels) == names]
    return tuple(found) or (("custom",) if names else ())


def not_stated(model: Path | str, folder: Path) -> UsageError:
    """What to say where nobody says what the task is."""
    likely = likely_tasks(folder)
    hint = f"; its labels are those of {' and '.join(likely[:3])}" if likely and likely[0] != "custom" else ""
    return UsageError(f"{model}: nothing in it says what task it was fine-tuned for{hint}: give --task")


def _exported(model: Path, beside: Path | None, task: str | None, step: Callable[[str], None]) -> Located:
    from axformer_onnx.exporting import export

    out = left_beside(model, beside) if beside is not None else _kept(model)
    step(f"exporting {model} to {out}")
    result = export(str(model), out, task=task, replace=beside is None)
    said = f"the checkpoint {model} was exported to {out} ({result.exporter}, operator set {result.opset}"
    differs = "" if result.worst_difference is None else f"; within {result.worst_difference:.0e} of torch"
    return Located(result.path, str(model), (f"{said}{differs})", *result.notes))


def _kept(model: Path) -> Path:
    """The folder in the user's cache for a checkpoint, told from others of its name by where it is. Raises: RuntimeFailure."""
    where = str(model) if names_the_hub(model) else str(model.resolve())
    folder = cache_folder("exports") / f"{_name_of(model)}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeFailure(
            f"{folder.parent}: cannot be written: {error.strerror}; {model} would be exported there. "
            f"Export it elsewhere and name that: axformer-onnx export {model} OUT"
        ) from None
    return folder


def _name_of(model: Path) -> str:
    return model.name if names_the_hub(model) else model.resolve().name


__all__ = ["Located", "StatedTask", "left_beside", "likely_tasks", "locate", "not_stated", "stated_task"]
