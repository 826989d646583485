"""Rows of a task: texts and labels, checked one by one, whatever file they came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.data.formats import Table, read_table
from axformer_onnx.errors import DataError
from axformer_onnx.tasks import Task, label_ids


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one role.

    texts        one tuple of 1 or 2 strings a row
    labels       int64[rows] class ids in the data set's order, or float64[rows] for regression
    source       where they came from, for people
    sha256       of the content (texts and labels in order), so the same rows have it in every file format
    label_names  names by id where a custom task's string labels were numbered here, else empty
    """

    texts: tuple[tuple[str, ...], ...]
    labels: npt.NDArray[Any]
    source: str
    sha256: str
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64], source: str | None = None) -> Rows:
        """The rows at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        texts = tuple(self.texts[i] for i in chosen.tolist())
        labels = self.labels[chosen]
        return Rows(texts, labels, source or self.source, _digest(texts, labels), self.label_names)

    def content_keys(self) -> tuple[tuple[str, ...], ...]:
        """One key a row: its texts with runs of white space made one. The label is no part of it."""
        return tuple(tuple(" ".join(text.split()) for text in row) for row in self.texts)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Rows as files have them: texts checked, labels still names or numbers (None: not asked for)."""

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str | float | None, ...] | None
    places: tuple[str, ...]
    source: str

    def take(self, indices: Sequence[int]) -> Drawn:
        """The rows at `indices`, in that order."""
        labels = self.labels and tuple(self.labels[i] for i in indices)
        texts, places = tuple(self.texts[i] for i in indices), tuple(self.places[i] for i in indices)
        return Drawn(texts, labels, places, self.source)


def read_rows(path: str | Path, task: Task, *, labelled: bool = True) -> Rows:
    """Read a file of rows; its extension decides the format (formats.py).

    labelled=False reads the texts alone: labels are -1 (NaN for regression).

    Raises: DataError naming file and row for missing columns, text that is not a string, labels that are
    missing, -1, out of range or of another task, and everything `read_table` refuses.
    """
    return number_labels([draw([Path(path)], task, labelled=labelled)], task)[0]


def unlabelled(texts: Sequence[tuple[str, ...]], source: str) -> Rows:
    """Rows of texts alone; their labels are -1."""
    labels = np.full(len(texts), -1, dtype=np.int64)
    return Rows(tuple(texts), labels, source, _digest(texts, labels))


def draw(paths: Sequence[Path], task: Task, *, labelled: bool = True) -> Drawn:
    """Read one or several files (shards, in order) as one set of rows.

    Raises: DataError as `read_rows`, except for what is wrong with a label's value.
    """
    wanted = [*task.columns, task.label] if labelled else list(task.columns)
    tables = [read_table(path, wanted) for path in paths]
    return drawn_from_tables(tables, task, labelled=labelled, source=", ".join(map(str, paths)))


def drawn_from_tables(tables: Sequence[Table], task: Task, *, labelled: bool, source: str) -> Drawn:
    """Check columns and texts of tables and put them together."""
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    places: list[str] = []
    for table in tables:
        _require_columns(table, [*task.columns, task.label] if labelled else task.columns)
        texts += _texts(table, task)
        places += [table.where(i) for i in range(len(table.numbers))]
        labels += table.columns[task.label] if labelled else []
    for place, label in zip(places, labels, strict=False):
        if not isinstance(label, (str, int, float, type(None))):
            raise DataError(f"{place}: the label is {type(label).__name__} {label!r:.40}, expected a name or a number")
    return Drawn(tuple(texts), tuple(labels) if labelled else None, tuple(places), source)


def number_labels(sets: Sequence[Drawn], task: Task) -> list[Rows]:
    """Labels to ids in the data set's order, alike for all `sets`.

    Names in the data are matched with the task's; for a task without names they are numbered in sorted order.

    Raises: DataError naming the row for a label that is missing, -1, out of range or unknown.
    """
    invented: tuple[str, ...] = ()
    values = (value for one in sets for value in one.labels or ())
    words = sorted({value for value in values if isinstance(value, str)})
    if not task.regression and not task.labels:
        invented = tuple(word for word in words if word and _integer(word) is None)
        task = dataclasses.replace(task, labels=invented)
    named = label_ids(words, task)
    rows = []
    for one in sets:
        labels: npt.NDArray[Any]
        if one.labels is None:
            labels = np.full(len(one.texts), np.nan if task.regression else np.int64(-1))
        else:
            labels = _numbers(one, task) if task.regression else _ids(one, task, named)
        rows.append(Rows(one.texts, labels, one.source, _digest(one.texts, labels), invented))
    return rows


def _require_columns(table: Table, wanted: Sequence[str]) -> None:
    if not table.numbers:
        raise DataError(f"{table.origin}: there are no rows")
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise DataError(
            f"{table.origin}: no column {', '.join(map(repr, missing))}; found: {', '.join(table.found)}. "
            "Name the text columns with --columns and the label column with --label"
        )


def _texts(table: Table, task: Task) -> list[tuple[str, ...]]:
    columns = [table.columns[name] for name in task.columns]
    for name, column in zip(task.columns, columns, strict=True):
        for i, text in enumerate(column):
            if not isinstance(text, str):
                found = "missing" if text is None else f"{type(text).__name__} {text!r:.40}"
                raise DataError(f"{table.where(i)}: {name!r} is {found}, expected text")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(f"{table.where(i)}: {name!r} has half a surrogate pair, not valid text") from None
    return list(zip(*columns, strict=True))


def _integer(value: object) -> int | None:
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


def _ids(one: Drawn, task: Task, named: dict[str, int]) -> npt.NDArray[np.int64]:
    limit, values = len(task.labels), one.labels or ()
    ids = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        found = named.get(value) if isinstance(value, str) else None
        number = found if found is not None else _integer(value)
        if number is None or number < 0 or (limit and number >= limit):
            raise DataError(f"{one.places[i]}: {_refusal(value, number, task)}")
        ids[i] = number
    return ids


def _refusal(value: object, number: int | None, task: Task) -> str:
    names = ", ".join(f"{i} {name}" for i, name in enumerate(task.labels))
    expected = f"expected {names}" if names else "expected 0, 1, 2, ..."
    if value is None or value == "":
        return f"the label is missing; {expected}"
    if number == -1:
        return f"the label is -1, which marks rows without a published label; use labelled rows ({expected})"
    if number is not None:
        return f"label {number} is out of range; {expected}"
    return f"label {value!r:.60} is not a label of task {task.name}; {expected}"


def _numbers(one: Drawn, task: Task) -> npt.NDArray[np.float64]:
    values = one.labels or ()
    numbers = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        try:
            numbers[i] = math.nan if value is None or isinstance(value, bool) else float(value)
        except (OverflowError, ValueError):
            numbers[i] = math.nan
        if not math.isfinite(numbers[i]):
            shown = "missing" if value in (None, "") else f"{value!r:.60}"
            raise DataError(f"{one.places[i]}: the label is {shown}, expected a number (task {task.name})")
    return numbers


def _digest(texts: Sequence[tuple[str, ...]], labels: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for text, label in zip(texts, labels.tolist(), strict=True):
        digest.update(json.dumps([*text, label], ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()
