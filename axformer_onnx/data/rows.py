"""Rows of a task: texts and labels, checked one by one, whatever file they came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.data.formats import EXTENSIONS, Table, read_table
from axformer_onnx.errors import DataError, MissingLabels
from axformer_onnx.tasks import WITHOUT_LABELS, Task


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one role.

    texts        one tuple of 1 or 2 strings a row
    labels       [rows] or [rows, labels], as the task's kind reads them (`tasks.Kind.numbered`)
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
    labels: tuple[Any, ...] | None
    places: tuple[str, ...]
    source: str

    def take(self, indices: Sequence[int]) -> Drawn:
        """The rows at `indices`, in that order."""
        labels = self.labels and tuple(self.labels[i] for i in indices)
        texts, places = tuple(self.texts[i] for i in indices), tuple(self.places[i] for i in indices)
        return Drawn(texts, labels, places, self.source)


def read_rows(path: str | Path, task: Task, *, labelled: bool = True) -> Rows:
    """Read a file of rows; its extension decides the format (formats.py).

    labelled=False reads the texts alone: labels are the kind's mark for none.

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
    wanted = task.kind.wanted(task, labelled=labelled)
    tables = [read_table(path, wanted) for path in paths]
    return drawn_from_tables(tables, task, labelled=labelled, source=", ".join(map(str, paths)))


def drawn_from_tables(tables: Sequence[Table], task: Task, *, labelled: bool, source: str) -> Drawn:
    """Check columns and texts of tables and put them together."""
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    places: list[str] = []
    for table in tables:
        columns, label_column = task.kind.found_columns(task, table.found, labelled=labelled)
        _require_columns(table, columns, label_column)
        texts += _texts(table, columns)
        places += [table.where(i) for i in range(len(table.numbers))]
        labels += [None] * len(table.numbers) if label_column is None else table.columns[label_column]
    for place, label in zip(places, labels if labelled else [], strict=False):
        if not isinstance(label, task.kind.label_types):
            found = f"{type(label).__name__} {label!r:.40}"
            raise DataError(f"{place}: the label is {found}, expected {task.kind.label_words}")
    return Drawn(tuple(texts), tuple(labels) if labelled else None, tuple(places), source)


def number_labels(sets: Sequence[Drawn], task: Task) -> list[Rows]:
    """Labels to arrays, alike for all `sets`, as the task's kind reads them.

    Raises: DataError naming the row for a label that is missing, -1, out of range or unknown.
    """
    arrays, invented = task.kind.numbered(task, sets)
    return [
        Rows(one.texts, labels, one.source, _digest(one.texts, labels), invented)
        for one, labels in zip(sets, arrays, strict=True)
    ]


def _require_columns(table: Table, texts: Sequence[str], label: str | None) -> None:
    if not table.numbers:
        raise DataError(f"{table.origin}: there are no rows")
    wanted = [*texts, *([label] if label else [])]
    missing = [name for name in wanted if name not in table.columns]
    if not missing:
        return
    kind, hint = (MissingLabels, WITHOUT_LABELS) if missing == [label] else (DataError, "")
    if table.unnamed:
        raise kind(
            f"{table.origin}: a text file has a text a line and nothing else, but the task reads {', '.join(wanted)}; "
            f"give {', '.join(EXTENSIONS[:-1])}{hint}"
        )
    raise kind(
        f"{table.origin}: no column {', '.join(map(repr, missing))}; found: {', '.join(table.found)}. "
        f"Name the text columns with --columns and the label column with --label{hint}"
    )


def _texts(table: Table, names: Sequence[str]) -> list[tuple[str, ...]]:
    columns = [table.columns[name] for name in names]
    for name, column in zip(names, columns, strict=True):
        for i, text in enumerate(column):
            if not isinstance(text, str):
                found = "missing" if text is None else f"{type(text).__name__} {text!r:.40}"
                raise DataError(f"{table.where(i)}: {name!r} is {found}, expected text")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(f"{table.where(i)}: {name!r} has half a surrogate pair, not valid text") from None
    return list(zip(*columns, strict=True))


def _digest(texts: Sequence[tuple[str, ...]], labels: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for text, label in zip(texts, labels.tolist(), strict=True):
        digest.update(json.dumps([*text, label], ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()
