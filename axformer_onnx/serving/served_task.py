"""Which task a served model answers: what was asked for, else what its run, its graph or its folder state."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from axformer_onnx.data import read_json
from axformer_onnx.errors import AxformerError
from axformer_onnx.inputs import likely_tasks, stated_task
from axformer_onnx.tasks import GLUE, MULTILABEL, REGRESSION, Task, custom_task, get_task, is_kind, logits_of, own_task


def served_task(folder: Path, session: Any, given: str | None) -> Task:
    """The task of the model of `session`, whose settings lie in `folder`.

    A model that states none is a classifier; with one number a row, a regression. Its labels are those of config.json.
    Raises: UsageError for an unknown name; DataError for outputs that no task reads.
    """
    if given is not None:
        return _named(given)
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    stated = stated_task(metadata, folder)
    return _of_report(folder) or (_named(stated.name) if stated else None) or _likely(folder, session)


def _named(name: str) -> Task:
    plain = name.strip().lower()
    return own_task(plain) if is_kind(plain) else get_task(name)


def _of_report(folder: Path) -> Task | None:
    """The task of the run that wrote the folder; None where there is no report, or one that does not say."""
    report = read_json(folder / "report.json")
    name, options = report.get("task"), report.get("options")
    if not isinstance(name, str) or not isinstance(options, dict):
        return None
    try:
        if name != "custom":
            return _named(name)
        columns = options.get("columns")
        metric = options.get("metric")
        asked = metric if isinstance(metric, str) and metric != "agreement" else "accuracy"
        return custom_task(columns if isinstance(columns, list) else ["text"], "label", asked)
    except AxformerError:  # of a later version, or a kind that is not registered here
        return None


def _likely(folder: Path, session: Any) -> Task:
    likely = likely_tasks(folder)
    if likely == (MULTILABEL.name,):
        return own_task(MULTILABEL.name)
    if likely and likely[0] in GLUE:
        return dataclasses.replace(get_task(likely[0]), labels=())  # what the model calls them
    one_number = logits_of(session.get_outputs()).columns == 1
    return own_task(REGRESSION.name) if one_number else custom_task(["text"])
