"""Groups of options that several commands share: the task with its rows, and how graphs are run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from axformer_onnx.errors import UsageError
from axformer_onnx.options.base import Location, Options, option

if TYPE_CHECKING:
    from typing_extensions import Self

    from axformer_onnx.scoring import Machine
    from axformer_onnx.tasks import Task
else:
    Task = Any  # a name on its way in, a Task behind the validation; its room is not imported for --help

ANY_MODEL = "An .onnx file, a folder that holds one, a checkpoint's folder, or a name on the hub."
"""What every command takes for a model."""
PROVIDER = option(
    "cpu",
    "Execution provider of ONNX Runtime: cpu, cuda, tensorrt, openvino, dml, coreml, ...; or several in order, with options: "
    "tensorrt:trt_fp16_enable=1,cuda.",
    decisive=True,
)
THREADS = option(None, "Threads of ONNX Runtime; default: its own choice.", ge=1)
MAX_LENGTH = option(None, "Truncate inputs to this many tokens; default: the model's limit.", ge=3)


class TaskOptions(Options):
    """The task and the rows that the report is measured on. `task`: a name, or a Task; it is a Task once validated, and None
    until it was found in the model where none was given."""

    columns: tuple[str, ...] | None = option(None, "Text columns, one or two: text_a,text_b. Needed for --task custom.")
    label: str | None = option(None, "Label column; default: label (multilabel: labels).")
    metric: str | None = option(
        None,
        "Of a task of your own. custom: accuracy, f1, macro-f1, mcc, pearson_spearman; multilabel: micro-f1, macro-f1, "
        "exact-match; embedding: spearman, pearson, cosine. Of every task: agreement, which needs no labels: MODEL's own "
        "answers are taken for right.",
    )
    task: Task = option(
        None,
        "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, mnli-mm, custom, multilabel or embedding; default: what the "
        "model states.",
    )
    data: Location | None = option(
        None, "File or folder with rows, or a data set on the hub; default: data/ beside the model."
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("task", mode="before")
    @classmethod
    def _resolved(cls, value: Any, info: ValidationInfo) -> Any:
        given = [info.data.get(name) for name in ("columns", "label", "metric")]
        if value is None:
            return None
        return resolved_task(value, *given) if isinstance(value, str) else _unchanged(value, given)

    def with_task(self, name: str) -> Self:
        """The same with the task called `name`. Raises: UsageError."""
        return self.model_copy(update={"task": resolved_task(name, self.columns, self.label, self.metric)})


def resolved_task(name: str, columns: Sequence[str] | None, label: str | None, metric: str | None) -> Task:
    """The task called `name`, reading these columns. Raises: UsageError."""
    from axformer_onnx.tasks import AGREEMENT, by_agreement, custom_task, get_task, is_kind, own_task, with_columns

    if name.strip().lower() == "custom":
        if columns is None:
            raise UsageError("--task custom needs --columns, for example --columns text_a,text_b")
        return custom_task(columns, label or "label", metric or "accuracy")
    if is_kind(name.strip().lower()):
        return own_task(name.strip().lower(), columns, label, metric)
    if metric not in (None, AGREEMENT):
        raise UsageError(f"--metric is for --task custom, multilabel and embedding; {name} has its own, and agreement")
    task = with_columns(get_task(name), columns, label)
    return by_agreement(task) if metric else task


def _unchanged(task: Any, given: Sequence[Any]) -> Any:
    if not hasattr(task, "name"):
        raise UsageError(f"--task is {task!r:.80}: expected a name, or a Task")
    if any(value is not None for value in given):
        raise UsageError("--columns, --label and --metric go with a task's name; a Task states its own")
    return task


class SampleOptions(Options):
    """What a model is tried on."""

    sample: Path | None = option(
        None,
        "NumPy .npz file with inputs that MODEL takes, names and shapes as the graph's; default: rows as its tokenizer or "
        "config.json has them, or random numbers.",
    )


class RunOptions(Options):
    """Where and how graphs are run, and the shapes of the latency table."""

    seed: int = option(0, "Seed of every random choice.", ge=0, decisive=True)
    provider: str = PROVIDER
    threads: int | None = THREADS
    batch: tuple[Annotated[int, Field(ge=1)], ...] = option(
        (), "Rows of a batch in the latency table, repeatable; default: 1. A goal counts at the first batch and length."
    )
    length: tuple[Annotated[int, Field(ge=1)], ...] = option(
        (), "Tokens per row of the latency table, repeatable; default: median and 95th percentile of the data.",
        validate_default=True,
    )  # fmt: skip
    wait_for_quiet: float = option(
        30.0,
        "Seconds to wait for a free machine before speed is measured, and to measure again on one that was not; a speed that was "
        "disturbed in spite of it is not stated.",
        ge=0,
    )
    max_length: int | None = MAX_LENGTH

    @field_validator("batch", "length", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("length")
    @classmethod
    def _with_batch(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if not value and info.data.get("batch", ()) not in ((), (1,)):
            raise UsageError("--batch needs --length, for example --batch 8 --length 128")
        return value

    @property
    def machine(self) -> Machine:
        """Where sessions run."""
        from axformer_onnx.scoring import Machine

        return Machine(self.provider, self.threads)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...] | None:
        """(batch, length) of the latency table; None: from the data."""
        return tuple(itertools.product(self.batch or (1,), self.length)) or None
