"""Latency of several models, measured side by side in one process.

In every round each model runs once, in an order drawn anew, so that what slows the machine down for a while
slows all of them down; ratios come from medians over the same rounds (docs/method.md 4).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.data import check_input
from axformer_onnx.records import FloatArray, Interval
from axformer_onnx.runtime.failures import told
from axformer_onnx.runtime.sessions import fit_feeds
from axformer_onnx.statistics import ratio_of_medians
from axformer_passes.probe import TokenSequence

Feeds = Mapping[str, npt.NDArray[Any]]
MOST_ROUNDS = 300
"""More say nothing new, and the bootstrap of their medians takes longer than they do."""


@dataclasses.dataclass(frozen=True)
class LatencyRow:
    """One model at one shape.

    p50_ms, p95_ms  median and 95th percentile of its rounds, in milliseconds
    ratio           how many times as fast as the first model, with its interval; None for the first
    """

    model: str
    batch: int
    length: int
    p50_ms: float
    p95_ms: float
    ratio: Interval | None
    rounds: int


def compare_latency(
    sessions: Mapping[str, Any],
    feeds_by_shape: Sequence[tuple[int, int, Feeds]],
    *,
    rounds: int = 30,
    warmup: int = 5,
    min_seconds: float = 1.0,
    max_seconds: float = 4.0,
    seed: int = 0,
) -> list[LatencyRow]:
    """Time every session at every (batch, length, feeds); the others are compared with the first.

    rounds   at least so many a shape, and as many as fit into min_seconds, up to MOST_ROUNDS; 5 are made whatever max_seconds says
    warmup   runs of each session before the first round

    On other providers than the CPU inputs and outputs stay on the device (IO binding), and a run ends when
    the device has finished.

    Raises: RuntimeFailure where a session does not run.
    """
    rows = []
    for batch, length, feeds in feeds_by_shape:
        runs = [_runner(name, session, feeds) for name, session in sessions.items()]
        times = _interleaved(runs, rounds, warmup, min_seconds, max_seconds, np.random.default_rng(seed))
        for i, name in enumerate(sessions):
            ratio = ratio_of_medians(times[0], times[i], seed) if i else None
            p50, p95 = np.percentile(times[i], [50, 95])
            rows.append(LatencyRow(name, batch, length, float(p50), float(p95), ratio, len(times[i])))
    return rows


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


def _runner(name: str, session: Any, feeds: Feeds) -> Callable[[], None]:
    """One run of a session on feeds that are already where the provider wants them."""
    fitted = fit_feeds(session, feeds)
    device = _DEVICES.get(session.get_providers()[0])
    outputs = [output.name for output in session.get_outputs()]

    def on_cpu() -> None:
        session.run(outputs, fitted)

    with told(name, fitted):
        run: Callable[[], None] = on_cpu if device is None else Bound(session, fitted, outputs, device)

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


def _interleaved(
    runs: Sequence[Callable[[], None]],
    rounds: int,
    warmup: int,
    min_seconds: float,
    max_seconds: float,
    generator: np.random.Generator,
) -> FloatArray:
    """float64[models, rounds]: milliseconds of each run."""
    begin = time.perf_counter()
    for i in range(max(1, warmup)):
        if i and time.perf_counter() - begin > max_seconds / 2:
            break
        for run in runs:
            run()
    times: list[list[float]] = []
    begin = time.perf_counter()
    while _goes_on(len(times), time.perf_counter() - begin, rounds, min_seconds, max_seconds):
        row = [0.0] * len(runs)
        for i in generator.permutation(len(runs)).tolist():
            start = time.perf_counter_ns()
            runs[i]()
            row[i] = (time.perf_counter_ns() - start) / 1e6
        times.append(row)
    return np.array(times).T


def _goes_on(done: int, seconds: float, rounds: int, min_seconds: float, max_seconds: float) -> bool:
    if done < min(5, rounds):
        return True
    if seconds >= max_seconds or done >= max(rounds, MOST_ROUNDS):
        return False
    return done < rounds or seconds < min_seconds
