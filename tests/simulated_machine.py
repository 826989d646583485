"""A machine that is slowed down in planted ways: its clock goes on by what runs take, so that nothing depends on a real one."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from axformer_onnx.runtime.foreign_load import Counters
from axformer_onnx.runtime.rounds import Instruments


@dataclasses.dataclass(frozen=True)
class World:
    """What happens to runs that take `ms` on a free machine.

    noise      standard deviation of the logarithm of a run's time
    tail       probability that a run takes longer by an exponential share of a half
    drift      amplitude of a slow wave of 7 seconds that all models ride
    slow       by model: how many times as long runs take while a neighbour that nobody tells of is active
    active     mean seconds that it is; `idle`: that it is not, 0: it always is
    load       chance that another process takes a core for 3 ms from a run, a millisecond; in bursts of the same kind as above
    told       does the system tell of the waiting?
    others     cores that the counters say others keep busy in such a burst
    threads    of the sessions
    known      was the machine ever seen at its full pace?
    """

    ms: tuple[float, ...] = (10.0, 5.0)
    noise: float = 0.02
    tail: float = 0.0
    drift: float = 0.0
    slow: tuple[float, ...] = (1.0, 1.0)
    active: float = 1.0
    idle: float = math.inf
    load: float = 0.0
    told: bool = True
    others: float = 1.0
    threads: int = 1
    known: bool = True


_PACE_MS = 0.05


class SimulatedMachine:
    """`sessions` of models A, B, ...; `instruments` reads this machine instead of the real one."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.now, self.waited, self.busy = world, 100.0, 0.0, 0.0
        self._random = np.random.default_rng(seed)
        self._phase = self._random.uniform(0, 7)
        whole = world.active + world.idle
        self._disturbed = math.isfinite(whole) and bool(self._random.random() < world.active / whole)
        self._until = self._next(self.now)
        self._fastest = _PACE_MS if world.known else math.inf
        self.took: list[tuple[int, float]] = []
        self.said: list[str] = []

    @property
    def sessions(self) -> dict[str, Any]:
        """Stand for ONNX Runtime's."""
        return {"ABCDE"[i]: _Session(self, i) for i in range(len(self.world.ms))}

    @property
    def disturbed_for(self) -> float:
        """Seconds from now on."""
        return self._until - self.now if self._disturbed else 0.0

    @property
    def instruments(self) -> Instruments:
        """Of this machine."""
        return Instruments(
            clock_ns=lambda: round(self.now * 1e9),
            cpu_ns=lambda: round((self.now - self.waited / 1e3) * 1e9),
            sleep=self._pass,
            counters=lambda: Counters(self.now, busy=self.busy, own=0.0),
            delay=lambda: _Delay(self),
            pace=lambda threads: lambda: self._take(_PACE_MS, self.world.slow[0] if self._disturbed else 1.0),
            fastest=self._noted,
        )

    def _noted(self, threads: int, ms: float) -> float:
        self._fastest = min(self._fastest, ms)
        return self._fastest

    def run(self, model: int) -> None:
        """One run of that model; `took` notes it."""
        begin = self.now
        self._take(self.world.ms[model], self.world.slow[model] if self._disturbed else 1.0)
        self.took.append((model, 1e3 * (self.now - begin)))

    def _take(self, ms: float, factor: float) -> None:
        world, random = self.world, self._random
        ms *= factor * math.exp(random.normal(0, world.noise))
        ms *= 1 + world.drift * math.sin(2 * math.pi * (self.now + self._phase) / 7)
        if random.random() < world.tail:
            ms *= 1 + random.exponential(0.5)
        stolen = 3.0 * random.poisson(world.load * ms) if self._disturbed else 0.0
        self.waited += stolen
        self._pass((ms + stolen) / 1e3)

    def _pass(self, seconds: float) -> None:
        end = self.now + seconds
        while end >= self._until:
            self._count(self._until)
            self._disturbed = not self._disturbed
            self._until = self._next(self._until)
        self._count(end)

    def _count(self, moment: float) -> None:
        if self._disturbed and self.world.load:
            self.busy += (moment - self.now) * self.world.others
        self.now = moment

    def _next(self, moment: float) -> float:
        mean = self.world.active if self._disturbed else self.world.idle
        return moment + (self._random.exponential(mean) if math.isfinite(mean) else math.inf)


class _Delay:
    """Stands for `RunDelay`."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine, self.known = machine, machine.world.told

    def __call__(self) -> float:
        return self._machine.waited if self.known else 0.0

    def close(self) -> None:
        """Nothing to close."""


class _Session:
    def __init__(self, machine: SimulatedMachine, model: int) -> None:
        self._machine, self._model = machine, model

    def run(self, outputs: Any, feeds: Any) -> None:
        self._machine.run(self._model)

    def get_inputs(self) -> list[Any]:
        return []

    def get_outputs(self) -> list[Any]:
        return []

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def get_session_options(self) -> Any:
        return SimpleNamespace(intra_op_num_threads=self._machine.world.threads)
