"""From measured records to the report's records; nothing is measured or decided here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from axformer_onnx.labels import LabelMap
from axformer_onnx.latency import LatencyRow
from axformer_onnx.measure import parameters_and_size
from axformer_onnx.records import Interval, Scores, Trial
from axformer_onnx.report.record import (
    ComparisonRecord,
    DataRecord,
    IntervalRecord,
    LatencyRecord,
    ModelRecord,
    SearchRecord,
    StageRecord,
    TrialRecord,
)
from axformer_onnx.rows import Rows
from axformer_onnx.search.walk import SearchResult
from axformer_onnx.statistics import Comparison
from axformer_passes.files import sha256_of


def interval_record(interval: Interval) -> IntervalRecord:
    """The same numbers."""
    return IntervalRecord(value=interval.value, low=interval.low, high=interval.high, level=interval.level)


def model_record(path: Path, scores: Scores, label_map: LabelMap, macs: int | None) -> ModelRecord:
    """The file at `path` with its scores on the report rows."""
    parameters, size_bytes = parameters_and_size(path)
    single = None if scores.single_class is None else label_map.names[scores.single_class]
    return ModelRecord(
        sha256=sha256_of(path),
        size_bytes=size_bytes,
        parameters=parameters,
        macs=macs,
        score=scores.value,
        metrics=dict(scores.metrics),
        loss=_finite(scores.loss),
        single_class=single,
    )


def comparison_record(comparison: Comparison) -> ComparisonRecord:
    """The paired test, named after what decided it."""
    level = f"{100 * comparison.difference.level:.0f} %"
    exact = comparison.mcnemar
    return ComparisonRecord(
        difference=interval_record(comparison.difference),
        test="exact McNemar" if exact else f"{level} interval of the paired bootstrap",
        p_value=exact.p_value if exact else None,
        worse=comparison.outcome == "worse",
        better=comparison.outcome == "better",
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
            )
        )
    return records


def search_record(
    result: SearchResult,
    kind: Literal["robust", "axformer"],
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
