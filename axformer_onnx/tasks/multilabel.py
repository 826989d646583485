"""Multi-label classification: any set of labels a row, a logit with a sigmoid for each label.

loss         binary cross-entropy in nats, summed over the labels of a row: that of independent Bernoulli variables
divergence   sum over labels of KL(Bernoulli(p_source) || Bernoulli(p_found)), in nats
metrics      micro-f1, macro-f1, exact-match; a label is given where its logit is positive
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import DataError, MissingLabels
from axformer_onnx.records import FloatArray
from axformer_onnx.tasks.agreement_metrics import DecisionsMetric, UnchangedMetric
from axformer_onnx.tasks.labels import label_ids, match_logits
from axformer_onnx.tasks.metrics import Answers, SetMetric, register_metric
from axformer_onnx.tasks.protocol import WITHOUT_LABELS, Array, Kind, LabelColumn, LabelMap, Task, register

ALL = ("micro-f1", "macro-f1", "exact-match")
PROBLEM = "multi_label_classification"


class Multilabel(Kind):
    """See the module. Labels are float64[N, L] of 0 and 1; NaN stands for none."""

    name = "multilabel"
    label = "labels"
    main_metric = "micro-f1"
    label_types = (str, list, type(None))
    label_words = "a list of names, names between commas or semicolons, or a list of 0 and 1"
    named = True
    weighs_rows = True
    head_loss = "binary cross-entropy"
    agreement = (UnchangedMetric("agreement", "label sets"), DecisionsMetric("decisions"))

    def numbered(self, task: Task, sets: Sequence[LabelColumn]) -> tuple[list[Array], tuple[str, ...]]:
        """Sets of names, vectors of 0 and 1, or lists of ids (where not all rows are vectors of one length)."""
        items = [[_items(v, p) for v, p in zip(one.labels or (), one.places, strict=False)] for one in sets]
        rows = [row for part in items for row in part]
        words = sorted({item for row in rows for item in row if isinstance(item, str)})
        invented: tuple[str, ...] = ()
        if not task.labels and words:
            invented = tuple(words)
            task = dataclasses.replace(task, labels=invented)
        count = len(task.labels) or _count(rows)
        vectors = not words and all(len(row) == count and set(row) <= {0, 1} for row in rows)
        named = label_ids(words, task)
        found = []
        for one, part in zip(sets, items, strict=True):
            if one.labels is None:
                found.append(np.full((len(one.places), max(count, 1)), np.nan))
            elif vectors:
                found.append(np.array(part, dtype=np.float64).reshape(len(part), count))
            else:
                found.append(_sets(one.places, part, named, count, task))
        return found, invented

    def match(self, task: Task, config: Mapping[str, Any] | None, columns: int | None) -> LabelMap:
        """By the names in id2label. Raises: DataError for a model of another problem, too."""
        problem = (config or {}).get("problem_type")
        if problem not in (None, PROBLEM):
            raise DataError(
                f"config.json: problem_type is {problem!r}, but task {task.name} needs a model with a sigmoid for each label "
                f"({PROBLEM})"
            )
        return match_logits(task, config, columns, 1)

    def check(self, outputs: FloatArray, labels: Array, label_map: LabelMap) -> None:
        """As many labels as logits, too."""
        super().check(outputs, labels, label_map)
        if labels.shape != outputs.shape:
            raise DataError(f"the rows have {labels.shape[1]} labels, but the model has {outputs.shape[1]} logits")

    def head_targets(self, labels: Array, label_map: LabelMap) -> Array:
        """float64[N, L] by logit."""
        targets = np.empty_like(labels)
        targets[:, list(label_map.order)] = labels
        return targets

    def losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap, source: FloatArray | None) -> FloatArray:
        """log(1 + e^z) - y z, summed over the labels."""
        logits = outputs[:, list(label_map.order)]
        return np.asarray((np.logaddexp(0, logits) - labels * logits).sum(axis=1))

    def divergence(self, source: FloatArray, found: FloatArray) -> FloatArray:
        """p (s - f) - log(1 + e^s) + log(1 + e^f), summed over the labels: KL of Bernoulli variables by their logits s and f."""
        from scipy.special import expit

        kl = expit(source) * (source - found) - np.logaddexp(0, source) + np.logaddexp(0, found)
        return np.asarray(np.maximum(kl.sum(axis=1), 0.0))

    def answers(self, outputs: FloatArray, losses: FloatArray, labels: Array, label_map: LabelMap) -> Answers:
        """given: float64[N, L] of 0 and 1."""
        return Answers(labels, (outputs[:, list(label_map.order)] > 0).astype(np.float64), losses)

    def in_words(self, outputs: FloatArray, label_map: LabelMap) -> list[str]:
        """The names of the labels."""
        return [_words(row, label_map) for row in outputs[:, list(label_map.order)] > 0]

    def probabilities(self, outputs: FloatArray) -> FloatArray:
        """Sigmoid."""
        from scipy.special import expit

        return np.asarray(expit(np.asarray(outputs, dtype=np.float64)))

    def reported(self, metric: str) -> tuple[str, ...]:
        """All three, the main one first."""
        return (metric, *(name for name in ALL if name != metric))

    def single_answer(self, answers: Answers, label_map: LabelMap) -> str | None:
        """The set of labels that all rows were given."""
        if len(answers.given) < 2 or (answers.given != answers.given[0]).any():
            return None
        return _words(answers.given[0], label_map)

    def uncertainty(self, outputs: FloatArray) -> FloatArray:
        """Sum over labels of p (1 - p), the trace of the Fisher information of the logits."""
        from scipy.special import expit

        p = expit(outputs)
        return np.asarray((p * (1 - p)).sum(axis=1))


def _words(row: Array, label_map: LabelMap) -> str:
    """The names of the labels that a row was given."""
    return ", ".join(label_map.names[i] for i in np.flatnonzero(row)) or "no label"


def _items(value: object, place: str) -> list[Any]:
    """The names or numbers of one label. Raises: DataError."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{place}: the labels are {value!r:.60}, not JSON: {error}") from None
    if isinstance(value, str):
        parts = value.split(";" if ";" in value else ",")
        return [part.strip() for part in parts if part.strip()]
    if not isinstance(value, list):
        raise MissingLabels(f"{place}: the labels are missing, expected {Multilabel.label_words}{WITHOUT_LABELS}")
    for item in value:
        if not isinstance(item, (str, int, float)) or (isinstance(item, float) and not item.is_integer()):
            raise DataError(f"{place}: {item!r:.40} is among the labels, expected {Multilabel.label_words}")
    return [item if isinstance(item, str) else int(item) for item in value]


def _count(rows: Sequence[list[Any]]) -> int:
    """Number of labels that nobody has named: the length of vectors, else the largest id and one."""
    lengths = {len(row) for row in rows}
    if len(lengths) == 1 and max(lengths) > 1 and all(set(row) <= {0, 1} for row in rows):
        return lengths.pop()
    return max((int(item) for row in rows for item in row if isinstance(item, int)), default=0) + 1


def _sets(
    places: Sequence[str], rows: Sequence[list[Any]], named: Mapping[str, int], count: int, task: Task
) -> npt.NDArray[np.float64]:
    found = np.zeros((len(rows), count))
    for i, row in enumerate(rows):
        for item in row:
            at = named.get(item) if isinstance(item, str) else item
            if at is None or not 0 <= at < count:
                names = ", ".join(task.labels) or f"0 to {count - 1}"
                raise DataError(f"{places[i]}: {item!r:.60} is not a label of task {task.name}; expected {names}")
            found[i, at] = 1
    return found


for _name in ALL:
    register_metric("multilabel", SetMetric(_name))
MULTILABEL = register(Multilabel())
