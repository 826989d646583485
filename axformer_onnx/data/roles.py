"""Which rows play which role: found in files, the model's folder or the hub, and kept apart by content.

search        decide trials of the search            (docs/method.md 1.3)
select        choose among the stages it went through
report        are scored once, for the report: no decision uses them
calibration   unlabelled rows for second moments, where given
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from axformer_onnx.data.role_files import find_roles, looks_like_hub_name
from axformer_onnx.data.rows import Drawn, Rows, draw, number_labels
from axformer_onnx.data.separate import hold_out, part, split, without
from axformer_onnx.errors import DataError
from axformer_onnx.tasks import GLUE, Task, with_label_names

TRAIN_PART = 4_000  # rows taken of `train` where there is no `search` file
HELD_OUT = 5_000  # this many rows at most are held out where there is no validation file


@dataclasses.dataclass(frozen=True)
class DataRoles:
    """Disjoint sets of rows. `notes` are sentences for the user: what came from where, what was left out."""

    search: Rows
    select: Rows
    report: Rows
    calibration: Rows | None
    notes: tuple[str, ...]


DataSource = str | Path


@dataclasses.dataclass(frozen=True)
class _FoundRows:
    """Rows by role (train, search, validation, test, calibration), not read before they are asked for."""

    readers: Mapping[str, Callable[[], Drawn]]
    notes: tuple[str, ...] = ()


def resolve(
    task: Task,
    *,
    model_dir: DataSource,
    data: DataSource | None = None,
    search_data: DataSource | None = None,
    calibration: DataSource | None = None,
    seed: int = 0,
    max_search_rows: int | None = None,
) -> DataRoles:
    """Find the rows of every role and keep them apart.

    data             a file (report rows), a folder with files named after roles, or a hub data set's name;
                     without it `data/` beside the model, then the hub
    search_data      a file that overrides the search rows; `calibration` likewise, labels not needed
    max_search_rows  this many rows at most for search and select together, a seeded part

    Search and select split 2:1 by content, beyond 2,000 search rows all else is for select, so that equal texts never stand in
    both; rows that the report has too are dropped from them. Same files, same seed: same sets.

    Raises: DataError where no data is found (it shows the three ways to give it) or too few rows are left.
    """
    task = with_label_names(task, _config(Path(model_dir)))
    found = _find(task, Path(model_dir), data, optional=search_data is not None)
    drawn, notes = _draw_roles(task, found, search_data, calibration, max_search_rows or TRAIN_PART, seed)
    rows = dict(zip(drawn, number_labels(list(drawn.values()), task), strict=True))
    notes += _note_invented(rows["pool"])
    return _separate(rows, notes, max_search_rows, seed, apart=task.kind.apart)


def resolve_report(task: Task, *, model_dir: DataSource, data: DataSource | None = None) -> Rows:
    """The report rows alone, for scoring: from `data` (file, folder, hub name), else as `resolve` finds them.

    Raises: DataError where none are found.
    """
    task = with_label_names(task, _config(Path(model_dir)))
    found = _find(task, Path(model_dir), data, optional=False)
    role = next((role for role in ("validation", "test") if role in found.readers), None)
    if role is None:
        raise DataError(
            f"{data or model_dir}: found rows for {', '.join(sorted(found.readers))}, but none to score; "
            "add a validation file or name one with --data"
        )
    return number_labels([found.readers[role]()], task)[0]


def _draw_roles(
    task: Task,
    found: _FoundRows,
    search_data: DataSource | None,
    calibration: DataSource | None,
    count: int,
    seed: int,
) -> tuple[dict[str, Drawn], list[str]]:
    """The pool of search and select rows, the report rows and the calibration rows, where there are any."""
    readers, notes = dict(found.readers), list(found.notes)
    if search_data is not None:
        readers["search"] = lambda: draw([Path(search_data)], task)
    if calibration is not None:
        readers["calibration"] = lambda: draw([Path(calibration)], task, labelled=False)
    report: str | None = next((role for role in ("validation", "test") if role in readers), None)
    pool: str | None = next((role for role in ("search", "train") if role in readers), None)
    if pool is None and report is not None:
        notes.append(f"there are neither search nor train rows: the {report} rows serve all roles, in disjoint parts")
        pool, report = report, None
    if pool is None:
        raise DataError("only calibration rows were found; give search or validation rows with --data")
    drawn = {"pool": readers[pool]()}
    if pool == "train":
        drawn["pool"], note = _part_of_train(drawn["pool"], count if report else -(-3 * count // 2), seed)
        notes.append(note)
    if report is not None:
        drawn["report"] = readers[report]()
        notes += ["there is no validation file: the test rows are the report rows"] * (report == "test")
    if "calibration" in readers:
        drawn["calibration"] = readers["calibration"]()
    return drawn, notes


def _part_of_train(train: Drawn, count: int, seed: int) -> tuple[Drawn, str]:
    """At most `count` rows of train, and the note that says so."""
    total = len(train.texts)
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:count]).tolist()
    note = f"there are no search rows: {len(chosen)} of {total} train rows are used (seed {seed})"
    return train.take(chosen), f"{note}; the model may have been trained on them"


def _separate(
    rows: Mapping[str, Rows], notes: list[str], max_search_rows: int | None, seed: int, *, apart: bool
) -> DataRoles:
    """Disjoint roles out of the rows of 'pool', 'report' and 'calibration'."""
    pool, report, spare = rows["pool"], rows.get("report"), rows.get("calibration")
    if report is None:
        pool, report = hold_out(pool, seed, HELD_OUT)
        notes.append(f"no report rows were given: {len(report)} rows of {pool.source} were held out for the report")
    pool, dropped = without(pool, report, apart=apart)
    if dropped:
        notes.append(f"{dropped} search rows were left out: the report rows have the same text")
    if max_search_rows is not None and len(pool) > max_search_rows:
        notes.append(f"search and select use {max_search_rows} of {len(pool)} rows (seed {seed})")
        pool = part(pool, max_search_rows, seed)
    search, select = split(pool, seed)
    if spare is not None:
        spare, dropped = without(spare, report, apart=apart)
        if dropped:
            notes.append(f"{dropped} calibration rows were left out: the report rows have the same text")
    return DataRoles(search, select, report, spare, tuple(notes))


def _note_invented(rows: Rows) -> list[str]:
    if not rows.label_names:
        return []
    named = ", ".join(f"{i} {name}" for i, name in enumerate(rows.label_names))
    return [f"label names of the data were numbered in sorted order: {named}"]


def _find(task: Task, model_dir: Path, data: DataSource | None, *, optional: bool) -> _FoundRows:
    """The readers of every role, from --data, the model's folder or the hub, in this order."""
    from axformer_onnx.data import hub

    tried = []
    if data is not None:
        path = Path(data)
        if path.is_file():
            return _FoundRows({"validation": lambda: draw([path], task)})
        if path.is_dir():
            return _from_folder(path, task)
        if not looks_like_hub_name(str(data)):
            raise DataError(f"{data}: no such file or folder")
        try:
            return _FoundRows(hub.readers(str(data), None, task))
        except hub.Unreachable as error:
            raise DataError(f"{data}: no such file or folder; nor from the hub: {error}") from None
    beside = model_dir / "data"
    if beside.is_dir():
        return _from_folder(beside, task)
    tried.append(f"there is no {beside}")
    try:
        if task.name in GLUE:
            return _FoundRows(hub.glue_readers(task), ("rows come from the hub's data set nyu-mll/glue",))
    except hub.Unreachable as error:
        tried.append(str(error))
    if optional:
        return _FoundRows({})
    raise DataError(
        f"no data for task {task.name}: {'; '.join(tried)}. Give rows in one of three "
        "ways: --data FILE_OR_FOLDER; a folder data/ beside model.onnx; "
        "pip install 'axformer-onnx[hub]' and a network"
    )


def _from_folder(folder: Path, task: Task) -> _FoundRows:
    files = find_roles(folder, mismatched=task.name == "mnli-mm")

    def reader(role: str) -> Callable[[], Drawn]:
        return lambda: draw(files[role], task, labelled=role != "calibration")

    return _FoundRows({role: reader(role) for role in files})


def _config(model_dir: Path) -> dict[str, Any] | None:
    path = model_dir / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    return config if isinstance(config, dict) else None
