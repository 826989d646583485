"""Classification: one class a row, a logit for each class.

loss         cross-entropy in nats                divergence   KL(p_source || p_found) in nats
metrics      of confusion counts; McNemar's exact test where the metric is accuracy
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import DataError, MissingLabels
from axformer_onnx.records import FloatArray
from axformer_onnx.statistics import best_mixture, class_metric, confusion, recalibrated_losses
from axformer_onnx.tasks.agreement_metrics import UnchangedMetric
from axformer_onnx.tasks.labels import label_ids, match_logits
from axformer_onnx.tasks.metrics import Answers, ClassMetric, metric_named, register_metric
from axformer_onnx.tasks.protocol import WITHOUT_LABELS, Array, Kind, LabelColumn, LabelMap, Task, register


class Classification(Kind):
    """See the module. Labels are int64[N] ids in the data set's order; -1 stands for none."""

    name = "classification"
    main_metric = "accuracy"
    named = True
    recalibrates = True
    weighs_rows = True
    head_loss = "cross-entropy"
    agreement = (UnchangedMetric("agreement"), ClassMetric("macro-agreement", partial(class_metric, "macro-recall")))

    def numbered(self, task: Task, sets: Sequence[LabelColumn]) -> tuple[list[Array], tuple[str, ...]]:
        """Names are matched with the task's; for a task without names they are numbered in sorted order."""
        invented: tuple[str, ...] = ()
        words = sorted({value for one in sets for value in one.labels or () if isinstance(value, str)})
        if not task.labels:
            invented = tuple(word for word in words if word and integer(word) is None)
            task = dataclasses.replace(task, labels=invented)
        named = label_ids(words, task)
        none = np.int64(-1)
        return [
            np.full(len(one.places), none) if one.labels is None else _ids(one, task, named) for one in sets
        ], invented

    def match(self, task: Task, config: Mapping[str, Any] | None, columns: int | None) -> LabelMap:
        """By the names in id2label."""
        return match_logits(task, config, columns, 2)

    def head_targets(self, labels: Array, label_map: LabelMap) -> Array:
        """int64[N]: the logit of each row's label."""
        return np.asarray(np.asarray(label_map.order)[labels])

    def losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap, source: FloatArray | None) -> FloatArray:
        """Cross-entropy. Raises: DataError where a label has no logit."""
        from scipy.special import log_softmax

        classes = len(label_map.order)
        labels = np.asarray(labels, dtype=np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(wrong):
            raise DataError(
                f"row {wrong[0]} has label {labels[wrong[0]]}, but the model has {classes} logits "
                f"(labels 0 to {classes - 1})"
            )
        log_probabilities = log_softmax(outputs[:, list(label_map.order)], axis=1)
        return np.asarray(-log_probabilities[np.arange(len(labels)), labels])

    def divergence(self, source: FloatArray, found: FloatArray) -> FloatArray:
        """Relative entropy."""
        from scipy.special import log_softmax

        p, q = log_softmax(source, axis=1), log_softmax(found, axis=1)
        return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0))

    def answers(self, outputs: FloatArray, losses: FloatArray, labels: Array, label_map: LabelMap) -> Answers:
        """given: int64[N], the label with the largest logit."""
        labels = np.asarray(labels, dtype=np.int64)
        return Answers(labels, guesses_of(outputs, label_map), losses, len(label_map.order))

    def in_words(self, outputs: FloatArray, label_map: LabelMap) -> list[str]:
        """The name of the class."""
        return [label_map.names[i] for i in guesses_of(outputs, label_map).tolist()]

    def probabilities(self, outputs: FloatArray) -> FloatArray:
        """Softmax."""
        from scipy.special import softmax

        return np.asarray(softmax(np.asarray(outputs, dtype=np.float64), axis=1))

    def reported(self, metric: str) -> tuple[str, ...]:
        """Accuracy beside the main metric."""
        return (metric,) if metric == "accuracy" else (metric, "accuracy")

    def majority_rate(self, answers: Answers) -> float:
        """Share of the most frequent label."""
        counts = confusion(answers.labels, answers.given, answers.classes)
        return 100 * float(counts.sum(axis=1).max() / len(answers.labels))

    def single_answer(self, answers: Answers, label_map: LabelMap) -> str | None:
        """The class that all rows were given."""
        one_class = len(answers.given) > 1 and np.ptp(answers.given) == 0
        return label_map.names[int(answers.given[0])] if one_class else None

    def expected_drop(
        self, source: FloatArray, found: FloatArray, labels: Array, metric: str, label_map: LabelMap
    ) -> float:
        """Of the expected confusion counts, with the probabilities of the best mixture of both."""
        from scipy.special import softmax

        ours, theirs = (one[:, list(label_map.order)].astype(np.float64) for one in (source, found))
        b, share = best_mixture(ours, theirs, labels)
        probabilities: FloatArray = softmax(b * (ours + share * (theirs - ours)), axis=1)
        chosen = metric_named(self.name, metric)
        assert isinstance(chosen, ClassMetric)

        def value(outputs: FloatArray) -> float:
            guesses = np.eye(probabilities.shape[1])[guesses_of(outputs, label_map)]
            return float(chosen.of(probabilities.T @ guesses))

        return value(source) - value(found)

    def recalibrated_losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap) -> FloatArray:
        """Cross-entropy at one temperature for all rows."""
        return recalibrated_losses(outputs[:, list(label_map.order)], labels)

    def uncertainty(self, outputs: FloatArray) -> FloatArray:
        """Gini impurity 1 - |p|^2, the trace of diag(p) - p p^T."""
        from scipy.special import softmax

        return np.asarray(1.0 - (softmax(outputs, axis=1) ** 2).sum(axis=1))


def guesses_of(outputs: FloatArray, label_map: LabelMap) -> npt.NDArray[np.int64]:
    """int64[rows]: label id, in the data set's order, of each row's largest logit (the first of equals)."""
    guesses: npt.NDArray[np.int64] = outputs[:, list(label_map.order)].argmax(axis=1)
    return guesses


def integer(value: object) -> int | None:
    """A label as an integer if it is one: 2, 2.0, '2', true; else None."""
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return None


def _ids(one: LabelColumn, task: Task, named: dict[str, int]) -> npt.NDArray[np.int64]:
    limit, values = len(task.labels), one.labels or ()
    ids = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        found = named.get(value) if isinstance(value, str) else None
        number = found if found is not None else integer(value)
        if number is None or number < 0 or (limit and number >= limit):
            raise _refusal(one.places[i], value, number, task)
        ids[i] = number
    return ids


def _refusal(place: str, value: object, number: int | None, task: Task) -> DataError:
    names = ", ".join(f"{i} {name}" for i, name in enumerate(task.labels))
    expected = f"expected {names}" if names else "expected 0, 1, 2, ..."
    if value is None or value == "":
        return MissingLabels(f"{place}: the label is missing; {expected}{WITHOUT_LABELS}")
    if number == -1:
        marked = "the label is -1, which marks rows without a published label"
        return MissingLabels(f"{place}: {marked}; use labelled rows ({expected}){WITHOUT_LABELS}")
    if number is not None:
        return DataError(f"{place}: label {number} is out of range; {expected}")
    return DataError(f"{place}: label {value!r:.60} is not a label of task {task.name}; {expected}")


register_metric("classification", ClassMetric("accuracy", partial(class_metric, "accuracy"), exact=True))
for _name in ("f1", "macro-f1", "mcc"):
    register_metric("classification", ClassMetric(_name, partial(class_metric, _name)))
CLASSIFICATION = register(Classification())
