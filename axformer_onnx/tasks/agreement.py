"""Rows without labels (`--metric agreement`): the source's own answers are taken for right. This is fidelity, not accuracy.

A kind of task made of any other. Rows are texts alone; what the other kind asks of labels is asked of the source's outputs:

    label       the answer that the source gives (`Kind.truth`)        loss      the other kind's, held against it
    metrics     `Kind.agreement` of the other kind, the first of which is called agreement
    columns     no name of a label must be known: logits are numbered where names do not fit

Whatever else labels are needed for (the drop that may be expected of them, a refit of the classifier) there is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import DataError
from axformer_onnx.records import FloatArray
from axformer_onnx.tasks.metrics import Answers, metric_named, register_metric
from axformer_onnx.tasks.outputs import Output
from axformer_onnx.tasks.protocol import Array, Kind, LabelColumn, LabelMap, Task

AGREEMENT = "agreement"
NOTE = (
    "fidelity, not accuracy: the source's own answers are taken for right, its mistakes included; labels, where the rows have any, "
    "were not read"
)


def by_agreement(task: Task) -> Task:
    """`task` judged by agreement with the source; its labels are neither read nor named."""
    kind = fidelity_of(task.kind)
    names = tuple(metric.name for metric in kind.inner.agreement)
    return dataclasses.replace(task, labels=(), metric=names[0], metrics=names, kind=kind)


@cache
def fidelity_of(kind: Kind) -> Fidelity:
    """The kind that takes the source's answers of `kind` for right; one for each, its metrics registered."""
    found = Fidelity(kind)
    for metric in kind.agreement:
        register_metric(found.name, metric)
    return found


class Fidelity(Kind):
    """See the module. Labels are int64[N], all -1. inner: the kind whose answers are compared."""

    main_metric = majority_metric = AGREEMENT
    label_types = (type(None),)
    needs_source = fidelity = True

    def __init__(self, inner: Kind) -> None:
        self.inner, self.name = inner, f"{inner.name} by agreement"
        self.columns, self.label = inner.columns, inner.label
        self.named, self.apart, self.agreement = inner.named, inner.apart, inner.agreement
        self.weighs_rows, self.recalibrates = inner.weighs_rows, inner.recalibrates

    def __reduce__(self) -> tuple[Any, ...]:
        """By the kind that it is made of."""
        return fidelity_of, (self.inner,)

    # -- rows -----------------------------------------------------------------------------------------------------------

    def passages(self, texts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """As without agreement."""
        return self.inner.passages(texts)

    def of_sequences(self, outputs: FloatArray, owner: npt.NDArray[np.int64]) -> FloatArray:
        """As without agreement."""
        return self.inner.of_sequences(outputs, owner)

    def wanted(self, task: Task, *, labelled: bool) -> tuple[str, ...]:
        """Texts alone."""
        return self.inner.wanted(task, labelled=False)

    def found_columns(self, task: Task, found: Sequence[str], *, labelled: bool) -> tuple[tuple[str, ...], str | None]:
        """Texts alone."""
        return self.inner.found_columns(task, found, labelled=False)[0], None

    def numbered(self, task: Task, sets: Sequence[LabelColumn]) -> tuple[list[Array], tuple[str, ...]]:
        """None."""
        return [np.full(len(one.places), -1, dtype=np.int64) for one in sets], ()

    # -- the model ------------------------------------------------------------------------------------------------------

    def output(self, outputs: Sequence[Any], folder: Path | None) -> Output:
        """As without agreement."""
        return self.inner.output(outputs, folder)

    def match(self, task: Task, config: Mapping[str, Any] | None, columns: int | None) -> LabelMap:
        """By the names in id2label where they fit, so that two models may order their logits differently; else by number."""
        unnamed = dataclasses.replace(task, labels=())
        bare = {key: value for key, value in (config or {}).items() if key != "id2label"}
        for other, settings in ((task, config), (unnamed, config)):
            try:
                found = self.inner.match(other, settings, columns)
            except DataError:
                continue
            if sorted(found.order) == list(range(len(found.order))):
                return found
        if columns is None and self.named:
            self.inner.match(unnamed, bare, 2)  # refuses a model of another kind
            return LabelMap((), (), "Labels: the logits by number.")
        return self.inner.match(unnamed, bare, columns)

    def head_columns(self, task: Task) -> int | None:
        """As without agreement."""
        return self.inner.head_columns(task)

    # -- scores ---------------------------------------------------------------------------------------------------------

    def check(self, outputs: FloatArray, labels: Array, label_map: LabelMap) -> None:
        """As without agreement; the outputs stand for labels that fit."""
        if len(outputs) != len(labels):
            raise DataError(f"the model answers {len(outputs)} rows of {len(labels)}")
        self.inner.check(outputs, outputs, _numbered(label_map, outputs, named=self.named))

    def truth(self, labels: Array, source: FloatArray, label_map: LabelMap) -> Array:
        """The source's answers."""
        none = np.zeros(len(source))
        return self.inner.answers(source, none, labels, _numbered(label_map, source, named=self.named)).given

    def losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap, source: FloatArray | None) -> FloatArray:
        """Against the source's answers. Raises: DataError for a model with other columns than the source's."""
        whole = outputs if source is None else source
        if whole.shape != outputs.shape:
            raise DataError(
                f"the model puts out {outputs.shape[-1]} numbers a row, the source {whole.shape[-1]}: these are answers to "
                "different questions"
            )
        truth, columns = self.truth(labels, whole, label_map), _numbered(label_map, outputs, named=self.named)
        return self.inner.losses(outputs, truth, columns, source)

    def divergence(self, source: FloatArray, found: FloatArray) -> FloatArray:
        """As without agreement."""
        return self.inner.divergence(source, found)

    def answers(self, outputs: FloatArray, losses: FloatArray, labels: Array, label_map: LabelMap) -> Answers:
        """labels: the source's answers (`truth`)."""
        return self.inner.answers(outputs, losses, labels, _numbered(label_map, outputs, named=self.named))

    def in_words(self, outputs: FloatArray, label_map: LabelMap) -> list[str]:
        """As without agreement."""
        return self.inner.in_words(outputs, _numbered(label_map, outputs, named=self.named))

    def probabilities(self, outputs: FloatArray) -> FloatArray | None:
        """As without agreement."""
        return self.inner.probabilities(outputs)

    def metric_names(self, task: Task, answers: Answers) -> tuple[str, tuple[str, ...]]:
        """Those that mean anything on these rows."""
        return task.metric, tuple(name for name in task.metrics if metric_named(self.name, name).applies(answers))

    def note_on(self, role: str, labels: Array) -> str:
        """What the figures are, and what they are not."""
        return NOTE

    def majority_rate(self, answers: Answers) -> float | None:
        """Of the source's most frequent answer."""
        return self.inner.majority_rate(answers)

    def single_answer(self, answers: Answers, label_map: LabelMap) -> str | None:
        """As without agreement."""
        return self.inner.single_answer(
            answers, _numbered(label_map, answers.given, named=self.named, count=answers.classes)
        )

    def recalibrated_losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap) -> FloatArray:
        """labels: the source's answers (`truth`). At the best temperature an answer that stays costs nothing."""
        return self.inner.recalibrated_losses(outputs, labels, _numbered(label_map, outputs, named=self.named))

    def uncertainty(self, outputs: FloatArray) -> FloatArray:
        """As without agreement."""
        return self.inner.uncertainty(outputs)


def _numbered(label_map: LabelMap, rows: Array, *, named: bool, count: int = 0) -> LabelMap:
    """The map itself, or where neither graph nor configuration told how many logits there are, the columns of the rows in order."""
    if label_map.order or not named:
        return label_map
    order = tuple(range(count or rows.shape[-1]))
    return LabelMap(order, tuple(map(str, order)), label_map.note)


__all__ = ["AGREEMENT", "Fidelity", "by_agreement", "fidelity_of"]
