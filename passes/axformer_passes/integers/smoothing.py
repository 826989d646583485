"""Outliers: a channel that reaches much further than the others sets the step by which all of a tensor is rounded.

    x @ weight  =  (x * 2^-k) @ (2^k * weight),  k a whole number for each channel, 0 for most

Powers of two change no bit of a float32 number but its exponent, so what is moved from an activation into the weight that
reads it is exact, and whole numbers in a plan say all of it. `shifts_of` finds the k by which the expected error of the products is
smallest: the step of the activation goes down, that of the weight up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from axformer_passes.blocks import BlockKind, Projection, kind_of, linears, projection_at
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import find
from axformer_passes.integers.products import written_plainly
from axformer_passes.precision import Int8
from axformer_passes.recognise import Examined
from axformer_passes.stages import writable

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
AnyNumber = TypeVar("AnyNumber", bound=np.generic)
WORTH = 0.7
"""Of the error without: an operator more must bring so much."""
_GRID = np.arange(0, 8, 0.25)
"""Powers of two below the furthest channel, to which the channels may be brought."""
_OF_WEIGHTS = 0.3
"""Weight of the error of rounded weights: it is the same for every token, so that a refit can make up for it. Divergence of
MiniLM models, all products rounded, on 500 rows: MNLI .0067 without, .0030 with 1, .0028 with 0.3, .0042 with 0.1; SST-2 .0053,
.0024, .0027, .0031."""
_LEVELS = 255
"""Steps of an activation."""


@dataclasses.dataclass
class Reach:
    """How far the channels of an activation reach on data. low <= 0 <= high, square: the mean of x^2; each float64[R]."""

    low: FloatArray
    high: FloatArray
    square: FloatArray
    tokens: int = 0

    @classmethod
    def of(cls, array: npt.NDArray[np.float32]) -> Reach:
        """Of [.., R]."""
        flat = array.reshape(-1, array.shape[-1]).astype(np.float64)
        return cls(flat.min(axis=0, initial=0), flat.max(axis=0, initial=0), (flat**2).mean(axis=0), len(flat))

    def joined(self, other: Reach) -> Reach:
        """Over both."""
        tokens = self.tokens + other.tokens
        square = (self.square * self.tokens + other.square * other.tokens) / tokens
        return Reach(np.minimum(self.low, other.low), np.maximum(self.high, other.high), square, tokens)

    def symmetric(self) -> Reach:
        """The same with ranges that reach as far on both sides of 0."""
        far = np.maximum(self.high, -self.low)
        return dataclasses.replace(self, low=-far, high=far)


def read_by_products(examined: Examined, int8: Int8) -> list[str]:
    """Names of the activations that products of these blocks read: those whose `Reach` is asked for."""
    names = dict[str, None]()
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            if int8.has(layer.index, kind_of(block)):
                for linear in linears(block):
                    node = find(examined.labelling.model.graph, linear.output).producer()
                    if node is not None and written_plainly(node) and node.inputs[0] is not None:
                        names[str(node.inputs[0].name)] = None
    return list(names)


def smoothed(examined: Examined, int8: Int8, reach: Mapping[str, Reach]) -> Int8:
    """`int8` with the channels of its feed-forward blocks' inputs, and the neurons, that are moved into the weights.

    Not of attention blocks: their inputs reach less far, and moving them made answers worse (MNLI: .0030 -> .0033).
    """
    if int8.is_static:  # on the 600 rows of `ranges` .0045 -> .0038, the best of five settings: may be noise
        reach = {name: own.symmetric() for name, own in reach.items()}
    moved: dict[str, dict[int, dict[int, int]]] = {"feed_forward": {}, "neurons": {}}
    for layer in examined.anatomy.layers:
        block = layer.feed_forward
        if block is None or not int8.has(layer.index, "feed_forward"):
            continue
        *inner, last = linears(block)
        moved["feed_forward"][layer.index] = _channels(examined, [one.output for one in inner], reach)
        moved["neurons"][layer.index] = _neurons(examined, layer.index, last.output, reach)
    moved = {name: {i: found for i, found in layers.items() if found} for name, layers in moved.items()}
    return dataclasses.replace(int8, smooth={name: layers for name, layers in moved.items() if layers})


def _channels(examined: Examined, outputs: Sequence[str], reach: Mapping[str, Reach]) -> dict[int, int]:
    """{channel: k} of the stream that these projections read."""
    joined, weights = None, list[FloatArray]()
    for output in dict.fromkeys(outputs):
        node = find(examined.labelling.model.graph, output).producer()
        own = reach.get(str(node.inputs[0].name)) if node is not None and node.inputs[0] is not None else None
        try:
            place = projection_at(examined, output, output, ())
        except RecogniseError:
            return {}
        if own is None or len(own.high) != place.rows.size:
            return {}
        weights.append(by_activation(place, place.weight_matrix()))
        joined = own if joined is None else joined.joined(own)
    if joined is None:
        return {}
    shifts = shifts_of(joined, np.hstack(weights))
    return {int(i): int(shifts[i]) for i in np.flatnonzero(shifts)}


def _neurons(examined: Examined, layer: int, output: str, reach: Mapping[str, Reach]) -> dict[int, int]:
    node, place = find(examined.labelling.model.graph, output).producer(), writable(examined, layer, "feed_forward")
    own = reach.get(str(node.inputs[0].name)) if node is not None and node.inputs[0] is not None else None
    if place is None or own is None or len(own.high) != place.rows.size or any(len(p) != 1 for p in place.positions):
        return {}
    shifts = shifts_of(own, by_activation(place, place.weight_matrix()))[place.order]
    return {i: int(shifts[p[0]]) for i, p in enumerate(place.positions) if shifts[p[0]]}


def shifts_of(reach: Reach, weight: FloatArray, bits: int = 7) -> IntArray:
    """int64[R]: the k of every channel, by the expected error of x @ weight[R, C]; zeros where that gains too little.

    Rounding to steps of s errs by s^2 / 12 in the mean of squares, each number by itself.
    """
    far = np.maximum(reach.high, -reach.low)
    size, top = (weight**2).sum(axis=1), 2 ** (bits - 1) - 1
    best = none = np.zeros(len(far), np.int64)
    least = plain = np.inf
    for limit in far.max() * np.exp2(-_GRID):
        if limit == 0:
            break
        shifts = np.ceil(np.log2(np.maximum(far / limit, 1.0)) - 1e-9).astype(np.int64)
        factor = np.exp2(shifts)
        step = ((reach.high / factor).max() - (reach.low / factor).min()) / _LEVELS
        columns = (np.abs(weight) * factor[:, None]).max(axis=0) / top
        error = (step * factor) ** 2 @ size + _OF_WEIGHTS * (columns**2).sum() * (reach.square / factor**2).sum()
        if not shifts.any():
            plain = error
        if error < least:
            best, least = shifts, error
    return best if least < WORTH * plain else none


def by_activation(place: Projection, rows: npt.NDArray[AnyNumber]) -> npt.NDArray[AnyNumber]:
    """[R, ..] in the order of `weight_matrix` -> in the order of the activation's channels."""
    found = np.empty_like(rows)
    found[place.order] = rows
    return found


def input_shifts(int8: Int8, layer: int, kind: BlockKind, place: Projection) -> IntArray | None:
    """int64[R] for a projection that reads the stream, in the order of its `weight_matrix`; None: nothing is moved."""
    moved = int8.smooth.get(kind, {}).get(layer)
    if not moved:
        return None
    shifts = np.zeros(place.rows.size, np.int64)
    shifts[list(moved)] = list(moved.values())
    return np.asarray(shifts[place.order])


def inner_shifts(int8: Int8, layer: int, kind: BlockKind, place: Projection) -> IntArray | None:
    """int64[R] for the output projection of a block, in the order of its `weight_matrix`; None: nothing is moved."""
    moved = int8.smooth.get("neurons", {}).get(layer) if kind == "feed_forward" else None
    if not moved:
        return None
    shifts = np.zeros(len(place.order), np.int64)
    for neuron, k in moved.items():
        shifts[list(place.positions[neuron])] = k
    return shifts


__all__ = [
    "Reach",
    "by_activation",
    "inner_shifts",
    "input_shifts",
    "read_by_products",
    "shifts_of",
    "smoothed",
]
