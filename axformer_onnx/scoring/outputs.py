"""Scores of a model's outputs, and the loop that gets those outputs from a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.data import Encoded, Rows, batches
from axformer_onnx.errors import DataError, RuntimeFailure
from axformer_onnx.records import FloatArray, Scores
from axformer_onnx.runtime import run_session
from axformer_onnx.tasks import Kind, LabelMap, Output, Task, metric_named


def evaluate(
    outputs: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    task: Task,
    label_map: LabelMap,
    source: FloatArray | None = None,
) -> Scores:
    """Scores of the outputs of rows (`Kind.of_sequences`) against labels[rows] in the data set's order.

    source  the source's outputs on the same rows, for kinds that compare with them; None: these are the source's

    Raises: DataError where a label has no column or the shapes differ, RuntimeFailure for nan and infinity.
    """
    kind, outputs = task.kind, np.asarray(outputs, dtype=np.float64)
    kind.check(outputs, labels, label_map)
    wrong = np.flatnonzero(~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1))
    if len(wrong):
        raise RuntimeFailure(f"the model puts out nan or infinity for {len(wrong)} rows, the first is row {wrong[0]}")
    losses = kind.losses(outputs, labels, label_map, source)
    labels = kind.truth(labels, outputs if source is None else source, label_map)
    answers = kind.answers(outputs, losses, labels, label_map)
    main, names = kind.metric_names(task, answers)
    metrics = {name: metric_named(kind.name, name).value(answers) for name in names}
    return Scores(
        outputs=outputs,
        loss_per_row=losses,
        metric=main,
        value=metrics[main],
        metrics=metrics,
        majority_rate=kind.majority_rate(answers),
        majority_metric=kind.majority_metric,
        divergence=_divergence(kind, source, outputs),
        single_class=kind.single_answer(answers, label_map),
    )


def _divergence(kind: Kind, source: FloatArray | None, outputs: FloatArray) -> float | None:
    if source is None or source.shape != outputs.shape:
        return None
    return float(kind.divergence(source, outputs).mean())


def score_session(
    session: Any,
    encoded: Encoded,
    rows: Rows,
    task: Task,
    label_map: LabelMap,
    *,
    output: Output | None = None,
    source: FloatArray | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Scores of a session on rows that were encoded before. `progress` is told how many sequences each batch had.

    output  what is read of the model; None: what the task's kind finds without the settings of a folder
    source  as `evaluate`

    Raises: DataError for inputs that text cannot feed, outputs that the task does not read, labels without a logit;
    RuntimeFailure where ONNX Runtime refuses.
    """
    assert encoded.rows == len(rows)
    output = output or task.kind.output(session.get_outputs(), None)
    names = [one.name for one in session.get_inputs()]
    outputs: FloatArray | None = None
    for batch in batches(encoded, names, batch_size=batch_size):
        found = output.read(run_session(session, batch.feeds, [output.name])[output.name], batch.mask)
        if outputs is None:
            outputs = np.zeros((len(encoded), found.shape[-1]), dtype=np.float64)
        outputs[batch.rows] = found
        if progress is not None:
            progress(len(batch.rows))
    if outputs is None:
        raise DataError(f"{rows.source}: there are no rows")
    return evaluate(task.kind.of_sequences(outputs, encoded.owner), rows.labels, task, label_map, source)
