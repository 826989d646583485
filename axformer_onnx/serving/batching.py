"""Dynamic batching: rows of several requests in one run, those of like length together.

While a batch runs, what arrives waits and forms the next one, so that batches grow with the load by themselves. A delay only makes
a batch wait for company while nothing runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from axformer_onnx.data import Encoded, Encoder, joined
from axformer_onnx.errors import AxformerError
from axformer_onnx.options import ServeOptions
from axformer_onnx.serving.metrics import Metrics
from axformer_onnx.serving.tensors import Array

MOST_PADDING = 0.25
"""Tokens of padding in a batch, at most, as a share of its real tokens. A guess that is not tuned: a run costs about as much as its
tokens, and a run more costs little beside them."""
Run: TypeAlias = Callable[[Encoded], Array]


class QueueFull(AxformerError):
    """More rows wait than may."""

    def __init__(self, waiting: int, most: int) -> None:
        super().__init__(f"{waiting} rows wait, of {most} that may; try again")


@dataclasses.dataclass(frozen=True)
class Policy:
    """rows: of a batch, at most; delay_s: wait so long for company; queue: rows that may wait.

    padded   rows of other lengths may share a batch; False: the model knows no padding
    filled   every row is as long as the graph wants it, whatever it holds
    """

    rows: int = 32
    delay_s: float = 0.0
    queue: int = 1024
    padded: bool = True
    filled: bool = False

    @property
    def padding(self) -> float:
        """Tokens of padding for each real one, at most."""
        return np.inf if self.filled else MOST_PADDING if self.padded else 0.0


def policy_of(options: ServeOptions, encoder: Encoder) -> Policy:
    """What the options ask for, as far as the graph and its padding allow it."""
    rows, tokens = encoder.sizes
    return Policy(
        rows=rows or options.max_batch, delay_s=options.max_delay / 1e3, queue=options.max_queue,
        padded=encoder.padding.id is not None, filled=tokens is not None,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ran:
    """What became of a request's rows: outputs float32[sequences, C], and how long the slowest waited and ran."""

    outputs: Array
    queue_s: float
    run_s: float


@dataclasses.dataclass(eq=False)
class _Waiting:
    encoded: Encoded
    length: int
    since: float
    done: asyncio.Future[Ran]


def chosen(lengths: Sequence[int], policy: Policy) -> list[int]:
    """Which of the waiting rows go next: the oldest, which is the first, and those nearest to its length, as many as the policy
    allows. In the order in which they wait."""
    batch, real, longest = [0], lengths[0], lengths[0]
    nearest = sorted(range(1, len(lengths)), key=lambda i: abs(lengths[i] - lengths[0]))
    for i in nearest:
        if len(batch) == policy.rows:
            break
        length = max(longest, lengths[i])
        if (len(batch) + 1) * length <= (1 + policy.padding) * (real + lengths[i]):
            batch.append(i)
            real, longest = real + lengths[i], length
    return sorted(batch)


class Batcher:
    """A queue and the one thread that empties it. To be made, started and stopped in an event loop."""

    def __init__(self, run: Run, policy: Policy, metrics: Metrics) -> None:
        self._run, self._policy, self._metrics = run, policy, metrics
        self._waiting: list[_Waiting] = []
        self._stopping = False
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "axformer-run")
        metrics.watch_queue(lambda: len(self._waiting))

    def start(self) -> None:
        """Begin to empty the queue."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Run what waits, then end."""
        self._stopping = True
        self._arrival.set()
        await self._worker
        self._thread.shutdown()

    async def submit(self, encoded: Encoded) -> Ran:
        """The outputs of these sequences, in their order.

        Raises: QueueFull; RuntimeFailure for a row that ONNX Runtime refuses.
        """
        if len(self._waiting) + len(encoded) > self._policy.queue:
            raise QueueFull(len(self._waiting), self._policy.queue)
        loop = asyncio.get_running_loop()
        alone = len(encoded) == 1
        mine = [
            _Waiting(encoded if alone else _sequence(encoded, i), length, time.monotonic(), loop.create_future())
            for i, length in enumerate(encoded.lengths.tolist())
        ]
        self._waiting += mine
        self._arrival.set()
        ran = await asyncio.gather(*(one.done for one in mine), return_exceptions=True)
        for one in ran:
            if isinstance(one, BaseException):
                raise one
        found = [one for one in ran if isinstance(one, Ran)]
        outputs = np.concatenate([one.outputs for one in found])
        self._metrics.waited.observe(max(one.queue_s for one in found))
        return Ran(outputs, max(one.queue_s for one in found), max(one.run_s for one in found))

    async def _work(self) -> None:
        while not (self._stopping and not self._waiting):
            if not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
                continue
            await self._company()
            lengths = [one.length for one in self._waiting]
            batch = [self._waiting[i] for i in chosen(lengths, self._policy)]
            taken = set(map(id, batch))
            self._waiting = [one for one in self._waiting if id(one) not in taken]
            await self._answer(batch)

    async def _company(self) -> None:
        """Wait until a batch is full, or its oldest row has waited long enough."""
        until = self._waiting[0].since + self._policy.delay_s
        while not self._stopping and len(self._waiting) < self._policy.rows and time.monotonic() < until:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), until - time.monotonic())
            except (TimeoutError, asyncio.TimeoutError):
                return

    async def _answer(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        try:
            answers = await loop.run_in_executor(self._thread, self._outputs, [one.encoded for one in batch])
        except Exception as error:  # a bug of ours: whoever waits must hear of it
            answers = [error] * len(batch)
        seconds = time.monotonic() - started
        self._count(batch, seconds)
        for one, answer in zip(batch, answers, strict=True):
            if one.done.cancelled():
                continue
            if isinstance(answer, Exception):
                one.done.set_exception(answer)
            else:
                one.done.set_result(Ran(answer, started - one.since, seconds))

    def _outputs(self, parts: list[Encoded]) -> list[Array | Exception]:
        """Outputs of each part [1, C]. Where all together fail, each is run alone: one bad row costs no other its answer."""
        try:
            outputs = self._run(joined(parts) if len(parts) > 1 else parts[0])
        except AxformerError as error:
            return [error] if len(parts) == 1 else [one for part in parts for one in self._outputs([part])]
        return [outputs[i : i + 1] for i in range(len(parts))]

    def _count(self, batch: list[_Waiting], seconds: float) -> None:
        lengths = [one.length for one in batch]
        self._metrics.batch_rows.observe(len(batch))
        self._metrics.run_seconds.observe(seconds)
        self._metrics.tokens.inc(sum(lengths))
        self._metrics.padding.inc(0 if not self._policy.padded else len(lengths) * max(lengths) - sum(lengths))


def _sequence(encoded: Encoded, i: int) -> Encoded:
    """One sequence as a row of its own."""
    start, end = encoded.offsets[i : i + 2]
    return dataclasses.replace(
        encoded, ids=encoded.ids[start:end], types=encoded.types[start:end], offsets=np.array([0, end - start]),
        truncated=0, owners=None,
    )  # fmt: skip
