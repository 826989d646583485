"""report.json: the record of one optimize run, format "axformer-report/1".

Units are in the names; scores are in points (x 100). Only figures measured on the report rows stand under
`source`, `candidate` and `control`; what the search saw stands under `search`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from axformer_onnx.errors import AxformerError

FORMAT: Literal["axformer-report/1"] = "axformer-report/1"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class IntervalRecord(_Record):
    """A point estimate with its confidence interval."""

    value: float
    low: float
    high: float
    level: float = 0.95


class ModelRecord(_Record):
    """One graph on the report rows.

    score          the main metric, in points; `metrics` has every metric of the task
    loss           mean loss a row (cross-entropy in nats, or squared error); None if it is not finite
    macs           multiply-accumulates of one forward pass at `Report.macs_shape`; None where not counted
    single_class   the one class that every row was given, or None
    divergence     mean over the rows, from the source's outputs (`PointRecord`); None for the source itself
    """

    sha256: str
    size_bytes: int
    parameters: int
    macs: int | None
    score: float
    metrics: dict[str, float]
    loss: float | None
    single_class: str | None
    divergence: float | None = None


class ComparisonRecord(_Record):
    """A graph against the source on the same report rows.

    difference   of the main metric in points, positive: better than the source; with a paired interval
    p_value      of `test` (two-sided); None where the metric has no exact test
    worse        significantly worse than the source at 5 %
    better       significantly better
    words        the difference in the metric's own words, where it has any: "6 of 500 answers changed: 1.20 % [0.44, 2.59]"
    """

    difference: IntervalRecord
    test: str
    p_value: float | None
    worse: bool
    better: bool
    words: str | None = None


class HistogramRecord(_Record):
    """How many rounds took how long: bin i begins at `low_ms + i * bin_ms`, and the last one holds all that took longer."""

    low_ms: float
    bin_ms: float
    source: list[int]
    candidate: list[int]


class LatencyRecord(_Record):
    """Latency at one shape, both graphs interleaved. `speedup` = source / candidate: above 1 is faster.

    reliable      False: the machine was disturbed, `why` says by what; `speedup` then is no figure to go by
    rounds        that were made; `rounds_kept` of them were undisturbed, and count; 0 in reports that do not say
    cpu_speedup   where it is not reliable: source / candidate by CPU time on one thread; None where that was not measured either
    others_cores  how many of `cores` other processes kept busy meanwhile; None where the system does not tell
    histogram     of all rounds, disturbed ones included; None in reports of before it was kept
    """

    batch: int
    length: int
    source_p50_ms: float
    source_p95_ms: float
    candidate_p50_ms: float
    candidate_p95_ms: float
    speedup: IntervalRecord
    reliable: bool = True
    why: str = ""
    rounds: int = 0
    rounds_kept: int = 0
    cpu_speedup: IntervalRecord | None = None
    others_cores: float | None = None
    cores: int | None = None
    histogram: HistogramRecord | None = None


class LayerRecord(_Record):
    """What was removed from one layer. Counts are 0 where the part was not recognised.

    attention, feed_forward   kept | removed | absent (the block as a whole)
    hard_attention            for example "k=30 truncated", or None
    int8                      blocks whose projections are products of integers
    """

    layer: int
    heads: int
    heads_removed: list[int]
    attention: Literal["kept", "removed", "absent"]
    neurons: int
    neurons_removed: int
    feed_forward: Literal["kept", "removed", "absent"]
    hard_attention: str | None
    int8: list[Literal["attention", "feed_forward"]] = []


class TrialRecord(_Record):
    """One candidate and its verdict; losses are means over the search rows, in robust search recalibrated."""

    index: int
    element: str
    loss: float | None
    best: float | None
    accepted: bool
    reason: str


class StageRecord(_Record):
    """A stage that was scored on the select rows: how many elements were gone, the score in points.

    rise, noise   mean rise of the loss over stage 0's, and its standard error; None where not finite
    """

    stage: int
    score: float
    rise: float | None
    noise: float | None


class SearchRecord(_Record):
    """How the plan was found."""

    kind: str
    seed: int
    k: int
    trials: list[TrialRecord]
    accepted: int
    chosen_stage: int
    stage_scores: list[StageRecord]
    interrupted: bool
    resumed_trials: int
    seconds: float


class PointRecord(_Record):
    """One operating point of a compensated search, on the select rows.

    folder        under the output folder: its plan.json, which `apply` builds
    predicted     speedup against the source by the latency table; None in reports of before it was written
    speedup       measured against the source at `CompensationRecord.shape`, with its interval
    reliable      False: it was measured on a disturbed machine, `why` says by what
    score         in points; `drop` below the source's on the same rows, `noise` its standard error
    judged_drop   what it is likely to be beyond these rows (docs/method.md 2.7): what decides
    divergence    mean over the rows, from the source's outputs, as the task's kind defines it (classification: KL in nats)
    size_bytes    of its graph
    chosen        the result of the run
    """

    folder: str
    predicted: float | None = None
    speedup: IntervalRecord
    score: float
    drop: float
    noise: float
    judged_drop: float
    divergence: float
    size_bytes: int
    chosen: bool
    reliable: bool = True
    why: str = ""


class TableRecord(_Record):
    """How wrong the latency table was about plans that change all blocks, as parts of their speed: 0.03 is 3 %.

    plans          how many were timed for it
    bias           median of what sums of prices promised too much (negative: too little), which is taken off
    median, worst  of the size of what is left
    cpu_time       the table, and the speeds that it predicts, are of CPU time on one thread
    """

    plans: int
    bias: float
    median: float
    worst: float
    cpu_time: bool = False


class CompensationRecord(_Record):
    """How a compensated search went.

    goal          as on the command line; `reached` False: the result is what came nearest
    shape         batch x length at which speed was measured
    rows          of calibration (`mixed` of them synthesised by recombination), sweep and races
    evaluations   candidates whose divergence was evaluated; `hard_asked` of them with hard attention
    work          rows x stages that they took; `plain_work`: of evaluating each of them whole, on all search rows
    table         the error of the latency table; None in reports of before it was known
    """

    goal: str
    effort: str
    reached: bool
    shape: str
    rows: dict[str, int]
    evaluations: int
    hard_asked: int
    work: int
    plain_work: int
    table: TableRecord | None = None
    frontier: list[PointRecord]


class TriedFormRecord(_Record):
    """One form of the result: how many times as fast as the portable graph (None: not measured), and what there is to say."""

    form: str
    speedup: IntervalRecord | None
    why: str


class RuntimeFormRecord(_Record):
    """Forms of the result that were measured against the portable graph (docs/runtime-forms.md).

    kept      the form that is in `file` beside model.onnx; both None where none is faster
    contrib   it has operators of com.microsoft
    latency   the portable graph ("source") and the form ("candidate"), measured anew; empty where no form was faster at first
    """

    kept: str | None
    file: str | None
    contrib: bool
    tried: list[TriedFormRecord]
    latency: list[LatencyRecord]


class DataRecord(_Record):
    """One role's rows: where they came from and what they are."""

    role: str
    source: str
    rows: int
    sha256: str


class Report(_Record):
    """One run of optimize, complete.

    fidelity        the source's answers were taken for right: scores say how faithful the result is to it, not how accurate
    majority_rate   `majority_metric` of always answering the most frequent label of the report rows, in points; None
                    where that means nothing
    control         a random plan of equal size, or None where nothing was removed
    options         the task, and every option of the run that was not its default, by name
    runtime_form    forms of the result that were measured against it; None: not asked for
    placement       {provider: {operator: nodes}} of one run of the result; empty where only the CPU was asked for
    notes           sentences for the reader: label mapping, truncation, provider fallback, data overlap
    warnings        sentences that change how the figures are to be read
    """

    format: Literal["axformer-report/1"] = FORMAT
    created: str
    task: str
    metric: str
    labels: str
    model: str
    fidelity: bool = False
    majority_rate: float | None
    majority_metric: str = "accuracy"
    source: ModelRecord
    candidate: ModelRecord
    comparison: ComparisonRecord
    control: ModelRecord | None
    control_comparison: ComparisonRecord | None
    control_seed: int | None
    latency: list[LatencyRecord]
    runtime_form: RuntimeFormRecord | None = None
    macs_shape: str
    layers: list[LayerRecord]
    search: SearchRecord
    compensation: CompensationRecord | None = None
    data: list[DataRecord]
    notes: list[str]
    warnings: list[str]
    options: dict[str, bool | int | float | str | list[int | str]] = {}
    provider: str
    threads: int | None
    versions: dict[str, str]
    hardware: dict[str, str]
    placement: dict[str, dict[str, int]] = {}

    @property
    def is_unchanged(self) -> bool:
        """Nothing was removed, hardened or made of integers."""
        return not any(
            x.heads_removed
            or x.neurons_removed
            or x.hard_attention
            or x.int8
            or "removed" in (x.attention, x.feed_forward)
            for x in self.layers
        )

    def dumps(self) -> str:
        """The JSON text, indented, with a trailing newline."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report.json. Raises: AxformerError naming the field that is wrong."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise AxformerError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise AxformerError(f"{path}: not a report of format {FORMAT}: {where}: {first['msg']}") from None
