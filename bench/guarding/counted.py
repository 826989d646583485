"""Searches without a stopwatch: prices are counted in multiply-accumulates, so that what is found hangs on the code alone.

A search follows from the seed, the latency table and the losses (docs/method.md 2.5). With a table that is counted, not timed, two
runs on one machine build the same graphs, byte by byte, and what differs between two versions of the project was changed by them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from axformer_onnx.records import Interval
from axformer_onnx.result import measured
from axformer_onnx.runtime import run_once
from axformer_onnx.scoring import PlanClock, PlanTimes
from axformer_onnx.search.compensated import latency_table, operating_points, preparation
from axformer_passes.apply import apply_plan
from axformer_passes.blocks import macs
from axformer_passes.io import load_model
from axformer_passes.plan import Plan

PER_SCORE, PER_SCORE_AND_K = 40.0, 12.0
"""Multiply-accumulates that TopK counts as, for every attention score: about what it took on an EPYC with AVX2 at 128 tokens."""
PER_MS = 1e6
"""A million of them stand for a millisecond."""


class CountedClock(PlanClock):
    """A `PlanClock` that counts."""

    def times(self, variants: Sequence[tuple[Any, Plan | Path]], progress: Callable[[int, int], None]) -> PlanTimes:
        """In millions of multiply-accumulates, without errors."""
        whole = self._count(Plan())
        parts = {key: self._count(what) / whole for key, what in variants}
        return PlanTimes(whole / PER_MS, parts, dict.fromkeys(parts, 0.0))

    def _count(self, what: Plan | Path) -> float:
        if isinstance(what, Path):
            return float(macs(load_model(what), run_once, *self.shape))
        also = self.rewrites
        plan = dataclasses.replace(what, constants=also.constants, keys_values=also.keys_values, hard_attention={})
        model = apply_plan(self.model, plan, run_once, examined=self.examined)
        return macs(model, run_once, *self.shape) + self._selected(what)

    def _selected(self, plan: Plan) -> float:
        """What TopK counts as."""
        batch, length = self.shape
        layers = self.examined.anatomy.layers
        scores = {
            i: batch * length * length * layer.attention.heads for i, layer in enumerate(layers) if layer.attention
        }
        return sum(scores[i] * (PER_SCORE + PER_SCORE_AND_K * hard.k) for i, hard in plan.hard_attention.items())


@contextlib.contextmanager
def counted_speeds() -> Iterator[None]:
    """While this is open, compensated searches in this process measure no time: no table, no point, no latency of the result."""

    def uncached(key: Mapping[str, Any], units: Any, measure: Callable[[], Any]) -> Any:
        return measure()

    def unmeasured(self: Any, path: Path) -> dict[str, Any]:
        return dataclasses.asdict(Interval(1.0, 1.0, 1.0, reliable=False, why="not measured: prices are counted"))

    def no_latency(*_: Any, **__: Any) -> list[Any]:
        return []

    with (
        mock.patch.object(latency_table, "PlanClock", CountedClock),
        mock.patch.object(preparation, "cached_table", uncached),
        mock.patch.object(operating_points.Builder, "_measured", unmeasured),
        mock.patch.object(measured, "latency_of", no_latency),
    ):
        yield
