"""Latency of several models, measured side by side in one process.

Every model runs once in every round; a speed comes from rounds in which neither of a pair was disturbed (`undisturbed`), and where
there are too few of them it is marked, and why (docs/method.md 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.data import check_input
from axformer_onnx.records import Interval, LogRatio
from axformer_onnx.runtime.failures import told
from axformer_onnx.runtime.foreign_load import Load, RunDelay, usable_cores
from axformer_onnx.runtime.providers import CPU
from axformer_onnx.runtime.rounds import Budget, Instruments, Rounds, Run, make_rounds, wait_for_quiet
from axformer_onnx.runtime.sessions import fit_feeds
from axformer_onnx.runtime.undisturbed import doubt, is_enough, left_alone, pace_error, unseen
from axformer_onnx.statistics import paired_ratio, ratio_interval
from axformer_passes.probe import TokenSequence

Feeds = Mapping[str, npt.NDArray[Any]]
Say = Callable[[str], None]
INSTRUMENTS = Instruments()
"""Of this machine."""
MOST_WAIT = 3600.0
"""Seconds that a comparison waits for a free machine, whatever it is asked."""


@dataclasses.dataclass(frozen=True)
class LatencyRow:
    """One model at one shape.

    p50_ms    median of its undisturbed rounds, in milliseconds; of all where there are too few of them
    p95_ms    95th percentile of all its rounds
    ratio     how many times as fast as the first model, with its interval; None for the first
    rounds    that were made; `kept` of them were undisturbed for this model and the first
    reliable  False: the figures are of a disturbed machine; `why` says by what
    load      what else the machine did meanwhile; None where that was not read
    cpu       where it is not reliable: the ratio by CPU time on one thread, if that could be measured
    wall_ms   of every round, in the order in which they were made
    log_ratio what `ratio` is made of
    """

    model: str
    batch: int
    length: int
    p50_ms: float
    p95_ms: float
    ratio: Interval | None
    rounds: int
    kept: int = 0
    reliable: bool = True
    why: str = ""
    load: Load | None = None
    cpu: Interval | None = None
    wall_ms: tuple[float, ...] = ()
    log_ratio: LogRatio | None = None


def compare_latency(
    sessions: Mapping[str, Any],
    feeds_by_shape: Sequence[tuple[int, int, Feeds]],
    *,
    rounds: int = 30,
    warmup: int = 5,
    min_seconds: float = 1.0,
    max_seconds: float = 4.0,
    seed: int = 0,
    wait_seconds: float = 0.0,
    say: Say = lambda text: None,
    on_one_thread: Callable[[], Mapping[str, Any]] | None = None,
    cpu_time: bool = False,
    instruments: Instruments | None = None,
) -> list[LatencyRow]:
    """Time every session at every (batch, length, feeds); the others are compared with the first.

    rounds        at least so many a shape, as many as fit into min_seconds, or into four times that as long as too few of
                  them were undisturbed; 5 are made whatever max_seconds says
    warmup        runs of each session before the first round
    wait_seconds  how long to wait, over all shapes, for a machine that is free, and measure again where it was not; `say` is told
    on_one_thread makes sessions of the same models on one thread: where a shape could not be measured, their CPU time is
    cpu_time      that alone, of sessions on one thread. Other processes do not move it but by the caches and execution units that
                  they share. It says how much work a model is, not how well that is divided between cores
    instruments   what the machine is read by; None: INSTRUMENTS

    On other providers than the CPU inputs and outputs stay on the device (IO binding), and a run ends when
    the device has finished.

    Raises: RuntimeFailure where a session does not run.
    """
    instruments, rows = instruments or INSTRUMENTS, list[LatencyRow]()
    instruments = instruments.by_cpu_time() if cpu_time else instruments
    budget, threads = Budget(rounds, warmup, min_seconds, max_seconds), threads_of(sessions)
    if threads > usable_cores():  # they wait for each other, whoever else there is
        instruments = dataclasses.replace(instruments, delay=lambda: RunDelay(None))
    left = min(wait_seconds, MOST_WAIT)
    for batch, length, feeds in feeds_by_shape:
        found, left = _measured(runs_of(sessions, feeds), budget, threads, seed, left, say, instruments)
        if on_one_thread is not None and not all(row.reliable for row in found):
            runs, clock = runs_of(on_one_thread(), feeds), instruments.by_cpu_time()
            by_cpu, _ = _measured(runs, budget, 1, seed, 0.0, say, clock)
            found = [
                row if row.reliable or not cpu.reliable else dataclasses.replace(row, cpu=cpu.ratio)
                for row, cpu in zip(found, by_cpu, strict=True)
            ]
        rows += [dataclasses.replace(row, batch=batch, length=length) for row in found]
    return rows


def _measured(
    runs: Mapping[str, Run],
    budget: Budget,
    threads: int,
    seed: int,
    wait_seconds: float,
    say: Say,
    instruments: Instruments,
) -> tuple[list[LatencyRow], float]:
    """Rows of one shape, the least doubtful of what was measured, and the seconds of waiting that are left."""
    best: list[LatencyRow] = []
    while True:
        begin = instruments.seconds()
        if wait_seconds > 0:
            wait_for_quiet(wait_seconds, threads, instruments, say)
            wait_seconds -= instruments.seconds() - begin
        begin = instruments.seconds()
        made = make_rounds(list(runs.values()), threads, budget, np.random.default_rng(seed), instruments, is_enough)
        rows = judged(list(runs), made, threads, seed)
        if not best or sum(row.reliable for row in rows) > sum(row.reliable for row in best):
            best = rows
        doubts = [row.why for row in best if row.why]
        wait_seconds -= instruments.seconds() - begin if doubts else 0.0
        if not doubts or wait_seconds <= 0:
            return best, max(0.0, wait_seconds)
        say(f"measuring latency again, {wait_seconds:.0f} s at most: {doubts[0]}")


def judged(names: Sequence[str], made: Rounds, threads: int, seed: int) -> list[LatencyRow]:
    """A row a model of what was measured, its shape left open. `threads`: that the models run on."""
    alone, rows = left_alone(made), list[LatencyRow]()
    for i, (name, wall) in enumerate(zip(names, made.wall_ms, strict=True)):
        kept = alone.pairs(i)
        some = kept if kept.sum() >= 2 else np.ones_like(kept)
        found = _log_ratio(made, some, i, seed) if i else None
        ratio = ratio_interval(found) if found else None
        why = doubt(made, alone, i, threads, ratio)
        if ratio is not None:
            ratio = dataclasses.replace(ratio, reliable=not why, why=why)
        own = alone.runs[i] if alone.runs[i].any() else np.ones_like(kept)
        p50, p95 = float(np.median(wall[own])), float(np.percentile(wall, 95))
        rows.append(
            LatencyRow(
                name,
                0,
                0,
                p50,
                p95,
                ratio,
                len(wall),
                int(kept.sum()),
                not why,
                why,
                made.load,
                wall_ms=tuple(wall.tolist()),
                log_ratio=found,
            )
        )
    return rows


def _log_ratio(made: Rounds, some: npt.NDArray[np.bool_], i: int, seed: int) -> LogRatio:
    """Of the first model to model i, by the rounds `some`."""
    found = paired_ratio(made.wall_ms[0, some], made.wall_ms[i, some], seed, floor=unseen(made, some, i))
    return dataclasses.replace(found, shared=pace_error(made, some))


def threads_of(sessions: Mapping[str, Any]) -> int:
    """Threads of the greediest of the sessions."""
    most = 1
    for session in sessions.values():
        if session.get_providers()[0] == CPU:
            most = max(most, session.get_session_options().intra_op_num_threads or usable_cores())
    return most


def runs_of(sessions: Mapping[str, Any], feeds: Feeds) -> dict[str, Run]:
    """What runs each session once on these feeds, which are where its provider wants them. Raises: RuntimeFailure."""
    return {name: _runner(name, session, feeds) for name, session in sessions.items()}


def make_feeds(
    input_names: Sequence[str],
    batch: int,
    length: int,
    *,
    tokens: TokenSequence | None = None,
    vocab_size: int = 1000,
    seed: int = 0,
) -> dict[str, npt.NDArray[np.int64]]:
    """int64[batch, length] inputs of random tokens without padding: rows as `tokens` has them, else any of the vocabulary.

    Raises: DataError for an input that is not one of a text model.
    """
    shape, tokens = (batch, length), tokens or TokenSequence(words=range(min(5, vocab_size - 1), vocab_size))
    known = {
        "input_ids": tokens.rows(batch, length, np.random.default_rng(seed)),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
        "position_ids": np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
    }
    return {name: known[check_input(name)] for name in input_names}


def _runner(name: str, session: Any, feeds: Feeds) -> Run:
    """One run of a session on feeds that are already where the provider wants them."""
    fitted = fit_feeds(session, feeds)
    device = _DEVICES.get(session.get_providers()[0])
    outputs = [output.name for output in session.get_outputs()]

    def on_cpu() -> None:
        session.run(outputs, fitted)

    with told(name, fitted):
        run: Run = on_cpu if device is None else Bound(session, fitted, outputs, device)

    def one_run() -> None:
        with told(name, fitted):
            run()

    one_run()
    return one_run


class Bound:
    """Runs of a session on inputs that are on the device, with outputs that stay there; a run ends when the device has finished.

    binding   ONNX Runtime's
    """

    def __init__(self, session: Any, feeds: Feeds, outputs: Sequence[str], device: str) -> None:
        import onnxruntime as ort

        self._session, self.binding = session, session.io_binding()
        for name, value in feeds.items():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, device, 0))
        for name in outputs:
            self.binding.bind_output(name, device)

    def __call__(self) -> None:
        """One run."""
        self._session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()


# Providers whose memory is not the CPU's; the others take and give arrays on the CPU.
_DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "ROCMExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
}
