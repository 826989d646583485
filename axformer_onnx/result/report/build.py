"""From measured records to the report's records; nothing is measured or decided here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from axformer_onnx.data import Rows
from axformer_onnx.records import Interval, Scores, Trial
from axformer_onnx.result.report.record import (
    ComparisonRecord,
    CompensationRecord,
    DataRecord,
    HistogramRecord,
    IntervalRecord,
    LatencyRecord,
    ModelRecord,
    PointRecord,
    SearchRecord,
    StageRecord,
    TableRecord,
    TrialRecord,
)
from axformer_onnx.runtime import LatencyRow
from axformer_onnx.scoring import Comparison
from axformer_onnx.search.greedy import SearchResult
from axformer_passes.io import parameters_and_size, sha256_of

if TYPE_CHECKING:
    from axformer_onnx.search.compensated import Found

_BINS = 40
"""Of a histogram, without the last one."""


def interval_record(interval: Interval) -> IntervalRecord:
    """The same numbers."""
    return IntervalRecord(value=interval.value, low=interval.low, high=interval.high, level=interval.level)


def model_record(path: Path, scores: Scores, macs: int | None) -> ModelRecord:
    """The file at `path` with its scores on the report rows."""
    parameters, size_bytes = parameters_and_size(path)
    return ModelRecord(
        sha256=sha256_of(path),
        size_bytes=size_bytes,
        parameters=parameters,
        macs=macs,
        score=scores.value,
        metrics=dict(scores.metrics),
        loss=_finite(scores.loss),
        single_class=scores.single_class,
        divergence=None if scores.divergence is None else _finite(scores.divergence),
    )


def comparison_record(comparison: Comparison) -> ComparisonRecord:
    """The paired test, named after what decided it."""
    level = f"{100 * comparison.difference.level:.0f} %"
    exact = comparison.mcnemar
    return ComparisonRecord(
        difference=interval_record(comparison.difference),
        test="exact McNemar" if exact else f"{level} {comparison.interval}",
        p_value=exact.p_value if exact else None,
        worse=comparison.outcome == "worse",
        better=comparison.outcome == "better",
        words=comparison.words,
    )


def latency_records(rows: Sequence[LatencyRow]) -> list[LatencyRecord]:
    """Pairs of rows (baseline, candidate) as `compare_latency` gives them for two models."""
    records = []
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert after.ratio is not None
        records.append(
            LatencyRecord(
                batch=before.batch,
                length=before.length,
                source_p50_ms=before.p50_ms,
                source_p95_ms=before.p95_ms,
                candidate_p50_ms=after.p50_ms,
                candidate_p95_ms=after.p95_ms,
                speedup=interval_record(after.ratio),
                reliable=after.reliable,
                why=after.why,
                rounds=after.rounds,
                rounds_kept=after.kept,
                cpu_speedup=None if after.cpu is None else interval_record(after.cpu),
                others_cores=None if after.load is None or after.load.others is None else round(after.load.others, 2),
                cores=None if after.load is None else after.load.cores,
                histogram=histogram_record(before.wall_ms, after.wall_ms),
            )
        )
    return records


def histogram_record(source_ms: Sequence[float], candidate_ms: Sequence[float]) -> HistogramRecord | None:
    """Both in the same bins, from the fastest round to the 98th percentile of the slower graph; None where there are no rounds."""
    if not source_ms or not candidate_ms:
        return None
    times = [np.asarray(one, dtype=float) for one in (source_ms, candidate_ms)]
    low, high = min(one.min() for one in times), max(float(np.percentile(one, 98)) for one in times)
    width = max(float(high - low), 1e-3 * float(low), 1e-9) / _BINS
    counts = [np.bincount(np.clip(((one - low) / width).astype(int), 0, _BINS), minlength=_BINS + 1) for one in times]
    return HistogramRecord(low_ms=float(low), bin_ms=width, source=counts[0].tolist(), candidate=counts[1].tolist())


def search_record(
    result: SearchResult,
    kind: str,
    *,
    seed: int,
    k: int,
    resumed_trials: int,
) -> SearchRecord:
    """Every candidate with its verdict. `seconds` adds up the trials, those of resumed runs included."""
    return SearchRecord(
        kind=kind,
        seed=seed,
        k=k,
        trials=[_trial_record(trial) for trial in result.trials],
        accepted=len(result.stages) - 1,
        chosen_stage=result.chosen,
        stage_scores=[
            StageRecord(stage=i, score=found.score, rise=_finite(found.rise), noise=_finite(found.noise))
            for i, found in sorted(result.scores.items())
        ],
        interrupted=result.interrupted,
        resumed_trials=resumed_trials,
        seconds=round(sum(trial.seconds for trial in result.trials), 3),
    )


def compensated_record(found: Found, *, seed: int, k: int, seconds: float) -> SearchRecord:
    """The search record of a compensated search, which has no trials."""
    return SearchRecord(
        kind="compensated",
        seed=seed,
        k=k,
        trials=[],
        accepted=0,
        chosen_stage=0,
        stage_scores=[],
        interrupted=found.interrupted,
        resumed_trials=0,
        seconds=round(seconds, 3),
    )


def compensation_record(found: Found, goal: str, effort: str, folders: Mapping[Path, str]) -> CompensationRecord:
    """The frontier and what it took; `folders`: where each point's plan is kept, under the output folder."""
    return CompensationRecord(
        goal=goal,
        effort=effort,
        reached=found.reached,
        shape=f"{found.table.batch} x {found.table.length}",
        rows=found.rows,
        evaluations=found.evaluations,
        hard_asked=found.hard_asked,
        work=found.stages_run,
        plain_work=found.stages_plain,
        table=TableRecord(**dataclasses.asdict(found.table.error), cpu_time=found.table.cpu_time),
        frontier=[
            PointRecord(
                folder=folders[point.folder],
                predicted=point.predicted,
                speedup=interval_record(point.speedup),
                score=point.score,
                drop=point.drop.measured,
                noise=point.drop.noise,
                judged_drop=judged,
                divergence=point.divergence,
                size_bytes=point.size_bytes,
                chosen=point is found.chosen,
                reliable=point.speedup.reliable,
                why=point.speedup.why,
            )
            for point, judged in zip(found.points, found.judged, strict=True)
        ],
    )


def data_records(roles: Mapping[str, Rows]) -> list[DataRecord]:
    """Rows by role."""
    return [
        DataRecord(role=role, source=rows.source, rows=len(rows), sha256=rows.sha256) for role, rows in roles.items()
    ]


def hardware_record(described: Mapping[str, Any]) -> dict[str, str]:
    """`runtime.describe_hardware` as text."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in described.items()
    }


def _trial_record(trial: Trial) -> TrialRecord:
    return TrialRecord(
        index=trial.index,
        element=trial.element,
        loss=_finite(trial.loss),
        best=_finite(trial.best),
        accepted=trial.accepted,
        reason=trial.reason,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
