"""Calibration: second moments of the inputs of every output projection, over unlabelled rows (docs/method.md 2.1).

Shapes: B rows and S tokens of a sample, R channels that a projection reads.

    z    float64[R+1], what a projection reads for one token, with a constant 1 behind it
    H    sum of z z^T over the real tokens: padding is left out

The samples go through the source stage by stage (`scoring/stage_scorer.py`), all of them through one stage before the next is
touched. So there is one H at a time, handed out as soon as it is complete, and of the samples what later stages read of
them: their hidden states, in memory up to a bound and beyond it in files of a temporary folder. In memory at once:

    8 (R+1)^2 bytes for H (thrice that while it is completed)      the hidden states, at most `memory_bytes`
    the activations of one sample for each worker

Equal arguments give equal bits, however many workers there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from axformer_onnx.data import Encoded, batches, feeds
from axformer_onnx.errors import DataError, RecogniseError
from axformer_onnx.runtime import Shelf, run_session
from axformer_onnx.scoring import BATCH_SIZE, BATCH_TOKENS, StageSessions
from axformer_passes.blocks import Inputs, inputs_of

if TYPE_CHECKING:
    from axformer_passes.blocks import BlockKind
    from axformer_passes.stages import Stage

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Answer = TypeVar("Answer")
MEMORY_BYTES = 2**31
"""Hidden states that are kept in memory."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One batch: feeds by input name, and which tokens are real, bool[B, S]; None: all that the model makes of the inputs."""

    feeds: Mapping[str, Array]
    real: npt.NDArray[np.bool_] | None = None


@dataclasses.dataclass(frozen=True)
class Moments:
    """matrix: H, float64[R+1, R+1], of the output projection of one block; tokens: how many were added up."""

    layer: int
    kind: BlockKind
    matrix: FloatArray
    tokens: int


def text_samples(
    encoded: Encoded, input_names: Sequence[str], *, batch_size: int = BATCH_SIZE, batch_tokens: int = BATCH_TOKENS
) -> list[Sample]:
    """Rows of text as samples, sorted by length. Raises: DataError for an input that text does not give."""
    parts = batches(encoded, input_names, batch_size=batch_size, max_tokens=batch_tokens)
    masks = [feeds(encoded, part.rows.tolist(), ["attention_mask"])["attention_mask"] for part in parts]
    return [Sample(part.feeds, mask.astype(bool)) for part, mask in zip(parts, masks, strict=True)]


def calibrate(
    sessions: StageSessions, samples: Sequence[Sample], *, memory_bytes: int = MEMORY_BYTES
) -> Iterator[Moments]:
    """The moments of every block, in the order of the graph; blocks of one stage come together.

    Raises: DataError for no samples and for numbers that are not finite, RecogniseError where a projection's tokens
    are not those of the samples.
    """
    if not samples:
        raise DataError("there are no calibration rows; give some with --calibration")
    with Shelf(memory_bytes) as shelf:
        for number, sample in enumerate(samples):
            missing = sorted(set(sessions.input_names) - set(sample.feeds))
            if missing:
                raise DataError(f"calibration sample {number} lacks the input {missing[0]!r} of the graph")
            shelf.put(number, {name: sample.feeds[name] for name in sessions.input_names})
        last = last_readers(sessions)
        for stage, inside in _read_by_stage(sessions):
            yield from _stage(sessions, stage, inside, samples, shelf, last)


def calibrated_blocks(sessions: StageSessions) -> list[tuple[int, BlockKind]]:
    """The blocks that `calibrate` finds moments of, in its order."""
    return [(read.layer, read.kind) for _, inside in _read_by_stage(sessions) for read in inside]


def _read_by_stage(sessions: StageSessions) -> Iterator[tuple[Stage, list[_Read]]]:
    """What output projections read that is made in each stage; of what several read the first one."""
    done = set[str]()
    for stage in sessions.stages:
        inside = [found for found in _inputs_of(sessions, stage) if found.name not in done]
        done.update(found.name for found in inside)
        yield stage, inside


def _stage(
    sessions: StageSessions,
    stage: Stage,
    inside: list[_Read],
    samples: Sequence[Sample],
    shelf: Shelf,
    last: Mapping[str, int],
) -> list[Moments]:
    """Run all samples through one stage; what later ones read goes to the shelf, the rest leaves it."""
    names = list(dict.fromkeys([*stage.outputs, *(read.name for read in inside)]))
    session = sessions.part(stage, "plain", names)
    wanted = [one.name for one in session.get_inputs()]
    sums = [_Sum(read) for read in inside]

    def run(number: int) -> dict[str, Array]:
        return run_session(session, shelf.get(number, wanted), names)

    for number, found in enumerate(side_by_side(sessions.workers, len(samples), run)):
        for one in sums:
            one.add(found[one.read.name], samples[number].real)
        shelf.put(number, {n: found[n].copy() for n in stage.outputs if last.get(n, -1) > stage.index})
        shelf.drop(number, [n for n, reader in last.items() if reader == stage.index])
    return [one.moments() for one in sums]


def side_by_side(workers: int, count: int, run: Callable[[int], Answer]) -> Iterator[Answer]:
    """run(0), run(1), .. in order, `workers` of them at a time."""
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, count, workers):
            yield from pool.map(run, range(start, min(start + workers, count)))


def last_readers(sessions: StageSessions) -> dict[str, int]:
    """The last stage that reads each tensor; what no stage lists are the graph's inputs, which the first one reads."""
    listed = {name: stage.index for stage in sessions.stages for name in stage.inputs}
    return {**dict.fromkeys(sessions.input_names, 0), **listed}


@dataclasses.dataclass(frozen=True)
class _Read:
    """What the output projection of one block reads."""

    layer: int
    kind: BlockKind
    inputs: Inputs

    @property
    def name(self) -> str:
        return self.inputs.name


def _inputs_of(sessions: StageSessions, stage: Stage) -> list[_Read]:
    """The blocks whose projection's input is made in this stage."""
    reads = [_Read(b.layer, b.kind, inputs_of(sessions.staged.examined, b.layer, b.kind)) for b in stage.blocks]
    made = sessions.staged.made_in(stage)
    return [read for read in reads if read.name in made]


def real_tokens(inputs: Inputs, tensor: Array, real: npt.NDArray[np.bool_] | None) -> Array:
    """[real tokens, R] of what a projection reads. Raises: RecogniseError where its tokens are not those of `real`."""
    flat = inputs.by_token(tensor)
    if real is None:
        return flat
    mask, tokens = inputs.arranged(real), inputs.token_shape(tensor.shape)
    if mask is None or mask.size != len(flat):
        raise RecogniseError(
            f"{inputs.name} has the tokens {list(tokens)}, expected {list(real.shape)} rows and tokens; it cannot be told which of "
            "them are padding"
        )
    return np.asarray(flat[mask])


def with_one(tokens: Array, dtype: npt.DTypeLike = np.float64) -> Array:
    """[tokens, R+1]: a constant 1 behind each."""
    z = np.ones((len(tokens), tokens.shape[1] + 1), dtype)
    z[:, :-1] = tokens
    return z


class _Sum:
    """H of one block while samples are added."""

    def __init__(self, read: _Read) -> None:
        size = read.inputs.width + 1
        self.read, self.tokens = read, 0
        self._lower: FloatArray = np.zeros((size, size), order="F")

    def add(self, tensor: Array, real: npt.NDArray[np.bool_] | None) -> None:
        """Add the real tokens of one sample."""
        from scipy.linalg.blas import dsyrk

        z = with_one(real_tokens(self.read.inputs, tensor, real))
        self.tokens += len(z)
        if len(z):
            self._lower = dsyrk(1.0, z.T, beta=1.0, c=self._lower, lower=1, overwrite_c=1)

    def moments(self) -> Moments:
        """The complete, symmetric H."""
        read, matrix = self.read, self._lower
        matrix += np.tril(matrix, -1).T
        if not np.isfinite(matrix).all():
            raise DataError(
                f"layer {read.layer}, {read.kind}: the inputs of its output projection are not finite on the calibration rows; "
                "half precision may overflow: calibrate the float32 model"
            )
        return Moments(read.layer, read.kind, matrix.T, self.tokens)


__all__ = ["MEMORY_BYTES", "Moments", "Sample", "calibrate", "calibrated_blocks", "text_samples"]
