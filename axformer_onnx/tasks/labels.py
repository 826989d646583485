"""Which logit stands for which label of the data: names are matched, never assumed silently.

A data set numbers its labels, a model numbers its logits, and the two orders need not agree (MNLI models with
contradiction first are common). `match_labels` pairs them by the names in config.json's `id2label`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from axformer_onnx.errors import DataError
from axformer_onnx.tasks.protocol import LabelMap, Task

# Other spellings of GLUE's label names, as `plain` leaves them. A synonym says the same thing about the same
# task: 'contradiction' is not a synonym of 'not_entailment', which covers neutral pairs too.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "entailment": ("entail", "entails", "entailed"),
    "notentailment": ("nonentailment", "notentail", "notentailed"),
    "neutral": (),
    "contradiction": ("contradict", "contradicts", "contradictory"),
    "negative": ("neg",),
    "positive": ("pos",),
    "unacceptable": ("notacceptable", "ungrammatical"),
    "acceptable": ("grammatical",),
    "notequivalent": ("nonequivalent", "notparaphrase", "nonparaphrase"),
    "equivalent": ("paraphrase",),
    "notduplicate": ("nonduplicate", "notduplicated"),
    "duplicate": ("duplicated",),
}
_CANONICAL = {synonym: name for name, synonyms in _SYNONYMS.items() for synonym in (name, *synonyms)}
_GENERIC = re.compile(r"(?:label)?(\d{1,4})")


def plain(name: str) -> str:
    """A label name without case, '-', '_' and spaces; known synonyms become one word."""
    key = re.sub(r"[-_\s]", "", name).casefold()
    return _CANONICAL.get(key, key)


def model_label_names(config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """config.json's label names in the order of the logits; None if there are none, or only LABEL_0 ...

    Raises: DataError where id2label does not number its names from 0 without a gap.
    """
    id2label = (config or {}).get("id2label")
    if not id2label:
        return None
    try:
        by_id = {int(key): str(name) for key, name in dict(id2label).items()}
        names = tuple(by_id[i] for i in range(len(by_id)))
    except (TypeError, ValueError, KeyError):
        raise DataError(f"config.json: id2label is {id2label!r}, expected names for 0, 1, 2, ...") from None
    generic = [_GENERIC.fullmatch(plain(name)) for name in names]
    if all(match and int(match[1]) == i for i, match in enumerate(generic)):
        return None
    return names


def spelled_alike(names: Iterable[str]) -> frozenset[str]:
    """Label names without what two spellings of one differ in."""
    return frozenset(plain(name) for name in names)


def with_label_names(task: Task, config: Mapping[str, Any] | None) -> Task:
    """`task` with the model's label names filled in where a custom task left them open."""
    if task.labels or not task.kind.named:
        return task
    return dataclasses.replace(task, labels=model_label_names(config) or ())


def match_labels(task: Task, config: Mapping[str, Any] | None, columns: int | None) -> LabelMap:
    """Pair the task's labels with the columns of the model's output, as its kind does (`Kind.match`).

    config   content of the model's config.json, or None
    columns  of the output, or None where it is not known

    Raises: DataError where the numbers differ, or the names are other names.
    """
    return task.kind.match(task, config, columns)


def match_logits(task: Task, config: Mapping[str, Any] | None, logits: int | None, least: int) -> LabelMap:
    """`match_labels` for kinds with a logit for each label; least: fewest logits that make sense."""
    names = model_label_names(config)
    if names is not None and logits is not None and len(names) != logits:
        raise DataError(
            f"config.json: id2label has {len(names)} names ({', '.join(names)}), but the model has {logits} "
            "logits; is config.json from another model?"
        )
    count = logits if logits is not None else len(names) if names else None
    if not task.labels:
        return _open_labels(task, names, count, least)
    if count is not None and count != len(task.labels):
        raise DataError(
            f"task {task.name} has {len(task.labels)} labels ({', '.join(task.labels)}), "
            f"but the model has {count} logits{_named(names)}"
        )
    if names is None:
        order = tuple(range(len(task.labels)))
        note = _pairs(task.labels, order) + " (assumed: config.json has no label names)."
        return LabelMap(order, task.labels, note)
    return _by_name(task, names)


def label_ids(values: Sequence[str], task: Task) -> dict[str, int]:
    """Ids in the data set's order for label names found in data; unknown names are absent from the result."""
    known = {plain(name): i for i, name in enumerate(task.labels)}
    return {value: known[plain(value)] for value in values if plain(value) in known}


def _open_labels(task: Task, names: tuple[str, ...] | None, count: int | None, least: int) -> LabelMap:
    """A custom task without names: label i of the data is logit i."""
    if count is None:
        raise DataError(f"task {task.name}: neither id2label nor the logits tell the number of labels")
    if count < least:
        raise DataError(
            f"task {task.name}: the model has {count} logit, a {task.kind.name} needs {least} or more; "
            "for regression give --metric pearson_spearman, or --task regression"
        )
    order = tuple(range(count))
    shown = names or tuple(str(i) for i in order)
    source = "names from id2label" if names else "assumed: config.json has no label names"
    return LabelMap(order, shown, f"{_pairs(shown, order)} ({source}).")


def _by_name(task: Task, names: tuple[str, ...]) -> LabelMap:
    """Match by name; 'LABEL_1' and '1' stand for the data set's label 1."""
    columns: dict[str, int] = {}
    for column, name in enumerate(names):
        match = _GENERIC.fullmatch(plain(name))
        generic = match is not None and int(match[1]) < len(task.labels)
        columns[plain(task.labels[int(match[1])]) if match and generic else plain(name)] = column
    if set(columns) != {plain(name) for name in task.labels}:
        raise DataError(
            f"the labels of task {task.name} are {', '.join(task.labels)}, but the model's id2label has "
            f"{', '.join(names)}; is it a model for another task? If only the names differ, correct id2label "
            "in config.json"
        )
    order = tuple(columns[plain(name)] for name in task.labels)
    changed = "" if order == tuple(range(len(order))) else "; the model's order differs from the data's"
    return LabelMap(order, task.labels, f"{_pairs(task.labels, order)} (by the names in id2label{changed}).")


def _pairs(names: Sequence[str], order: Sequence[int]) -> str:
    return "Labels: " + ", ".join(f"{name} = logit {column}" for name, column in zip(names, order, strict=True))


def _named(names: tuple[str, ...] | None) -> str:
    return f" ({', '.join(names)})" if names else ""
