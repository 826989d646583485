"""Is a graph faster with its padding removed, on batches of this task's texts?

Batches of rows are drawn as they come, each padded to its longest row, and both graphs run them in the same rounds. Where the
machine is never free it is CPU time on one thread that counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from axformer_onnx.data import Encoded, feeds
from axformer_onnx.records import Interval
from axformer_onnx.runtime import compare_latency, is_cpu_alone, make_session, run_once
from axformer_onnx.scoring.evaluation import Machine
from axformer_passes.apply import apply_plan
from axformer_passes.io import detached
from axformer_passes.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.recognise import Examined

BATCHES = 5
"""Drawn of each size."""
ROUNDS = 12
"""Of each batch."""
SIZES = (8, 32)
"""Rows of a batch where none were asked for."""


@dataclasses.dataclass(frozen=True)
class PaddingGain:
    """What removing padding does to batches of `rows` rows.

    tokens   part of all their tokens that is real
    faster   time with padding over time without, the mean of the logarithm over batches; None where it could not be measured
    """

    rows: int
    tokens: float
    faster: Interval | None

    @property
    def pays(self) -> bool:
        """Is the whole interval above 1?"""
        return self.faster is not None and self.faster.low > 1

    @property
    def words(self) -> str:
        """For example "1.48x [1.40, 1.57] at batches of 8, 61 % of whose tokens are real"."""
        found = self.faster
        speed = "not measured" if found is None else f"{found.value:.2f}x [{found.low:.2f}, {found.high:.2f}]"
        return f"{speed} at batches of {self.rows}, {100 * self.tokens:.0f} % of whose tokens are real"


def padding_gains(
    model: ir.Model,
    examined: Examined,
    plan: Plan,
    encoded: Encoded,
    sizes: Sequence[int],
    machine: Machine,
    seed: int,
) -> list[PaddingGain]:
    """One for each of `sizes`, as far as there are so many rows; `plan` is carried out in both graphs.

    Raises: PlanError where padding cannot be removed exactly; RuntimeFailure where a graph does not run.
    """
    forms = {
        padding: detached(apply_plan(model, dataclasses.replace(plan, padding=padding), run_once, examined=examined))
        for padding in ("kept", "removed")
    }

    def sessions(threads: int | None) -> dict[str, object]:
        return {name: make_session(form, provider=machine.provider, threads=threads) for name, form in forms.items()}

    usual, generator, found = sessions(machine.threads), np.random.default_rng(seed), list[PaddingGain]()
    names = [one.name for one in next(iter(usual.values())).get_inputs()]  # type: ignore[attr-defined]
    for size in sizes:
        if size > len(encoded):
            continue
        drawn = [generator.choice(len(encoded), size, replace=False).tolist() for _ in range(BATCHES)]
        rows = compare_latency(
            usual,
            [(size, int(encoded.lengths[batch].max()), feeds(encoded, batch, names)) for batch in drawn],
            rounds=ROUNDS,
            min_seconds=0.3,
            max_seconds=10.0,
            seed=seed,
            on_one_thread=(lambda: sessions(1)) if is_cpu_alone(machine.provider) else None,
        )
        real = sum(int(encoded.lengths[batch].sum()) for batch in drawn)
        padded = sum(size * int(encoded.lengths[batch].max()) for batch in drawn)
        found.append(
            PaddingGain(size, real / padded, _together([r.ratio if r.reliable else r.cpu for r in rows[1::2]]))
        )
    return found


def _together(ratios: Sequence[Interval | None]) -> Interval | None:
    """Of all batches: the mean of the logarithms, whose spread over batches is part of its error; None where one is missing."""
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < len(ratios) or len(known) < 2:
        return None
    logs = np.log([ratio.value for ratio in known])
    each = np.log([ratio.high / ratio.low for ratio in known]) / (2 * 1.96)
    # what the rounds of one comparison cannot show may be the same in all of them, so it does not become smaller by their number
    error = math.hypot(float(logs.std(ddof=1)) / math.sqrt(len(logs)), float(each.mean()))
    value = float(logs.mean())
    return Interval(math.exp(value), math.exp(value - 1.96 * error), math.exp(value + 1.96 * error))


__all__ = ["SIZES", "PaddingGain", "padding_gains"]
