"""The gate on speed: repetitions, each with new sessions, until every shape is decided or there are no more.

A repetition is one comparison of `runtime/latency`: short rounds in which both models run, of which the undisturbed ones count.
What rounds of one pair of sessions cannot show, another pair shows, so repetitions are what narrows the interval. A repetition on a
machine that was too disturbed for a figure counts for nothing but the time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from axformer_onnx.gates.error_rates import look_error, looks
from axformer_onnx.gates.quality import rounded_up
from axformer_onnx.gates.records import Gate, judged, times_more
from axformer_onnx.records import Interval, LogRatio
from axformer_onnx.result.report import in_cpu_time
from axformer_onnx.runtime import LatencyRow
from axformer_onnx.statistics import averaged, ratio_interval

Shape = tuple[int, int]
Measure = Callable[[Sequence[Shape], int], Sequence[LatencyRow]]
"""(shapes, number of the repetition) -> rows as `compare_latency` gives them for two models, with sessions of their own."""
MOST_REPETITIONS = 1000
"""More are not asked for."""


@dataclasses.dataclass
class Measured:
    """What repetitions found at one shape.

    pairs   rows (baseline, candidate) of each, in order
    gate    None until it is decided
    """

    shape: Shape
    pairs: list[tuple[LatencyRow, LatencyRow]] = dataclasses.field(default_factory=list)
    gate: Gate | None = None

    @property
    def name(self) -> str:
        """For example "1 x 32"."""
        return f"{self.shape[0]} x {self.shape[1]}"

    @property
    def reliable(self) -> list[LogRatio]:
        """What undisturbed repetitions found."""
        return [b.log_ratio for _, b in self.pairs if b.reliable and b.log_ratio is not None]

    def rows(self) -> tuple[LatencyRow, LatencyRow]:
        """The last pair that holds, its speed that of all such repetitions, at 95 %."""
        a, b = next((pair for pair in reversed(self.pairs) if pair[1].reliable), self.pairs[-1])
        if not b.reliable:
            return a, b
        counted = [pair for pair in self.pairs if pair[1].reliable]
        rounds, kept = sum(y.rounds for _, y in counted), sum(y.kept for _, y in counted)
        return a, dataclasses.replace(b, ratio=ratio_interval(averaged(self.reliable)), rounds=rounds, kept=kept)


def speed_gates(
    least: float,
    shapes: Sequence[Shape],
    measure: Measure,
    *,
    error: float,
    repetitions: int,
    say: Callable[[str], None] = lambda text: None,
) -> list[Measured]:
    """Measure until each shape is decided: is the candidate at least `least` times as fast?

    error        chance that a shape fails that holds, and that it passes where it does not, over all looks
    repetitions  at most; a shape that is decided is not measured again
    """
    found = [Measured(shape) for shape in shapes]
    for number in range(repetitions):
        left = [one for one in found if one.gate is None]
        if not left:
            break
        if number:
            say(f"measuring latency, repetition {number + 1} of at most {repetitions}")
        measured_again(left, measure, number)
        last = number + 1 == repetitions
        for one in left:
            one.gate = _look(one, least, error, repetitions, last=last)
    return found


def measured_again(some: Sequence[Measured], measure: Measure, number: int) -> None:
    """Add one repetition to each shape."""
    rows = list(measure([one.shape for one in some], number))
    for one, pair in zip(some, zip(rows[::2], rows[1::2], strict=True), strict=True):
        one.pairs.append(pair)


def _look(one: Measured, least: float, error: float, repetitions: int, *, last: bool) -> Gate | None:
    """The gate, where it is decided or there are no more repetitions; else None."""
    ratios = one.reliable
    if not (last or (one.pairs[-1][1].reliable and len(ratios) in looks(repetitions))):
        return None
    if not ratios:
        return _unmeasured(one, least)
    measured = ratio_interval(averaged(ratios), 1 - 2 * look_error(error, repetitions))
    outcome = judged(measured, least, at_least=True)
    if outcome == "undecided" and not last:
        return None
    times = f"{len(ratios)} repetition{'s' * (len(ratios) > 1)}"
    spoilt = len(one.pairs) - len(ratios)
    times += f" ({spoilt} more were disturbed)" if spoilt else ""
    why = f"between {measured.low:.3f} and {measured.high:.3f} times as fast after {times}"
    needs = _needs(measured, least, len(ratios)) if outcome == "undecided" else ""
    return Gate("min-speedup", "speed", one.name, least, measured, outcome, why, needs, error)


def _needs(measured: Interval, least: float, repetitions: int) -> str:
    wanted = repetitions * times_more(measured, least)
    if wanted > MOST_REPETITIONS:
        return "no number of --repetitions would decide it, the speed is too close to what is asked for; ask for less than that"
    return f"about {rounded_up(wanted)} --repetitions would decide it if it stays what it is, or fewer with less noise"


def _unmeasured(one: Measured, least: float) -> Gate:
    last = one.pairs[-1][1]
    why = f"not measured: {last.why}{in_cpu_time(last.cpu)}"
    needs = "a free machine or a longer --wait-for-quiet would decide it, --clock cpu another figure"
    return Gate("min-speedup", "speed", one.name, least, None, "undecided", why, needs)


def same_speed(least: float, shapes: Sequence[Shape]) -> list[Gate]:
    """Of a graph against itself: nothing needs to be measured."""
    exact = Interval(1.0, 1.0, 1.0, 1.0)
    outcome = judged(exact, least, at_least=True)
    return [
        Gate("min-speedup", "speed", f"{batch} x {length}", least, exact, outcome, "the two graphs are the same")
        for batch, length in shapes
    ]
