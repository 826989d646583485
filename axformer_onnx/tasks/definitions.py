"""Tasks by name: GLUE's nine, and the user's own of any registered kind.

Source of columns and label order: the GLUE benchmark (Wang et al. 2019), as the hub's `nyu-mll/glue` has it.
Where GLUE names two metrics (MRPC, QQP: accuracy and F1) the main one here is accuracy, which has an exact
paired test; F1 is reported beside it. STS-B's main metric is GLUE's: the mean of Pearson's and Spearman's
correlation.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from axformer_onnx.errors import UsageError
from axformer_onnx.tasks.agreement import AGREEMENT, by_agreement
from axformer_onnx.tasks.classification import CLASSIFICATION
from axformer_onnx.tasks.metrics import METRICS
from axformer_onnx.tasks.protocol import KINDS, Kind, Task, kind_named
from axformer_onnx.tasks.regression import REGRESSION

_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

GLUE: dict[str, Task] = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), "label", ("unacceptable", "acceptable"), "mcc", ("mcc",)),
        Task("sst2", ("sentence",), "label", ("negative", "positive"), "accuracy", ("accuracy",)),
        Task("mrpc", _PAIR, "label", ("not_equivalent", "equivalent"), "accuracy", ("accuracy", "f1")),
        Task(
            "stsb", _PAIR, "label", (),
            "pearson_spearman", ("pearson_spearman", "pearson", "spearman"), REGRESSION,
        ),
        Task(
            "qqp", ("question1", "question2"), "label", ("not_duplicate", "duplicate"),
            "accuracy", ("accuracy", "f1"),
        ),
        Task(
            "mnli", ("premise", "hypothesis"), "label", ("entailment", "neutral", "contradiction"),
            "accuracy", ("accuracy",),
        ),
        Task(
            "mnli-mm", ("premise", "hypothesis"), "label", ("entailment", "neutral", "contradiction"),
            "accuracy", ("accuracy",),
        ),
        Task("qnli", ("question", "sentence"), "label", _ENTAILMENT, "accuracy", ("accuracy",)),
        Task("rte", _PAIR, "label", _ENTAILMENT, "accuracy", ("accuracy",)),
        Task("wnli", _PAIR, "label", _ENTAILMENT[::-1], "accuracy", ("accuracy",)),
    )
}  # fmt: skip

# Written without case, '-', '_' and spaces, as `_plain` leaves them.
_ALIASES = {
    "sst": "sst2",
    "sts": "stsb",
    "mnlim": "mnli",
    "mnlimatched": "mnli",
    "mnlimm": "mnli-mm",
    "mnlimismatched": "mnli-mm",
}


def get_task(name: str) -> Task:
    """The GLUE task called `name`; case, '-', '_' and spaces do not matter ('SST-2' is sst2).

    `mnli-mm` (or 'mnli_mismatched') is MNLI with the mismatched validation rows.

    Raises: UsageError that lists the names, and the nearest one.
    """
    plain = _plain(name)
    found = _ALIASES.get(plain, plain)
    if found in GLUE:
        return GLUE[found]
    near = difflib.get_close_matches(plain, [*GLUE, *_ALIASES], n=1)
    hint = f" Did you mean {_ALIASES.get(near[0], near[0])}?" if near else ""
    raise UsageError(
        f"unknown task {name!r}.{hint} Tasks: {', '.join(GLUE)}; for data of your own: "
        f"--task custom --columns text_a,text_b --label label --metric accuracy, or the kind of the task: {', '.join(KINDS)}"
    )


def custom_task(columns: Sequence[str], label: str = "label", metric: str = "accuracy") -> Task:
    """A classification or regression of the user's own; the metric says which (agreement: a classification). Label
    names are left open: `labels.with_label_names` fills them from id2label.

    Raises: UsageError for a number of columns other than 1 or 2, repeated columns, or an unknown metric.
    """
    kind = REGRESSION if metric in METRICS[REGRESSION.name] else CLASSIFICATION
    known = [*METRICS[CLASSIFICATION.name], *METRICS[REGRESSION.name]]
    return _task("custom", kind, columns, label, metric, known)


def own_task(
    kind: str, columns: Sequence[str] | None = None, label: str | None = None, metric: str | None = None
) -> Task:
    """A task of the kind registered as `kind`, which is its name, too; columns, label and metric are the kind's where not given.

    Raises: UsageError as `custom_task`, and for an unknown kind.
    """
    found = kind_named(kind)
    known = list(METRICS.get(kind, {}))
    return _task(kind, found, columns or found.columns, label or found.label, metric or found.main_metric, known)


def is_kind(name: str) -> bool:
    """Is `name` a registered kind, of which `own_task` makes a task?"""
    return name in KINDS


def _task(name: str, kind: Kind, columns: Sequence[str], label: str, metric: str, known: list[str]) -> Task:
    names = tuple(column.strip() for column in columns)
    if len(names) not in (1, 2) or not all(names):
        raise UsageError(f"--columns names {len(names)} text columns ({', '.join(names)}); expected 1 or 2")
    if len({*names, label}) != len(names) + 1:
        raise UsageError(f"--columns {','.join(names)} --label {label}: each column may be named once")
    if metric == AGREEMENT:
        return by_agreement(Task(name, names, label, (), kind.main_metric, kind.reported(kind.main_metric), kind))
    known = [*known, AGREEMENT]
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown metric {metric!r}.{hint} Metrics: {', '.join(known)}")
    return Task(name, names, label, (), metric, kind.reported(metric), kind)


def with_columns(task: Task, columns: Sequence[str] | None = None, label: str | None = None) -> Task:
    """`task` reading other column names, for example MNLI from `sentence1,sentence2` with `gold_label`.

    Raises: UsageError where the number of text columns differs from the task's, or a column is named twice.
    """
    names = tuple(column.strip() for column in columns) if columns else task.columns
    label = label or task.label
    if len(names) != len(task.columns):
        raise UsageError(
            f"--columns names {len(names)} text columns ({', '.join(names)}); {task.name} has {len(task.columns)}"
        )
    if len({*names, label}) != len(names) + 1:
        raise UsageError(f"--columns {','.join(names)} --label {label}: each column may be named once")
    return dataclasses.replace(task, columns=names, label=label)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
