"""Rounds in which each of several models runs once: times, waiting for a core, and what else the machine did.

A round is short and its order is the reverse of the one before, so that what slows the machine down for a while, or speeds it up
slowly, meets all models alike. Everything that is read of the machine comes through `Instruments`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from axformer_onnx.records import FloatArray
from axformer_onnx.runtime.fastest_pace import FastestPace, make_pace, pace_file
from axformer_onnx.runtime.foreign_load import Counters, Load, RunDelay, load_between, read_counters

Run = Callable[[], None]
MOST_ROUNDS = 300
"""More say nothing new."""
FEWEST_ROUNDS = 5
LONGER = 4
"""Times the usual number of rounds, and the usual seconds, where too few of them were undisturbed."""
_BETWEEN = 25
"""Rounds from one look at whether there are enough to the next."""
_BEST = 0.1
"""The quantile of the fixed arithmetic's times that is the pace of a comparison."""
_SAMPLE = 0.5
"""Seconds over which the load of an idle process is read: /proc counts in hundredths of a second a core."""


@dataclasses.dataclass(frozen=True)
class Instruments:
    """What is read of the machine; tests put their own in its place.

    clock_ns   nanoseconds of a clock that never goes back
    cpu_ns     nanoseconds that this thread spent on a core
    sleep      for so many seconds
    counters   what the machine did so far
    delay      makes a reader of how long this process waited for cores
    pace       makes the fixed arithmetic on so many threads; `fastest`: notes how many milliseconds it took on so many, and returns
               the fewest that are known
    """

    clock_ns: Callable[[], int] = time.perf_counter_ns
    cpu_ns: Callable[[], int] = time.thread_time_ns
    sleep: Callable[[float], None] = time.sleep
    counters: Callable[[], Counters] = read_counters
    delay: Callable[[], RunDelay] = RunDelay
    pace: Callable[[int], Run] = make_pace
    fastest: Callable[[int, float], float] = dataclasses.field(default_factory=lambda: FastestPace(pace_file))

    def seconds(self) -> float:
        """The clock in seconds."""
        return self.clock_ns() / 1e9

    def by_cpu_time(self) -> Instruments:
        """The same with CPU time for the clock, in which nobody waits for a core, and whoever else runs is no load."""
        return dataclasses.replace(
            self, clock_ns=self.cpu_ns, delay=lambda: RunDelay(None), counters=lambda: Counters(self.seconds())
        )


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many rounds.

    rounds        at least so many
    warmup        runs of each model before the first
    min_seconds   and as many as fit in here, or in LONGER times that where too few were undisturbed, up to MOST_ROUNDS
    max_seconds   but not longer, except for FEWEST_ROUNDS
    """

    rounds: int
    warmup: int
    min_seconds: float
    max_seconds: float

    def goes_on(self, done: int, seconds: float, *, enough: bool) -> bool:
        """Another one, after `done` in `seconds`? `enough`: of them were undisturbed."""
        if done < min(FEWEST_ROUNDS, self.rounds):
            return True
        times = 1 if enough else LONGER
        if seconds >= self.max_seconds or done >= max(self.rounds, MOST_ROUNDS * times):
            return False
        return done < self.rounds or seconds < self.min_seconds * times


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What was measured, in the order in which it happened.

    wall_ms   float64[models, rounds]
    wait_ms   float64[models, rounds]: how long threads of this process waited for a core meanwhile, summed; 0 where `told` is False
    slowness  float64[rounds]: how many times as long as at the fastest pace that is known the fixed arithmetic took before each
    load      of the machine, over all rounds
    """

    wall_ms: FloatArray
    wait_ms: FloatArray
    slowness: FloatArray
    told: bool
    load: Load


def make_rounds(
    runs: Sequence[Run],
    threads: int,
    budget: Budget,
    generator: np.random.Generator,
    instruments: Instruments,
    enough: Callable[[Rounds], bool],
) -> Rounds:
    """Warm up, then run every model once a round: in a drawn order, in the next round in its reverse, and so on.

    threads  that they run on
    enough   are there, of these rounds, as many as are needed? Asked now and then
    """
    _warm_up(runs, budget, instruments)
    walls, waits, paces = list[list[float]](), list[list[float]](), list[float]()
    order, satisfied, pace = list(range(len(runs))), False, instruments.pace(threads)
    delay, counters, begin = instruments.delay(), instruments.counters(), instruments.seconds()

    def so_far() -> Rounds:
        load = load_between(counters, instruments.counters())
        slowness = np.array(paces) / instruments.fastest(threads, float(np.quantile(paces, _BEST)))
        return Rounds(np.array(walls).T, np.array(waits).T, slowness, delay.known, load)

    try:
        while budget.goes_on(len(walls), instruments.seconds() - begin, enough=satisfied):
            order = order[::-1] if len(walls) % 2 else generator.permutation(len(runs)).tolist()
            paces.append(_milliseconds(pace, instruments))
            wall, wait = [0.0] * len(runs), [0.0] * len(runs)
            for i in order:
                before = delay()
                wall[i] = _milliseconds(runs[i], instruments)
                wait[i] = delay() - before
            walls.append(wall)
            waits.append(wait)
            if len(walls) == budget.rounds or (len(walls) > budget.rounds and len(walls) % _BETWEEN == 0):
                satisfied = enough(so_far())
        return so_far()
    finally:
        delay.close()


def wait_for_quiet(
    seconds: float, threads: int, instruments: Instruments, say: Callable[[str], None] = lambda text: None
) -> None:
    """Return as soon as there is room for `threads` threads, after `seconds` at most; `say` is told what is being waited for."""
    end, told = instruments.seconds() + seconds, False
    while instruments.seconds() < end:
        load = idle_load(instruments)
        if not load.crowds(threads):
            return
        if not told:
            say(f"waiting up to {seconds:.0f} s for a free machine: {load.words}")
        told = True


def idle_load(instruments: Instruments) -> Load:
    """What others do while this process sleeps."""
    before = instruments.counters()
    instruments.sleep(_SAMPLE)
    return load_between(before, instruments.counters())


def _warm_up(runs: Sequence[Run], budget: Budget, instruments: Instruments) -> None:
    begin = instruments.seconds()
    for i in range(max(1, budget.warmup)):
        if i and instruments.seconds() - begin > budget.max_seconds / 2:
            return
        for run in runs:
            run()


def _milliseconds(run: Run, instruments: Instruments) -> float:
    begin = instruments.clock_ns()
    run()
    return (instruments.clock_ns() - begin) / 1e6
