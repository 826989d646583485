"""Rows from the Hugging Face hub, through `datasets` (extra [hub])."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from axformer_onnx.data.formats import Table
from axformer_onnx.data.rows import Drawn, drawn_from_tables
from axformer_onnx.errors import DataError, RuntimeFailure
from axformer_onnx.tasks import Task

GLUE_NAME = "nyu-mll/glue"
INSTALL = "pip install 'axformer-onnx[hub]'"


class Unreachable(RuntimeFailure):
    """`datasets` is not installed, or the hub did not answer."""


def glue_readers(task: Task) -> Mapping[str, Callable[[], Drawn]]:
    """Readers of a GLUE task's train, validation and test rows. Raises: Unreachable."""
    name = "mnli" if task.name == "mnli-mm" else task.name
    found = readers(GLUE_NAME, name, task)
    return {role: reader for role, reader in found.items() if role != "test"}  # GLUE's test labels are all -1


def readers(name: str, config: str | None, task: Task) -> Mapping[str, Callable[[], Drawn]]:
    """Readers of the splits of the hub data set `name`, by role.

    Raises: Unreachable where `datasets` is missing or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise Unreachable(f"the hub needs the package datasets: {INSTALL}") from None
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:  # requests, huggingface_hub and datasets each have their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreachable(f"the hub's data set {name} cannot be had: {reason}") from None
    suffixes = ("_mismatched",) if task.name == "mnli-mm" else ("", "_matched")
    found: dict[str, Callable[[], Drawn]] = {}
    for role in ("train", "search", "validation", "test"):
        names = (role,) if role in ("train", "search") else tuple(role + suffix for suffix in suffixes)
        split = next((split for split in names if split in loaded), None)
        if split is not None:
            found[role] = _reader(loaded[split], f"{name}{f'/{config}' if config else ''}, split {split}", task)
    if not found:
        raise DataError(f"{name}: has the splits {', '.join(loaded)}, expected train, validation or test")
    return found


def _reader(split: Any, origin: str, task: Task) -> Callable[[], Drawn]:
    def read() -> Drawn:
        found = tuple(split.column_names)
        columns = {name: list(split[name]) for name in task.kind.wanted(task, labelled=True) if name in found}
        feature = split.features.get(task.label)
        if hasattr(feature, "int2str") and task.label in columns:
            columns[task.label] = [_name(feature, value) for value in columns[task.label]]
        table = Table(columns, found, origin, "row", range(1, len(split) + 1))
        return drawn_from_tables([table], task, labelled=True, source=origin)

    return read


def _name(feature: Any, value: Any) -> Any:
    """A class label's name, so that it is matched by name; -1 (no label) stays a number."""
    return feature.int2str(value) if isinstance(value, int) and value >= 0 else value
