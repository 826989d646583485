"""How long a model takes with this plan or that: each as a part of what it takes without any, from the same rounds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axformer_onnx.runtime import LatencyRow, compare_latency, make_feeds, make_session, run_once
from axformer_onnx.scoring.evaluation import Machine
from axformer_passes.apply import apply_plan
from axformer_passes.io import detached
from axformer_passes.plan import Plan
from axformer_passes.probe import TokenSequence

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.recognise import Examined

_TOGETHER = 3
"""Models timed against the unchanged one at a time: each holds its weights in memory."""
ROUNDS = 25
PASSES, AGAIN_SECONDS = 4, 90.0
"""So often models are timed together where the machine was disturbed, and no more begins after so many seconds."""
SLOWER = 1.08
"""Times as long as at its fastest that the unchanged model may take beside others: beyond, the machine was at another pace, at
which one arithmetic may lose more than another."""


@dataclasses.dataclass(frozen=True)
class PlanTimes:
    """What plans take, by key.

    ms      of the model as it is
    parts   of that which each variant takes
    errors  standard errors of the logarithms of `parts`
    holds   False: some were timed on a disturbed machine
    """

    ms: float
    parts: Mapping[Any, float]
    errors: Mapping[Any, float]
    holds: bool = True


@dataclasses.dataclass(frozen=True)
class PlanClock:
    """Times plans against a model as it is, in the same rounds; each with `rewrites`. `cpu_time`: that of one thread."""

    model: ir.Model
    examined: Examined
    rewrites: Plan
    machine: Machine
    shape: tuple[int, int]
    tokens: TokenSequence
    seed: int
    seconds: Callable[[], float] = time.monotonic
    cpu_time: bool = False

    def times(self, variants: Sequence[tuple[Any, Plan | Path]], progress: Callable[[int, int], None]) -> PlanTimes:
        """Of plans by their keys; a path: of the graph that lies there.

        A few are timed together with the model. The fastest pace that the model shows among any of them is the machine's; what
        was timed at a slower one, or while it was disturbed, is timed again, for AGAIN_SECONDS at most, and the better
        measurement kept.
        """
        groups = [variants[start : start + _TOGETHER] for start in range(0, len(variants), _TOGETHER)]
        best, begin = dict[int, list[LatencyRow]](), self.seconds()
        for _ in range(PASSES):
            for number in _disturbed(best, len(groups)):
                if len(best) == len(groups) and self.seconds() - begin > AGAIN_SECONDS:
                    break
                rows = self._timed(groups[number])
                best[number] = min(rows, best.get(number, rows), key=_doubt)
                progress(min(len(best) * _TOGETHER, len(variants)), len(variants))
        parts, errors = dict[Any, float](), dict[Any, float]()
        for number, group in enumerate(groups):
            for (key, _), row in zip(group, best[number][1:], strict=True):
                assert row.ratio is not None and row.log_ratio is not None  # the first row alone has none
                parts[key], errors[key] = 1 / row.ratio.value, row.log_ratio.error
        holds = all(_doubt(rows)[0] == 0 for rows in best.values())
        return PlanTimes(min((rows[0].p50_ms for rows in best.values()), default=0.0), parts, errors, holds)

    @cached_property
    def _base(self) -> Any:
        """The model as it is."""
        return self._session(Plan())

    def _timed(self, group: Sequence[tuple[Any, Plan | Path]]) -> list[LatencyRow]:
        names = [one.name for one in self._base.get_inputs()]
        feeds = [(*self.shape, make_feeds(names, *self.shape, tokens=self.tokens, seed=self.seed))]
        sessions = {"model": self._base, **{str(key): self._session(what) for key, what in group}}
        return compare_latency(
            sessions, feeds, rounds=ROUNDS, min_seconds=0.5, max_seconds=20.0, seed=self.seed, cpu_time=self.cpu_time
        )

    def _session(self, what: Plan | Path) -> Any:
        provider, threads = self.machine.provider, 1 if self.cpu_time else self.machine.threads
        if isinstance(what, Path):
            return make_session(what, provider=provider, threads=threads)
        also = self.rewrites
        plan = dataclasses.replace(
            what, constants=also.constants, keys_values=also.keys_values, padding=also.padding, half=also.half
        )
        model = apply_plan(self.model, plan, run_once, examined=self.examined)
        return make_session(detached(model), provider=provider, threads=threads)


def _doubt(rows: Sequence[LatencyRow]) -> tuple[int, float]:
    """The less of it the better: models whose times do not hold, then what the unchanged one took."""
    return sum(not row.reliable for row in rows), rows[0].p50_ms


def _disturbed(best: Mapping[int, Sequence[LatencyRow]], groups: int) -> list[int]:
    """Which groups are to be timed (again)."""
    fastest = min((rows[0].p50_ms for rows in best.values()), default=0.0)

    def is_disturbed(rows: Sequence[LatencyRow]) -> bool:
        return _doubt(rows)[0] > 0 or rows[0].p50_ms > SLOWER * fastest

    return [number for number in range(groups) if number not in best or is_disturbed(best[number])]


__all__ = ["PlanClock", "PlanTimes"]
