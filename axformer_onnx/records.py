"""Records that several modules speak; nothing here computes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from axformer_passes.plan import Plan

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A point estimate with a confidence interval at `level`.

    reliable   False: it was measured, and does not hold; `why` says what disturbed it
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    reliable: bool = True
    why: str = ""


@dataclasses.dataclass(frozen=True)
class LogRatio:
    """How many times as fast, as a logarithm: an estimate that can be averaged and bounded at any level.

    error     its standard error; freedom: the degrees of freedom of that
    shared    the part of the error (in squares) that repetitions on the same machine have in common: they do not average it out
    """

    value: float
    error: float
    freedom: float
    shared: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scores:
    """One model on one set of rows.

    outputs         float64[rows, columns], or [rows, texts, columns] where texts are fed apart, in the order of the rows
    loss_per_row    float64[rows], as the task's kind defines it
    metric          name of the main metric on these rows; `value` in points (x 100)
    metrics         every metric that is reported, in points, by name
    majority_rate   what always answering the most frequent label scores in `majority_metric`; None where that means nothing
    single_class    the one answer that all rows were given, by name, or None
    divergence      mean over the rows, from the source's outputs; None where these were not at hand
    """

    outputs: FloatArray
    loss_per_row: FloatArray
    metric: str
    value: float
    metrics: Mapping[str, float]
    majority_rate: float | None
    single_class: str | None
    majority_metric: str = "accuracy"
    divergence: float | None = None

    @property
    def loss(self) -> float:
        """Mean of loss_per_row."""
        return float(self.loss_per_row.mean())


class PlanScorer(Protocol):
    """Scores plans on one fixed set of rows. The search knows nothing else of models."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    def losses(self, plan: Plan) -> FloatArray:
        """float64[rows]: loss of each row under `plan`, in a fixed order."""

    def metric(self, plan: Plan) -> float:
        """The task's main metric under `plan`, in points."""

    def metric_noise(self, plan: Plan, base: Plan) -> float:
        """Standard error, in points, of metric(plan) - metric(base), both on these rows."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One question that a search asked, and its answer: a line of journal.jsonl.

    stage       counts accepted trials before this one
    element     what the trial would remove or harden, for example "layer 3 head 5"
    loss        mean loss of the trial; `best` the mean loss that it had to beat
    verdict     accepted | rejected
    reason      one sentence with the numbers
    seconds     wall time of the trial; not part of what a resumed run compares
    """

    index: int
    stage: int
    element: str
    plan: Plan
    loss: float
    best: float
    accepted: bool
    reason: str
    seconds: float = 0.0
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StageScore:
    """A stage on the select rows.

    score, score_noise   the task metric in points; standard error of its difference from stage 0's
    rise, noise          mean rise of the loss over stage 0's; its standard error
    """

    score: float
    rise: float = 0.0
    noise: float = 0.0
    score_noise: float = 0.0


def plan_digest(plan: Plan) -> str:
    """16 hexadecimal digits that name a plan: equal plans have equal digests."""
    return hashlib.sha256(plan.dumps().encode()).hexdigest()[:16]
