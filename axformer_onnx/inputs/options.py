"""The options of a run of optimize."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from axformer_onnx.inputs.goal import Goal
from axformer_onnx.scoring import Machine
from axformer_onnx.tasks import Task
from axformer_passes.plan import Constants, KeysValues, Readout, SharedWeights

if TYPE_CHECKING:
    pass


MAX_SEARCH_ROWS = 3000
"""Rows for search and select together, unless asked otherwise: two thirds decide trials. The standard error
of a paired difference in accuracy is then about half a point, and a trial takes seconds."""

SearchKind = Literal["compensated", "robust", "axformer"]


@dataclasses.dataclass(frozen=True)
class OptimizeOptions:
    """What to optimize, with which rows, how, and where to.

    data, search_data, calibration    as `data.resolve`
    goal, effort                      of the compensated search (`search/budget.py`, `search/tune.py`)
    k                                 of hard attention, in the other searches
    refit_classifier                  of the compensated search: the last linear layer anew, with the labels of the search rows
    jobs, backend                     processes that score candidates of the compensated search (`search/workers.py`)
    readout                           narrow: what only a picked token needs is computed for it alone, where that is legal
    constants                         folded: factors, biases and sizes go where they cost least, exact but for rounding
    keys_values                       absorbed: where the read-out leaves one query, its keys and values are not projected
    shared_weights                    where layers share weights: heads and neurons go in all of them (together), or a layer that
                                      loses some gets a copy (separate); None: together
    shapes                            (batch, length) of the latency table; None: from the data
    overwrite                         forget what an earlier run left in `output`
    """

    model: Path
    task: Task
    output: Path
    data: str | None = None
    search_data: str | None = None
    calibration: str | None = None
    search: SearchKind = "compensated"
    goal: Goal = dataclasses.field(default_factory=Goal)
    effort: Level = "medium"
    k: int = 30
    readout: Readout = "narrow"
    constants: Constants = "folded"
    keys_values: KeysValues = "absorbed"
    refit_classifier: bool = False
    jobs: int = 1
    backend: Backend = "local"
    shared_weights: SharedWeights | None = None
    seed: int = 0
    machine: Machine = dataclasses.field(default_factory=Machine)
    shapes: tuple[tuple[int, int], ...] | None = None
    max_search_rows: int = MAX_SEARCH_ROWS
    max_length: int | None = None
    overwrite: bool = False


Level = Literal["low", "medium", "high"]

Backend = Literal["local", "ray"]
