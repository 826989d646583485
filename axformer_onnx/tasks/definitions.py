"""What a task is: columns, label names in the data set's order, metrics. GLUE's nine, and the user's own.

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

CUSTOM_METRICS = ("accuracy", "f1", "macro-f1", "mcc", "pearson_spearman")


@dataclasses.dataclass(frozen=True)
class Task:
    """What the rows of a task look like and how answers are judged.

    columns     names of the one or two text columns
    label       name of the label column
    labels      label names, by id in the data set's order; empty for regression, or where a custom task
                leaves them open
    metric      the main metric, one of `metrics`
    metrics     every metric that is reported, in points (x 100)
    regression  labels are numbers, the loss is the squared error
    """

    name: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: str
    metrics: tuple[str, ...]
    regression: bool = False


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
            "pearson_spearman", ("pearson_spearman", "pearson", "spearman"), regression=True,
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
        "--task custom --columns text_a,text_b --label label --metric accuracy"
    )


def custom_task(columns: Sequence[str], label: str = "label", metric: str = "accuracy") -> Task:
    """A task of the user's own. Label names are left open: `labels.with_label_names` fills them from
    id2label.

    Raises: UsageError for a number of columns other than 1 or 2, repeated columns, or an unknown metric.
    """
    names = tuple(column.strip() for column in columns)
    if len(names) not in (1, 2) or not all(names):
        raise UsageError(f"--columns names {len(names)} text columns ({', '.join(names)}); expected 1 or 2")
    if len({*names, label}) != len(names) + 1:
        raise UsageError(f"--columns {','.join(names)} --label {label}: each column may be named once")
    if metric not in CUSTOM_METRICS:
        near = difflib.get_close_matches(metric, CUSTOM_METRICS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown metric {metric!r}.{hint} Metrics: {', '.join(CUSTOM_METRICS)}")
    regression = metric == "pearson_spearman"
    if regression:
        metrics: tuple[str, ...] = ("pearson_spearman", "pearson", "spearman")
    else:
        metrics = (metric,) if metric == "accuracy" else (metric, "accuracy")
    return Task("custom", names, label, (), metric, metrics, regression)


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
