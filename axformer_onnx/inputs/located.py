"""What a run was pointed at: a graph, a folder that holds one, a checkpoint, or a name on the hub; and the task that it states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from axformer_onnx.data import read_json
from axformer_onnx.errors import RuntimeFailure, UsageError
from axformer_onnx.options import names_the_hub
from axformer_onnx.tasks import GLUE, get_task, is_kind, model_label_names, spelled_alike
from axformer_passes.errors import AxformerError
from axformer_passes.io import graph_files, is_checkpoint, model_path

_GRAPHS_ON_THE_HUB = ("model.onnx*", "onnx/model.onnx*", "*.json", "*.txt", "*.model", "1_Pooling/*")


@dataclasses.dataclass(frozen=True)
class Located:
    """A graph, and how it was come by; `notes`: sentences for the user."""

    path: Path
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StatedTask:
    """A task that a model names, and where."""

    name: str
    where: str


def locate(model: Path, beside: Path, task: str | None, step: Callable[[str], None] = lambda text: None) -> Located:
    """The graph that `model` names; a checkpoint, of a folder or of the hub, is exported to `<its name>-onnx` beside `beside`.

    task   GLUE's name of what it was fine-tuned for, where that is known: the export compares the labels

    Raises: ModelError where nothing is found; RuntimeFailure without torch, without huggingface_hub or without the hub.
    """
    name = str(model)
    if not names_the_hub(model):
        if not is_checkpoint(model) or graph_files(model):
            return Located(model_path(model))
        return _exported(name, model.resolve().name, beside, task, step)
    folder = _snapshot(name, step)
    if folder is not None:
        return Located(model_path(folder), (f"{name} is the hub's model of that name: {folder}",))
    return _exported(name, model.name, beside, task, step)


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


def not_stated(model: Path, folder: Path) -> UsageError:
    """What to say where nobody says what the task is."""
    likely = likely_tasks(folder)
    hint = f"; its labels are those of {' and '.join(likely[:3])}" if likely and likely[0] != "custom" else ""
    return UsageError(f"{model}: nothing in it says what task it was fine-tuned for{hint}: give --task")


def _exported(checkpoint: str, name: str, beside: Path, task: str | None, step: Callable[[str], None]) -> Located:
    from axformer_onnx.exporting import export

    out = beside.parent / f"{name}-onnx"
    step(f"exporting {checkpoint} to {out}")
    result = export(checkpoint, out, task=task)
    said = f"{checkpoint} was exported to {out} ({result.exporter}, operator set {result.opset}"
    differs = "" if result.worst_difference is None else f"; within {result.worst_difference:.0e} of torch"
    return Located(result.path, (f"{said}{differs})", *result.notes))


def _snapshot(name: str, step: Callable[[str], None]) -> Path | None:
    """The folder of a hub's model that has a graph; None where it has a checkpoint alone. The local cache is asked first."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise RuntimeFailure(
            f"{name}: no such file or folder here; a name on the hub needs pip install 'axformer-onnx[export]' ({error})"
        ) from None
    try:
        cached = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except Exception:  # huggingface_hub's own: it is not there, or the name is none
        cached = None
    if cached is not None and graph_files(cached):
        return cached
    if cached is not None and is_checkpoint(cached):
        return None
    step(f"asking the hub for {name}")
    try:
        files = huggingface_hub.list_repo_files(name)
        if not any(file in ("model.onnx", "onnx/model.onnx") for file in files):
            return None
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_GRAPHS_ON_THE_HUB)))
    except Exception as error:  # huggingface_hub's and its HTTP library's own
        raise RuntimeFailure(
            f"{name}: no such file or folder here, and the Hugging Face hub did not give it ({type(error).__name__}): "
            "check the name and the network, or give a local folder"
        ) from None


__all__ = ["Located", "StatedTask", "likely_tasks", "locate", "not_stated", "stated_task"]
