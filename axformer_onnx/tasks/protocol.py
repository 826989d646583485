"""The protocol of a task: what its kind answers to data, scoring, search and report (docs/adding-a-task.md).

A `Task` is data: names of columns, labels and metrics. Its `kind` is behaviour: one object of a class derived from `Kind`,
registered under its name. Whoever reads rows, scores a model or searches asks the kind and never what kind it is.

Shapes: N rows, C columns of the output, L labels. Outputs of rows are float64[N, C], or float64[N, T, C] where a row's T texts
are fed apart.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import DataError, UsageError
from axformer_onnx.records import FloatArray
from axformer_onnx.tasks.agreement_metrics import UnchangedMetric
from axformer_onnx.tasks.metrics import Answers, Metric
from axformer_onnx.tasks.outputs import Output, logits_of

Array = npt.NDArray[Any]
WITHOUT_LABELS = ". For rows without labels there is --metric agreement, which compares with the source's own answers"
"""The end of a message where a label is missing."""
HeadLoss = Literal["cross-entropy", "squared error", "binary cross-entropy"]


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """Where each label of the data set stands among the columns of the output.

    order   order[label id in the data set] = column of the logits
    names   label names, by id in the data set
    note    one sentence for the user: which label is which logit, and how that is known
    """

    order: tuple[int, ...]
    names: tuple[str, ...]
    note: str

    @property
    def is_identity(self) -> bool:
        """The data set and the model number the labels alike."""
        return self.order == tuple(range(len(self.order)))

    def arranged(self, outputs: FloatArray, other: LabelMap) -> FloatArray:
        """Outputs of a model whose columns are `other`'s, with the columns where this map has the same labels."""
        if self.order == other.order or len(self.order) != len(other.order):
            return outputs
        found = np.empty_like(outputs)
        found[..., list(self.order)] = outputs[..., list(other.order)]
        return found


class LabelColumn(Protocol):
    """Labels as a file has them, and the place of each row for messages; labels None: not asked for."""

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """One value a row."""

    @property
    def places(self) -> tuple[str, ...]:
        """'file, line 7' for each row."""


class Kind(abc.ABC):
    """What a sort of task means. Subclasses are stateless; one object of each is registered (`register`).

    name             as in `--task NAME`, where a task of that kind needs no more than columns and a label
    columns, label   default names of the columns
    main_metric      default metric; the first of `metrics.METRICS[name]` if empty
    label_types      Python types that a label may have in a file, and `label_words` for messages
    named            labels have names, which config.json's id2label may give
    apart            the texts of a row are fed to the model one by one, not as a pair
    needs_source     losses compare with the source's outputs, not with labels
    recalibrates     losses of the robust search are taken at the best temperature (`recalibrated_losses`)
    weighs_rows      the search draws rows in proportion to `uncertainty`; else evenly
    head_loss        what a refit of the last linear layer minimises; None: it cannot be refitted
    agreement        how its answers compare with the source's, the first of them called "agreement" (`tasks.by_agreement`)
    fidelity         the source's answers are taken for right: figures say how faithful a model is to it, not how accurate
    majority_metric  the metric that `majority_rate` is a figure of
    """

    name: str
    columns: tuple[str, ...] = ("text",)
    label: str = "label"
    main_metric: str
    label_types: tuple[type, ...] = (str, int, float, type(None))
    label_words: str = "a name or a number"
    named: bool = False
    apart: bool = False
    needs_source: bool = False
    recalibrates: bool = False
    weighs_rows: bool = False
    head_loss: HeadLoss | None = None
    agreement: tuple[Metric, ...] = (UnchangedMetric("agreement"),)
    fidelity: bool = False
    majority_metric: str = "accuracy"

    def __reduce__(self) -> tuple[Any, ...]:
        """Processes know a kind by its name."""
        return kind_named, (self.name,)

    # -- rows -----------------------------------------------------------------------------------------------------------

    def passages(self, texts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """What the model is fed for one row: sequences of one text or of a pair. Windows of a long text would be several."""
        return tuple((text,) for text in texts) if self.apart else (texts,)

    def of_sequences(self, outputs: FloatArray, owner: npt.NDArray[np.int64]) -> FloatArray:
        """Outputs of rows from those of sequences [sequences, C]; owner int64[sequences]: the row of each, in order."""
        return outputs.reshape(int(owner.max()) + 1, -1, outputs.shape[-1]) if self.apart else outputs

    def wanted(self, task: Task, *, labelled: bool) -> tuple[str, ...]:
        """Names of columns to look for in a file."""
        return (*task.columns, task.label) if labelled else task.columns

    def found_columns(self, task: Task, found: Sequence[str], *, labelled: bool) -> tuple[tuple[str, ...], str | None]:
        """(text columns, label column or None) to read, given the names that a file has; what is missing is refused later."""
        return task.columns, task.label if labelled else None

    @abc.abstractmethod
    def numbered(self, task: Task, sets: Sequence[LabelColumn]) -> tuple[list[Array], tuple[str, ...]]:
        """(labels of each set as an array, names that were invented for them), alike for all sets.

        A set without labels gets the kind's mark for none. Raises: DataError naming the row.
        """

    # -- the model ------------------------------------------------------------------------------------------------------

    def output(self, outputs: Sequence[Any], folder: Path | None) -> Output:
        """What is read of a model with these outputs (name, type, shape), in a folder with these settings. Raises: DataError."""
        return logits_of(outputs)

    @abc.abstractmethod
    def match(self, task: Task, config: Mapping[str, Any] | None, columns: int | None) -> LabelMap:
        """Which column of the output stands for which label. Raises: DataError where they do not fit.

        config   content of config.json, or None; columns: of the output, or None where it is not known
        """

    def head_columns(self, task: Task) -> int | None:
        """Columns that a checkpoint's head must have for this task; None: any."""
        return len(task.labels) or None

    def head_targets(self, labels: Array, label_map: LabelMap) -> Array:
        """Labels as a refit of the head wants them: by column of the output. Asked only where `head_loss` is not None."""
        return labels

    # -- scores ---------------------------------------------------------------------------------------------------------

    def check(self, outputs: FloatArray, labels: Array, label_map: LabelMap) -> None:
        """Refuse outputs [N, C] that do not fit the labels. Raises: DataError."""
        if outputs.ndim != 2 or outputs.shape != (len(labels), len(label_map.order)):
            raise DataError(
                f"the model's output has the shape {list(outputs.shape)}, expected "
                f"[{len(labels)}, {len(label_map.order)}] (rows, {'labels' if self.named else 'numbers'})"
            )

    def truth(self, labels: Array, source: FloatArray, label_map: LabelMap) -> Array:
        """What answers are held against, in the form of labels: the labels. source: the source's outputs on the same rows."""
        return labels

    @abc.abstractmethod
    def losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap, source: FloatArray | None) -> FloatArray:
        """float64[N]. source: the source's outputs on the same rows, where the kind needs them; None: these are the source's."""

    @abc.abstractmethod
    def divergence(self, source: FloatArray, found: FloatArray) -> FloatArray:
        """float64[N] >= 0: how far outputs are from the source's own, row by row. Labels are not needed."""

    @abc.abstractmethod
    def answers(self, outputs: FloatArray, losses: FloatArray, labels: Array, label_map: LabelMap) -> Answers:
        """What metrics are computed of; `given` is in the form of labels."""

    def in_words(self, outputs: FloatArray, label_map: LabelMap) -> list[str]:
        """Each row's answer as a user reads it; empty where there are no words for it."""
        return [""] * len(outputs)

    def probabilities(self, outputs: FloatArray) -> FloatArray | None:
        """float64[N, C] of outputs [N, C], column by column; None for a kind whose outputs are no logits."""
        return None

    def metric_names(self, task: Task, answers: Answers) -> tuple[str, tuple[str, ...]]:
        """(the main metric on these rows, every metric that is reported)."""
        return task.metric, task.metrics

    def reported(self, metric: str) -> tuple[str, ...]:
        """What a task of the user's own reports whose main metric is `metric`."""
        return (metric,)

    def note_on(self, role: str, labels: Array) -> str | None:
        """A sentence for the user where rows of a role are scored in another way than the task says."""
        return None

    def majority_rate(self, answers: Answers) -> float | None:
        """`majority_metric` of always giving the most frequent label, in points; None where that means nothing."""
        return None

    def single_answer(self, answers: Answers, label_map: LabelMap) -> str | None:
        """The name of the one answer that all rows were given, or None."""
        return None

    def expected_drop(
        self, source: FloatArray, found: FloatArray, labels: Array, metric: str, label_map: LabelMap
    ) -> float | None:
        """Drop of the metric, in points, if labels were drawn from what both models hold for likely; None: it has none."""
        return None

    def recalibrated_losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap) -> FloatArray:
        """float64[N] at the best temperature. Asked only where `recalibrates`."""
        raise NotImplementedError

    def uncertainty(self, outputs: FloatArray) -> FloatArray:
        """float64[N] >= 0: trace of the quadratic form that the divergence is near these outputs. Asked where `weighs_rows`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Task:
    """What the rows of a task look like and how answers are judged.

    columns     names of the one or two text columns
    label       name of the label column
    labels      label names, by id in the data set's order; empty where the kind has none, or a task leaves them open
    metric      the main metric, one of `metrics`
    metrics     every metric that is reported, in points (x 100)
    kind        what labels, outputs and losses mean

    >>> from axformer_onnx.tasks import get_task
    >>> get_task("SST-2").columns, get_task("SST-2").labels
    (('sentence',), ('negative', 'positive'))
    """

    name: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: str
    metrics: tuple[str, ...]
    kind: Kind = dataclasses.field(default_factory=lambda: kind_named("classification"))


KINDS: dict[str, Kind] = {}
"""Kinds by name, in the order of their registration."""


def register(kind: Kind) -> Kind:
    """Make `kind` known under its name; returns it. The last registration of a name counts."""
    KINDS[kind.name] = kind
    return kind


def kind_named(name: str) -> Kind:
    """The kind registered as `name`. Raises: UsageError that lists the names."""
    if name not in KINDS:
        raise UsageError(f"unknown kind of task {name!r}; kinds: {', '.join(KINDS)}")
    return KINDS[name]


__all__ = ["KINDS", "HeadLoss", "Kind", "LabelColumn", "LabelMap", "Metric", "Task", "kind_named", "register"]
