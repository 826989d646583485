"""What `optimize` would do, before it does it: what was found, what is missing, how rows are split, how long it will take."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from axformer_onnx.data import read_json
from axformer_onnx.errors import AxformerError, DataError, MissingLabels
from axformer_onnx.inputs import (
    Given,
    Source,
    likely_tasks,
    locate,
    not_stated,
    open_source,
    read_rows,
    stated_task,
    with_integers,
)
from axformer_onnx.options import OptimizeOptions, flag
from axformer_onnx.searches import expected_seconds
from axformer_onnx.tasks import AGREEMENT, is_kind, model_label_names

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


@dataclasses.dataclass(frozen=True)
class Preview:
    """A run of `optimize` that has not begun.

    options   as they will be used: `model` is the graph, `task` is known where `problem` does not say otherwise
    source    the model, examined
    given     rows and tokens; None where something is missing
    seconds   how long it will take on this machine, (shortest, longest); None where something is missing, or it was not asked
    problem   what is missing; None: nothing
    command   the shortest that goes on; empty where no other options help
    lacking   something was not given and not found, rather than given and wrong
    inferred  the task, or the graph itself, was found rather than given
    """

    options: OptimizeOptions
    source: Source
    given: Given | None
    seconds: tuple[float, float] | None
    problem: AxformerError | None
    command: str
    notes: tuple[str, ...] = ()
    lacking: bool = False
    inferred: bool = False

    def rows(self) -> list[tuple[str, str]]:
        """(what, in words), for people."""
        return [*_of_model(self.source), *_of_task(self), *_of_rows(self), *_of_run(self)]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        rows = {role: len(rows) for role, rows in self.given.rows.items()} if self.given else None
        return {
            "format": "axformer-preview/1",
            "model": str(self.source.path),
            "task": self.options.task.name if self.options.task else None,
            "found": dict(self.rows()),
            "rows": rows,
            "goal": self.options.goal.words,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "problem": str(self.problem) if self.problem else None,
            "command": self.command,
        }

    def __repr__(self) -> str:
        said = (
            f"missing: {self.problem}" if self.problem else "; ".join(f"{what}: {words}" for what, words in self.rows())
        )
        return f"Preview({said})"

    def _repr_html_(self) -> str:
        from axformer_onnx.result.report import html_table

        return html_table(("optimize", "would"), self.rows())


def preview(
    options: OptimizeOptions, step: Callable[[str], None] = lambda text: None, *, timed: bool = True
) -> Preview:
    """Find the model, its task and the rows; nothing is searched or written, but the export of a checkpoint.

    timed   run the model on some rows, to say how long the search will take

    Raises: ModelError, RecogniseError, RuntimeFailure for the model itself; what else is missing stands in `problem`.
    """
    asked, name = options, options.task.name if options.task else None
    step("reading the model")
    located = locate(options.model, options.output, name, step)
    options = options.model_copy(update={"model": located.path})
    source, notes = open_source(options), list(located.notes)
    options = with_integers(options, source)
    if options.task is None:
        stated = stated_task(source.model.metadata_props, source.folder)
        if stated is None:
            return _without_task(asked, options, source, tuple(notes))
        options = options.with_task(stated.name)
        notes.append(f"the task is {stated.name} ({stated.where})")
    step("reading the rows")
    try:
        given = read_rows(options, source)
    except DataError as error:
        way = _way_on(asked, source, error)
        return Preview(options, source, None, None, error, way, tuple(notes), bool(way), bool(notes))
    given = dataclasses.replace(given, notes=(*notes, *given.notes))
    seconds = expected_seconds(options, given) if timed else None
    return Preview(options, source, given, seconds, None, _command(asked), given.notes, inferred=bool(notes))


def _without_task(asked: OptimizeOptions, options: OptimizeOptions, source: Source, notes: tuple[str, ...]) -> Preview:
    likely, problem = likely_tasks(source.folder), not_stated(asked.model, source.folder)
    task = likely[0] if likely else "TASK"
    lacking = asked.data is None and not (source.folder / "data").is_dir()
    return Preview(options, source, None, None, problem, _command(asked, task=task, data=lacking), notes, lacking=True)


def _way_on(asked: OptimizeOptions, source: Source, error: DataError) -> str:
    """The command that goes on where rows could not be read: without labels, or with rows; empty where neither helps."""
    if isinstance(error, MissingLabels):
        return f"{_command(asked)} --metric {AGREEMENT}"
    lacking = asked.data is None and not (source.folder / "data").is_dir()
    return _command(asked, data=True) if lacking else ""


def _command(asked: OptimizeOptions, *, task: str | None = None, data: bool = False) -> str:
    """The shortest command that goes on: what was asked, and what is missing."""
    words = ["axformer-onnx", "optimize", shlex.quote(str(asked.model))]
    if task is not None:
        words += ["--task", task]
        if (task == "custom" or is_kind(task)) and task != "embedding" and asked.columns is None:
            words += ["--columns", "text"]
    for name, value in asked.stated().items():
        text = ",".join(value) if name == "columns" else str(value)
        words += [flag(name)] if value is True else [flag(name), shlex.quote(text)]
    return " ".join([*words, *(["--data", "ROWS.jsonl"] if data else [])])


def _of_model(source: Source) -> Iterator[tuple[str, str]]:
    from axformer_onnx.result.report import megabytes
    from axformer_passes.io import parameters_and_size

    anatomy, config = source.anatomy, read_json(source.folder / "config.json")
    kind = config.get("model_type") or anatomy.exporter_hint or "unknown exporter"
    yield (
        "model",
        f"{source.path}, {megabytes(parameters_and_size(source.path)[1])}, {kind}, operator set {anatomy.opset}",
    )
    heads = sorted({layer.attention.heads for layer in anatomy.layers if layer.attention is not None})
    neurons = sorted({layer.feed_forward.neurons for layer in anatomy.layers if layer.feed_forward is not None})
    spans = [f"{_span(heads)} heads" if heads else "", f"{_span(neurons)} neurons" if neurons else ""]
    missed = f"; {len(anatomy.refused)} parts not recognised (axformer-onnx inspect)" if anatomy.refused else ""
    yield "can be cut", f"{len(anatomy.layers)} layers of {' and '.join(filter(None, spans))}{missed}"
    yield "inputs", ", ".join(str(value.name) for value in source.model.graph.inputs)
    yield (
        "tokenizer",
        next((str(source.folder / n) for n in _TOKENIZERS if (source.folder / n).is_file()), "none found"),
    )
    labels = model_label_names(config)
    if labels:
        yield "labels", ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _of_task(preview: Preview) -> Iterator[tuple[str, str]]:
    task = preview.options.task
    yield "task", f"{task.name}, {task.metric} of {' and '.join(task.columns)}" if task else "not stated"


def _of_rows(preview: Preview) -> Iterator[tuple[str, str]]:
    if preview.given is None:
        where = preview.source.folder / "data"
        yield "rows", str(preview.options.data or (where if Path(where).is_dir() else "none found"))
        return
    for role, rows in preview.given.rows.items():
        yield f"{role} rows", f"{len(rows)} of {rows.source}"


def _of_run(preview: Preview) -> Iterator[tuple[str, str]]:
    options = preview.options
    yield "goal", f"{options.goal.words}, --effort {options.effort}, --search {options.search}"
    yield "output", str(options.output)
    if preview.seconds:
        yield "time", " to ".join(_minutes(seconds) for seconds in preview.seconds)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(10, round(seconds, -1)):.0f} s"
