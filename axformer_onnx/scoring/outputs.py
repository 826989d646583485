"""Loss per row and metrics of a model's outputs, and the loop that gets those outputs from a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.data import Encoded, Rows, batches
from axformer_onnx.errors import DataError, RuntimeFailure
from axformer_onnx.records import FloatArray, Scores
from axformer_onnx.runtime import run_session
from axformer_onnx.statistics import class_metric, confusion, number_metric
from axformer_onnx.tasks import LabelMap, Task


def evaluate(outputs: npt.NDArray[Any], labels: npt.NDArray[Any], task: Task, label_map: LabelMap) -> Scores:
    """Scores of logits[rows, classes] (regression: [rows, 1]) against labels[rows] in the data set's order.

    Raises: DataError where a label has no logit or the shapes differ, RuntimeFailure for nan and infinity.
    """
    outputs = np.asarray(outputs, dtype=np.float64)
    if outputs.ndim != 2 or outputs.shape != (len(labels), len(label_map.order)):
        raise DataError(
            f"the model's output has the shape {list(outputs.shape)}, expected "
            f"[{len(labels)}, {len(label_map.order)}] (rows, {'numbers' if task.regression else 'labels'})"
        )
    wrong = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if len(wrong):
        raise RuntimeFailure(f"the model puts out nan or infinity for {len(wrong)} rows, the first is row {wrong[0]}")
    if task.regression:
        return _number_scores(outputs, np.asarray(labels, dtype=np.float64), task)
    return _class_scores(outputs, np.asarray(labels, dtype=np.int64), task, label_map)


def guesses_of(outputs: FloatArray, label_map: LabelMap) -> npt.NDArray[np.int64]:
    """int64[rows]: label id, in the data set's order, of each row's largest logit (the first of equals)."""
    guesses: npt.NDArray[np.int64] = outputs[:, list(label_map.order)].argmax(axis=1)
    return guesses


def logits_output(session: Any) -> tuple[str, int | None]:
    """Name of the session's logits output and its number of columns (None where the graph does not say).

    It is the output called 'logits', else the only float output of shape [batch, classes].

    Raises: DataError that lists the outputs.
    """
    outputs = session.get_outputs()
    named = [one for one in outputs if one.name == "logits" and len(one.shape) == 2]
    flat = [one for one in outputs if one.type in _FLOATS and len(one.shape) == 2]
    chosen = named or (flat if len(flat) == 1 else [])
    if not chosen:
        shown = ", ".join(f"{one.name} {one.type} {one.shape}" for one in outputs)
        raise DataError(
            f"no output has the shape [batch, classes]; the model has {shown}. "
            "Export it with a sequence classification head"
        )
    columns = chosen[0].shape[1]
    return chosen[0].name, columns if isinstance(columns, int) else None


def score_session(
    session: Any,
    encoded: Encoded,
    rows: Rows,
    task: Task,
    label_map: LabelMap,
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Scores of a session on rows that were encoded before. `progress` is told how many rows each batch had.

    Raises: DataError for inputs that text cannot feed, outputs without logits, labels without a logit;
    RuntimeFailure where ONNX Runtime refuses.
    """
    assert len(encoded) == len(rows)
    name, _ = logits_output(session)
    names = [one.name for one in session.get_inputs()]
    outputs: FloatArray | None = None
    for batch in batches(encoded, names, batch_size=batch_size):
        logits = run_session(session, batch.feeds, [name])[name]
        if outputs is None:
            outputs = np.zeros((len(rows), logits.shape[-1]), dtype=np.float64)
        outputs[batch.rows] = logits
        if progress is not None:
            progress(len(batch.rows))
    if outputs is None:
        raise DataError(f"{rows.source}: there are no rows")
    return evaluate(outputs, rows.labels, task, label_map)


_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)", "tensor(bfloat16)"}


def _class_scores(outputs: FloatArray, labels: npt.NDArray[np.int64], task: Task, label_map: LabelMap) -> Scores:
    from scipy.special import log_softmax

    classes = len(label_map.order)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"row {wrong[0]} has label {labels[wrong[0]]}, but the model has {classes} logits "
            f"(labels 0 to {classes - 1})"
        )
    log_probabilities = log_softmax(outputs[:, list(label_map.order)], axis=1)
    guesses = guesses_of(outputs, label_map)
    counts = confusion(labels, guesses, classes)
    metrics = {name: float(class_metric(name, counts)) for name in task.metrics}
    one_class = len(guesses) > 1 and np.ptp(guesses) == 0
    return Scores(
        outputs=outputs,
        loss_per_row=-log_probabilities[np.arange(len(labels)), labels],
        metric=task.metric,
        value=metrics[task.metric],
        metrics=metrics,
        majority_rate=100 * float(counts.sum(axis=1).max() / len(labels)),
        single_class=int(guesses[0]) if one_class else None,
    )


def _number_scores(outputs: FloatArray, labels: FloatArray, task: Task) -> Scores:
    metrics = {name: number_metric(name, labels, outputs[:, 0]) for name in task.metrics}
    return Scores(
        outputs=outputs,
        loss_per_row=(outputs[:, 0] - labels) ** 2,
        metric=task.metric,
        value=metrics[task.metric],
        metrics=metrics,
        majority_rate=None,
        single_class=None,
    )
