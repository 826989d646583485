"""What a run of optimize is given: options, the source model, rows and tokens by role."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from axformer_onnx.data import DataRoles, Rows, resolve
from axformer_onnx.evaluation import Machine, Reading, provider_warnings, reading_of, truncation_notes
from axformer_onnx.runtime import run_once
from axformer_onnx.tasks import Task
from axformer_onnx.text import Encoded
from axformer_passes.anatomy import Anatomy
from axformer_passes.files import load_model, model_path, sha256_of

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_SEARCH_ROWS = 3000
"""Rows for search and select together, unless asked otherwise: two thirds decide trials. The standard error
of a paired difference in accuracy is then about half a point, and a trial takes seconds."""

SearchKind = Literal["robust", "axformer"]


@dataclasses.dataclass(frozen=True)
class OptimizeOptions:
    """What to optimize, with which rows, how, and where to.

    data, search_data, calibration    as `data.resolve`
    k                                 of hard attention
    shapes                            (batch, length) of the latency table; None: from the data
    overwrite                         forget what an earlier run left in `output`
    """

    model: Path
    task: Task
    output: Path
    data: str | None = None
    search_data: str | None = None
    calibration: str | None = None
    search: SearchKind = "robust"
    k: int = 30
    seed: int = 0
    machine: Machine = dataclasses.field(default_factory=Machine)
    shapes: tuple[tuple[int, int], ...] | None = None
    max_search_rows: int = MAX_SEARCH_ROWS
    max_length: int | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """The model to optimize."""

    path: Path
    sha256: str
    model: ir.Model
    anatomy: Anatomy


@dataclasses.dataclass(frozen=True)
class Given:
    """Everything that the search and the report need: the source, how it reads the task, rows and tokens by role."""

    source: Source
    reading: Reading
    rows: Mapping[str, Rows]
    encoded: Mapping[str, Encoded]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def open_source(options: OptimizeOptions) -> Source:
    """Load and recognise. Raises: ModelError, RecogniseError."""
    from axformer_passes.recognise import recognise

    path = model_path(options.model)
    model = load_model(path)
    return Source(path, sha256_of(path), model, recognise(model, run_once))


def read_rows(options: OptimizeOptions, source: Source) -> Given:
    """Find the rows of every role and encode them. Raises: DataError, UsageError."""
    roles = resolve(
        options.task,
        model_dir=source.path.parent,
        data=options.data,
        search_data=options.search_data,
        calibration=options.calibration,
        seed=options.seed,
        max_search_rows=options.max_search_rows,
    )
    session = options.machine.session(source.path)
    reading = reading_of(source.path, session, options.task, roles.report, max_length=options.max_length)
    rows = _rows_by_role(roles, options.search)
    encoded = {role: reading.encoder.encode(part) for role, part in rows.items()}
    unused = [f"the calibration rows are not used by --search {options.search}"] if options.calibration else []
    notes = (*roles.notes, *unused, *truncation_notes(list(encoded.items())), *_refusals(source.anatomy))
    warnings = tuple(provider_warnings(session, options.machine.provider))
    return Given(source, reading, rows, encoded, notes, warnings)


def _rows_by_role(roles: DataRoles, search: SearchKind) -> dict[str, Rows]:
    """The authors' search chooses no stage, so its trials see the select rows too."""
    if search == "robust":
        return {"search": roles.search, "select": roles.select, "report": roles.report}
    first, second = roles.search, roles.select
    joined = Rows(
        texts=first.texts + second.texts,
        labels=np.concatenate([first.labels, second.labels]),
        source=first.source.removesuffix(" (search part)"),
        sha256=hashlib.sha256((first.sha256 + second.sha256).encode()).hexdigest(),
        label_names=first.label_names,
    )
    return {"search": joined, "report": roles.report}


def _refusals(anatomy: Anatomy) -> list[str]:
    return [f"left whole: {x.node} ({x.operator}): {x.reason}" for x in anatomy.refused]
