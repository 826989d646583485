"""What a gate says: the figure, what was allowed, the outcome, and what would decide it where nothing does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from axformer_onnx.records import Interval

Outcome = Literal["passed", "failed", "undecided"]
GateName = Literal["max-drop", "max-divergence", "min-speedup", "max-size-ratio"]


@dataclasses.dataclass(frozen=True)
class Gate:
    """One gate with its outcome.

    name      as on the command line; with `at` it names one gate of a comparison
    what      the figure in words: "drop of accuracy"
    at        the shape, where there are several: "1 x 32"; else empty
    allowed   what was asked for: at least of a speed, at most of everything else
    measured  the figure, with one-sided bounds that each fail with a probability of `error`; None: it could not be measured
    why       one clause: how the bounds lie, or why there are none
    needs     a clause that says what would decide it; empty where it is decided
    error     chance that the outcome is wrong, where it is passed or failed: 0 where the figure is exact
    """

    name: GateName
    what: str
    at: str
    allowed: float
    measured: Interval | None
    outcome: Outcome
    why: str
    needs: str = ""
    error: float = 0.0

    @property
    def full_name(self) -> str:
        """For example "min-speedup 1 at 1 x 32"."""
        return f"{self.name} {self.allowed:g}{f' at {self.at}' if self.at else ''}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All gates of a comparison.

    figures     header and rows of the table of figures, baseline and candidate beside each other
    ratios      what is tracked over time: name and figure, each the candidate against the baseline; none that was not measured
    error_rate  chance that any gate fails that holds, and that any passes that does not
    strict      undecided is a failure
    """

    task: str
    metric: str
    rows: int
    baseline: str
    candidate: str
    gates: tuple[Gate, ...]
    figures: tuple[tuple[str, ...], ...]
    ratios: tuple[Ratio, ...]
    error_rate: float
    strict: bool
    warnings: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """failed where a gate failed, else undecided where one is, else passed."""
        found = {gate.outcome for gate in self.gates}
        return "failed" if "failed" in found else "undecided" if "undecided" in found else "passed"

    def counts_as_failed(self, gate: Gate) -> bool:
        """Does this gate fail the comparison?"""
        return gate.outcome == "failed" or (self.strict and gate.outcome == "undecided")

    @property
    def ok(self) -> bool:
        """No gate fails it."""
        return not any(map(self.counts_as_failed, self.gates))

    def of(self, outcome: Outcome) -> tuple[Gate, ...]:
        """The gates with this outcome."""
        return tuple(gate for gate in self.gates if gate.outcome == outcome)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists; the figures are left to whoever has them as numbers."""
        plain = dataclasses.asdict(self)
        del plain["figures"]
        return {"outcome": self.outcome, "ok": self.ok, **plain}


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A figure of the candidate as a multiple of the baseline's, comparable from run to run and from machine to machine.

    measure       slug: "speed", "size", "score"
    bigger_is_better   else smaller is
    """

    name: str
    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    bigger_is_better: bool = True
    extra: str = ""


def judged(measured: Interval, allowed: float, *, at_least: bool) -> Outcome:
    """failed: the interval excludes what is allowed; passed: all of it is allowed; else undecided."""
    low, high = (measured.low, measured.high) if at_least else (-measured.high, -measured.low)
    line = allowed if at_least else -allowed
    return "passed" if low >= line else "failed" if high < line else "undecided"


def times_more(measured: Interval, allowed: float) -> float:
    """How many times as many observations would decide it if the figure stayed what it is; inf where it is what is allowed.

    An interval narrows with the root of their number.
    """
    reach = measured.high - measured.value if measured.value < allowed else measured.value - measured.low
    distance = abs(measured.value - allowed)
    return float("inf") if distance == 0 else (reach / distance) ** 2


def names(gates: Sequence[Gate]) -> str:
    """Their full names, separated by commas."""
    return ", ".join(gate.full_name for gate in gates)
