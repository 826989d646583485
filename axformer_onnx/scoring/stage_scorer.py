"""Score plans through gates: one set of stage sessions, length buckets, reuse of what lies before the first change.

A plan is a *setting* for every stage (form and gate values). What a stage puts out depends on the settings up to it alone, so its
outputs are kept under the digest of those settings, and a plan starts at the first stage whose inputs are not at hand.
Batches are independent: they run side by side, one thread each.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_onnx.data import Batch, Encoded, Rows, batches
from axformer_onnx.records import FloatArray, Scores
from axformer_onnx.scoring.stage_sessions import BATCH_SIZE, BATCH_TOKENS, Array, Setting, StageSessions, read_by_later
from axformer_onnx.tasks import LabelMap, Output, Task
from axformer_passes.anatomy import Anatomy
from axformer_passes.blocks import expanded
from axformer_passes.plan import Plan
from axformer_passes.stages import Stage

CACHE_BYTES = 2 * 2**30
_REMEMBERED_PLANS = 8


class StageScorer:
    """A `records.PlanScorer` over one fixed set of rows.

    cache_bytes   bound on the hidden states that are kept; beyond it only every second, third, ... stage's are; 0: none
    output        what is read of the model; None: what the task's kind finds without the settings of a folder
    stages_run    stages x rows computed so far (what a plain loop would pay is all stages x rows for every plan)
    """

    def __init__(
        self,
        model: ir.Model | StageSessions,
        anatomy: Anatomy,
        encoded: Encoded,
        rows: Rows,
        task: Task,
        label_map: LabelMap,
        *,
        output: Output | None = None,
        provider: str = "cpu",
        threads: int | None = None,
        batch_size: int = BATCH_SIZE,
        batch_tokens: int = BATCH_TOKENS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if isinstance(model, StageSessions):
            self.sessions = model
        else:
            self.sessions = StageSessions(model, provider=provider, threads=threads)
        self._anatomy, self._rows, self._task, self._label_map = anatomy, rows, task, label_map
        self._output = output or task.kind.output(_graph_outputs(self.sessions), None)
        self._owner = encoded.owner
        self._source: FloatArray | None = None
        names = self.sessions.input_names
        self._batches = batches(encoded, names, batch_size=batch_size, max_tokens=batch_tokens)
        self._kept_stages = _kept_stages(self.sessions.stages, anatomy.width, self._batches, cache_bytes)
        self._cache: dict[tuple[int, int], tuple[bytes, dict[str, Array]]] = {}
        self._scores: OrderedDict[bytes, Scores] = OrderedDict()
        self.stages_run = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def forget(self) -> None:
        """Let the hidden states go; they are computed again when they are needed."""
        self._cache.clear()

    def losses(self, plan: Plan) -> FloatArray:
        """float64[rows]: loss of each row under `plan`, in the order of the rows."""
        return self.scores(plan).loss_per_row

    def metric(self, plan: Plan) -> float:
        """The task's main metric under `plan`, in points."""
        return self.scores(plan).value

    def metric_noise(self, plan: Plan, base: Plan) -> float:
        """Standard error, in points, of metric(plan) - metric(base) on these rows."""
        from axformer_onnx.scoring.comparison import metric_noise

        both, labels = (self.scores(base), self.scores(plan)), self._rows.labels
        if self._task.kind.needs_source:
            labels = self._task.kind.truth(labels, self._outputs_of_source(), self._label_map)
        return metric_noise(*both, labels, self._task, self._label_map)

    def scores(self, plan: Plan) -> Scores:
        """All scores under `plan`. The last few plans are remembered."""
        from axformer_onnx.scoring.outputs import evaluate

        settings = self.sessions.settings(expanded(plan, self._anatomy))
        key = b"".join(setting.digest for setting in settings)
        if key not in self._scores:
            outputs = self.outputs(settings)
            source = self._outputs_of_source() if self._task.kind.needs_source else None
            self._scores[key] = evaluate(outputs, self._rows.labels, self._task, self._label_map, source)
        self._scores.move_to_end(key)
        while len(self._scores) > _REMEMBERED_PLANS:
            self._scores.popitem(last=False)
        return self._scores[key]

    def outputs(self, settings: Sequence[Setting]) -> FloatArray:
        """Outputs of the rows under these settings, in their order (`Kind.of_sequences`)."""
        run = _Run(self.sessions, settings, self._output.name)
        numbers = range(len(self._batches))
        if self.sessions.workers == 1:
            parts = [self._batch(run, i) for i in numbers]
        else:
            with ThreadPoolExecutor(self.sessions.workers) as pool:
                parts = list(pool.map(lambda i: self._batch(run, i), reversed(numbers)))[::-1]
        found: FloatArray = np.empty((len(self._owner), parts[0][0].shape[1]), dtype=np.float64)
        for batch, (part, work) in zip(self._batches, parts, strict=True):
            found[batch.rows] = part
            self.stages_run += work
        return self._task.kind.of_sequences(found, self._owner)

    def _outputs_of_source(self) -> FloatArray:
        """Of the plan that removes nothing."""
        if self._source is None:
            self._source = self.outputs(self.sessions.settings(Plan()))
        return self._source

    def _batch(self, run: _Run, number: int) -> tuple[Array, int]:
        """(outputs of one batch [B, C], stages x rows that it took)."""
        batch, stages = self._batches[number], self.sessions.stages
        start = max(s for s in range(len(stages)) if self._at_hand(run, s, number))
        tensors: dict[str, Array] = dict(batch.feeds)
        for earlier in range(start):
            found = self._cache.get((earlier, number))
            if found is not None:
                tensors.update(found[1])
        for stage in stages[start:]:
            made = run.stage(stage, tensors)
            tensors.update(made)
            if stage.index in self._kept_stages:
                # copied: the originals would hold the session's arena open, at twice their size
                kept = {name: array.copy() for name, array in made.items()}
                self._cache[stage.index, number] = (run.prefixes[stage.index], kept)
        return self._output.read(tensors[run.output], batch.mask), (len(stages) - start) * len(batch.rows)

    def _at_hand(self, run: _Run, start: int, number: int) -> bool:
        """Is everything that the stages from `start` on read of earlier ones in the cache, under this plan?"""
        for earlier in run.read_by_later[start]:
            found = self._cache.get((earlier, number))
            if found is None or found[0] != run.prefixes[earlier]:
                return False
        return True


class _Run:
    """One plan's settings, with the digests of their prefixes."""

    def __init__(self, sessions: StageSessions, settings: Sequence[Setting], output: str) -> None:
        self.sessions, self.settings, self.output = sessions, settings, output
        digest, self.prefixes = hashlib.blake2b(digest_size=16), list[bytes]()
        for setting in settings:
            digest.update(setting.digest)
            self.prefixes.append(digest.copy().digest())
        self.read_by_later = read_by_later(sessions.stages)
        for stage, setting in zip(sessions.stages, settings, strict=True):
            sessions.of(setting).session(stage, setting.form)  # made here: workers only run them

    def stage(self, stage: Stage, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run one stage on what is at hand."""
        setting = self.settings[stage.index]
        return self.sessions.of(setting).run(stage, setting.form, {**tensors, **setting.feeds})


def _graph_outputs(sessions: StageSessions) -> list[Any]:
    """The graph's outputs (name, type, shape), as the sessions of the stages that make them describe them."""
    names = set(sessions.staged.graph_outputs)
    ends = [stage for stage in sessions.stages if names & set(stage.outputs)]
    return [one for stage in ends for one in sessions.session(stage, "plain").get_outputs() if one.name in names]


def _kept_stages(stages: tuple[Stage, ...], width: int, parts: list[Batch], cache_bytes: int) -> frozenset[int]:
    """The prelude, and as many evenly spaced stages as fit the bound with one hidden state each; none where it is 0."""
    if cache_bytes == 0:
        return frozenset()
    tokens = sum(next(iter(batch.feeds.values())).size for batch in parts if batch.feeds)
    affordable = cache_bytes // max(1, tokens * width * 4)
    inner = range(1, len(stages) - 1)
    if affordable >= len(inner):
        return frozenset(range(len(stages) - 1))
    stride = len(inner) // max(1, affordable) + 1
    return frozenset({0, *list(inner)[::stride]})
