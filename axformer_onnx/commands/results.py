"""What `optimize` hands back: the report and the files, with the figures that are asked for most at hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.result import MODEL, PAGE
from axformer_passes.plan import Plan

if TYPE_CHECKING:
    from axformer_onnx.result.report import IntervalRecord, Report


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """One point of the frontier of a compensated search, on the select rows.

    speedup   measured against the source, with its interval
    reliable  False: that was on a disturbed machine, and does not hold
    score     of the main metric, in points; `drop` below the source's on the same rows
    plan      folder of its plan: `apply(point.plan, model, output)` builds the graph
    chosen    it is the result of the run
    """

    speedup: IntervalRecord
    score: float
    drop: float
    size_bytes: int
    plan: Path
    chosen: bool
    reliable: bool = True


@dataclasses.dataclass(frozen=True)
class ScorePair:
    """The main metric on the report rows, in points, and the result's difference from the source with its paired interval."""

    metric: str
    source: float
    result: float
    difference: IntervalRecord


@dataclasses.dataclass(frozen=True, repr=False)
class OptimizeResult:
    """The report, the plan that was applied, and the folder that holds all; a notebook shows it as tables."""

    report: Report
    plan: Plan
    output: Path

    @property
    def path(self) -> Path:
        """The graph."""
        return self.output / MODEL

    @property
    def page(self) -> Path:
        """The report for a browser."""
        return self.output / PAGE

    @property
    def runtime_path(self) -> Path | None:
        """The same in the form that this machine's runtime was measured to compute faster; None where there is none."""
        found = self.report.runtime_form
        return self.output / found.file if found and found.file else None

    @property
    def score(self) -> ScorePair:
        """The main metric of source and result on the report rows."""
        report = self.report
        return ScorePair(report.metric, report.source.score, report.candidate.score, report.comparison.difference)

    @property
    def frontier(self) -> tuple[OperatingPoint, ...]:
        """The operating points, the slowest first; none but in a compensated search."""
        points = self.report.compensation.frontier if self.report.compensation else []
        found = [
            OperatingPoint(p.speedup, p.score, p.drop, p.size_bytes, self.output / p.folder, p.chosen, p.reliable)
            for p in points
        ]
        return tuple(sorted(found, key=lambda point: point.speedup.value))

    def __repr__(self) -> str:
        from axformer_onnx.result.report import headline

        return f"OptimizeResult({str(self.path)!r}: {headline(self.report)})"

    def _repr_html_(self) -> str:
        from axformer_onnx.result.report import html

        return html(self.report)
