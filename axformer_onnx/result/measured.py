"""What came out: source, result and control measured on the report rows, as a report.

This is the only place that scores the report rows, and it runs after every decision.
"""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.inputs import Given, OptimizeOptions
from axformer_onnx.probing import open_model
from axformer_onnx.records import Scores
from axformer_onnx.result.output_folder import RUNTIME_MODEL
from axformer_onnx.result.report import (
    ComparisonRecord,
    CompensationRecord,
    ModelRecord,
    Report,
    RuntimeFormRecord,
    SearchRecord,
    TriedFormRecord,
    comparison_record,
    data_records,
    hardware_record,
    interval_record,
    latency_records,
    layer_records,
    model_record,
)
from axformer_onnx.result.runtime_form import keep_faster_form
from axformer_onnx.runtime import (
    LatencyRow,
    describe_hardware,
    has_integer_products,
    is_cpu_alone,
    is_x86,
    run_once,
    versions,
)
from axformer_onnx.scoring import (
    compare,
    default_shapes,
    latency_of,
    latency_warnings,
    placement_of,
    score_file,
    score_warnings,
)
from axformer_onnx.search import random_plan
from axformer_passes.io import save_model
from axformer_passes.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.scoring import Machine

OnStep = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _Judged:
    """One graph on the report rows; `against_source` is None for the source itself."""

    scores: Scores
    record: ModelRecord
    against_source: ComparisonRecord | None


def outcome(
    options: OptimizeOptions,
    given: Given,
    plan: Plan,
    candidate: Path,
    search: SearchRecord,
    compensation: CompensationRecord | None = None,
    *,
    step: OnStep,
) -> Report:
    """Measure the graph at `candidate`, which carries out `plan`, against the source."""
    step("scoring the source on the report rows")
    source = _judge(options, given, given.source.path, given.source.model, None)
    step("scoring the result on the report rows")
    judged = _judge(
        options, given, candidate, open_model(candidate, options.sample, folder=given.source.folder), source.scores
    )
    control = _control(options, given, plan, source.scores, candidate.parent, step)
    step("measuring latency")
    latency = _latency(options, given, candidate, step)
    forms = _runtime_form(options, given, candidate, step)
    assert judged.against_source is not None
    return Report(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        task=given.reading.task.name,
        metric=source.scores.metric,
        labels=given.reading.label_map.note,
        model=str(options.model),
        fidelity=given.reading.task.kind.fidelity,
        majority_rate=source.scores.majority_rate,
        majority_metric=source.scores.majority_metric,
        source=source.record,
        candidate=judged.record,
        comparison=judged.against_source,
        control=control.record if control else None,
        control_comparison=control.against_source if control else None,
        control_seed=options.seed if control else None,
        latency=latency_records(latency),
        runtime_form=forms,
        macs_shape=f"{_macs_shape(given)[0]} x {_macs_shape(given)[1]}",
        layers=layer_records(given.source.anatomy, plan),
        search=search,
        compensation=compensation,
        data=data_records(given.rows),
        notes=[*given.notes, *_control_notes(judged, control), *_integer_notes(plan, options.machine)],
        warnings=[*given.warnings, *_score_warnings(source, judged), *latency_warnings(latency)],
        options=options.stated(),
        provider=options.machine.provider,
        threads=options.machine.threads,
        versions=versions(),
        hardware=hardware_record(describe_hardware()),
        placement=placement_of(
            candidate, _shapes(options, given)[0], given.reading.tokens, options.machine, options.seed
        ),
    )


def _judge(options: OptimizeOptions, given: Given, path: Path, model: ir.Model, source: Scores | None) -> _Judged:
    """The graph `model`, which lies at `path`."""
    from axformer_passes.blocks import macs

    rows, reading = given.rows["report"], given.reading
    outputs = None if source is None else source.outputs
    scores = score_file(path, reading, given.encoded["report"], rows, options.machine, source=outputs)
    batch, length = _macs_shape(given)
    record = model_record(path, scores, macs(model, run_once, batch, length))
    if source is None:
        return _Judged(scores, record, None)
    compared = compare(source, scores, rows.labels, reading.task, reading.label_map, options.seed)
    return _Judged(scores, record, comparison_record(compared))


def _control(
    options: OptimizeOptions, given: Given, plan: Plan, source: Scores, beside: Path, step: OnStep
) -> _Judged | None:
    """A random plan of equal size, built, scored and thrown away; None where nothing was removed."""
    from axformer_passes.apply import apply_plan

    if dataclasses.replace(plan, int8=None, half=None, weights=None).is_exact:
        return None
    step("scoring a random plan of equal size")
    control = random_plan(given.source.anatomy, plan, options.seed)
    with tempfile.TemporaryDirectory(dir=beside.parent, prefix=".writing-control-") as folder:
        path = Path(folder) / "model.onnx"
        model = apply_plan(given.source.model, control, run_once, examined=given.source.examined)
        save_model(model, path)
        return _judge(options, given, path, model, source)


def _latency(options: OptimizeOptions, given: Given, candidate: Path, step: OnStep) -> list[LatencyRow]:
    pair = {"source": given.source.path, "result": candidate}
    return latency_of(
        pair, _shapes(options, given), given.reading.tokens, options.machine, options.seed,
        wait_seconds=options.wait_for_quiet, say=step, clock="either",
    )  # fmt: skip


def _runtime_form(options: OptimizeOptions, given: Given, candidate: Path, step: OnStep) -> RuntimeFormRecord | None:
    """Other forms of the graph at `candidate`; the fastest lies beside it then, if it is faster. None: not asked for."""
    if options.runtime_form == "none":
        return None
    step("measuring runtime forms")
    found = keep_faster_form(
        candidate,
        given.source.folder,
        _shapes(options, given),
        given.reading.tokens,
        options.machine,
        seed=options.seed,
        sample=options.sample,
    )
    tried = [
        TriedFormRecord(form=x.form, speedup=None if x.speedup is None else interval_record(x.speedup), why=x.why)
        for x in found.tried
    ]
    file, latency = RUNTIME_MODEL if found.kept else None, latency_records(found.latency)
    return RuntimeFormRecord(kept=found.kept, file=file, contrib=found.contrib, tried=tried, latency=latency)


def _shapes(options: OptimizeOptions, given: Given) -> tuple[tuple[int, int], ...]:
    """(batch, length) that latency is measured at."""
    return options.shapes or default_shapes(given.encoded["report"])


def _macs_shape(given: Given) -> tuple[int, int]:
    """One row at the median length of the report rows."""
    return default_shapes(given.encoded["report"])[0]


def _integer_notes(plan: Plan, machine: Machine) -> list[str]:
    """What does not carry over to other CPUs, and to other targets."""
    if plan.int8 and plan.int8.activations == "static" and is_cpu_alone(machine.provider) and is_x86():
        return [
            "speeds are of a CPU whose runtime multiplies most signed integers of static ranges in float32, and so was chosen what "
            "became integers: measure on the provider that serves (--provider); for this CPU, --activations static-uint8, dynamic"
        ]
    fast = has_integer_products() if plan.int8 and is_cpu_alone(machine.provider) else None
    if fast is None:
        return []
    kind = "with" if fast else "without"
    other = "slower, compared with float32," if fast else "faster"
    return [
        f"speeds are of a CPU {kind} instructions for products of 8-bit integers (VNNI, AMX, ARM's dot products): products of "
        f"integers are {other} on CPUs of the other kind, and another choice may be the better one; measure where it is served"
    ]


def _control_notes(judged: _Judged, control: _Judged | None) -> list[str]:
    if control is None or control.scores.value < judged.scores.value:
        return []
    return ["the random plan of equal size scores as well as the result: which parts go hardly matters here"]


def _score_warnings(source: _Judged, judged: _Judged) -> list[str]:
    return [*score_warnings(source.scores, "the source"), *score_warnings(judged.scores, "the result")]
