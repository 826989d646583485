"""What a compensated search chooses from: blocks, each with a ladder of levels and the weights of every level.

    unit    one attention or feed-forward block; where layers share their weights and a plan says `together`, all of them at once
    rung    so many heads (neurons) kept, and which; rung 0 is the block as it is, the last one keeps its mean output alone;
            where integers are wanted the same ladder again behind it, with projections that are products of integers
    choice  a rung for every unit, and hard attention for some layers

The weights come from `compensation.levels` on calibration moments, one block at a time, and go to a shelf (`shelf.py`): in
memory up to a bound, beyond it in files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.compensate import Moments, Sample, calibrate, calibrated_blocks, levels
from axformer_onnx.errors import RecogniseError, UsageError
from axformer_onnx.runtime import Shelf
from axformer_passes.blocks import BlockKind, linear_parameters, linears, shared_groups
from axformer_passes.cut import weight_key
from axformer_passes.integers import inner_shifts, least_opset, nearest, simulated
from axformer_passes.plan import Hard, Plan, SharedWeights
from axformer_passes.precision import Int8
from axformer_passes.stages import writable

if TYPE_CHECKING:
    from axformer_onnx.records import FloatArray
    from axformer_onnx.scoring import StageSessions
    from axformer_passes.anatomy import Anatomy
    from axformer_passes.blocks import Projection

Array = npt.NDArray[Any]
_SHRINK = 0.88
"""From one rung of neurons to the next."""
_STEPS = ((768, 32), (256, 16), (64, 8))
"""(neurons from which on, multiple): kernels work on whole vectors, so widths between two multiples cost as the next one."""


@dataclasses.dataclass(frozen=True)
class Rung:
    """kept: heads (neurons) that stay, ascending. error: mean over the calibration tokens of |y' - y|^2, y the block's output,
    before anything is rounded. int8: are its projections products of integers?"""

    kept: tuple[int, ...]
    error: float
    int8: bool = False


@dataclasses.dataclass(frozen=True)
class Unit:
    """One block (of several layers that share it) with its ladder; `rungs[0]` keeps all `size` heads or neurons."""

    kind: BlockKind
    layers: tuple[int, ...]
    size: int
    rungs: tuple[Rung, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Heads (neurons) kept, by rung: descending in each ladder."""
        return tuple(len(rung.kept) for rung in self.rungs)

    @property
    def height(self) -> int:
        """Rungs of one ladder."""
        return sum(not rung.int8 for rung in self.rungs)

    @property
    def ladders(self) -> tuple[range, ...]:
        """The rungs of each ladder: in float32, then, where there are any, in integers."""
        return tuple(range(start, start + self.height) for start in range(0, len(self.rungs), self.height))

    def is_whole(self, rung: int) -> bool:
        """Does it keep all heads (neurons), with the source's own weights?"""
        return rung % self.height == 0


@dataclasses.dataclass(frozen=True)
class Choice:
    """A rung for every unit, and hard attention by layer, ascending."""

    rungs: tuple[int, ...]
    hard: tuple[tuple[int, Hard], ...] = ()

    def with_rung(self, unit: int, rung: int) -> Choice:
        """The same with another rung for one unit."""
        return dataclasses.replace(self, rungs=(*self.rungs[:unit], rung, *self.rungs[unit + 1 :]))

    def with_hard(self, layer: int, hard: Hard) -> Choice:
        """The same with hard attention in one more layer."""
        return dataclasses.replace(self, hard=tuple(sorted({**dict(self.hard), layer: hard}.items())))


def ladder(kind: BlockKind, size: int) -> tuple[int, ...]:
    """How many heads or neurons the rungs keep: descending from `size` to 0."""
    if kind == "attention" and size <= 16:
        return tuple(range(size, -1, -1))
    step = next((multiple for least, multiple in _STEPS if size >= least), 1) if kind == "feed_forward" else 1
    wanted = {round(size * _SHRINK**i / step) * step for i in range(40)}
    return tuple(sorted({size, 0, *(n for n in wanted if 0 < n < size)}, reverse=True))


class Levels:
    """The units of a model and the weights of their rungs."""

    def __init__(
        self,
        units: Sequence[Unit],
        places: Mapping[tuple[BlockKind, int], Projection],
        shelf: Shelf,
        int8: Int8 | None = None,
    ) -> None:
        self.units, self.int8 = tuple(units), int8
        self._places, self._shelf = places, shelf

    def place(self, unit: int) -> Projection:
        """The projection of a unit (of its first layer)."""
        one = self.units[unit]
        return self._places[one.kind, one.layers[0]]

    def weights(self, unit: int, rung: int) -> tuple[Array, Array]:
        """(weight[K, D], bias[D]) of a rung, float32, not rounded; of one that is whole the source's own."""
        rung %= self.units[unit].height
        if rung == 0:
            place = self.place(unit)
            bias = place.bias_vector()
            own = place.weight_matrix().astype(np.float32)
            return own, np.zeros(own.shape[1], np.float32) if bias is None else bias.astype(np.float32)
        found = self._shelf.get(_number(unit, rung), ["weight", "bias"])
        return found["weight"], found["bias"]

    def full_weight(self, unit: int, rung: int) -> tuple[Array, Array]:
        """(weight[R, D] with zeros at the rows that go, bias[D]); on its grid, where the rung is one of integers."""
        weight, bias = self.weights(unit, rung)
        place = self.place(unit)
        rows = sorted(row for i in self.units[unit].rungs[rung].kept for row in place.positions[i])
        full = np.zeros((len(place.order), weight.shape[1]), np.float32)
        full[rows] = weight
        if self.int8 is not None and self.units[unit].rungs[rung].int8:
            shifts = inner_shifts(self.int8, self.units[unit].layers[0], self.units[unit].kind, place)
            full = nearest(full, self.int8.bits, shifts).astype(np.float32)
        return full, bias

    def plan(self, choice: Choice, start: Plan) -> tuple[Plan, dict[str, Array]]:
        """`start` with a choice carried out, and the weights that go with it (`reweight.weight_key`)."""
        plan, weights = dataclasses.replace(start, int8=self._integers(choice)), dict[str, Array]()
        for number, (unit, rung) in enumerate(zip(self.units, choice.rungs, strict=True)):
            if unit.is_whole(rung):
                continue
            gone = set(range(unit.size)) - set(unit.rungs[rung].kept)
            layers = unit.layers[:1] if start.shared_weights == "together" else unit.layers
            for layer in layers:
                without = plan.without_heads if unit.kind == "attention" else plan.without_neurons
                plan = without(layer, gone)
                weight, bias = self.weights(number, rung)
                weights[weight_key(layer, unit.kind, "weight")] = weight
                weights[weight_key(layer, unit.kind, "bias")] = bias
        for layer, hard in choice.hard:
            plan = plan.with_hard_attention(layer, hard.k, hard.mode)
        return plan, weights

    def _integers(self, choice: Choice) -> Int8 | None:
        """Products of integers: the blocks that have something left and are on such a rung. None where all is as it was."""
        blocks = [
            (layer, unit.kind)
            for unit, rung in zip(self.units, choice.rungs, strict=True)
            for layer in unit.layers
            if unit.rungs[rung].int8 and unit.rungs[rung].kept
        ]
        changed = blocks or choice.hard or not all(map(Unit.is_whole, self.units, choice.rungs))
        return self.int8.with_blocks(blocks).without_spare_scales() if self.int8 is not None and changed else None


def build_levels(
    sessions: StageSessions,
    samples: Sequence[Sample],
    shelf: Shelf,
    *,
    shared: SharedWeights = "separate",
    int8: Int8 | None = None,
    whole: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Levels:
    """Calibrate, and solve every rung of every block whose projection can be written.

    int8    what plans say about integers, its blocks left open; None: there are none
    whole   nothing is removed: the only rung of a ladder is the first, and no sample is looked at

    Raises: DataError, RecogniseError as `calibrate`.
    """
    units, places = list[Unit](), dict[tuple[BlockKind, int], Any]()
    for layers, kind, matrix in _moments(sessions, None if whole else samples, shared):
        place = writable(sessions.staged.examined, layers[0], kind)
        if place is None or place.bias is None:
            continue
        progress(f"layer {layers[0]}, {kind.replace('_', '-')}")
        counts = ladder(kind, len(place.positions))[: 1 if whole else None]
        solved = (
            [] if whole else levels(place.weight_matrix(), place.bias_vector(), matrix, place.positions, counts[1:])
        )
        for rung, level in enumerate(solved, start=1):
            pair = {"weight": level.weight.astype(np.float32), "bias": level.bias.astype(np.float32)}
            shelf.put(_number(len(units), rung), pair)
        rungs = (Rung(tuple(range(counts[0])), 0.0), *(Rung(level.kept, level.cost) for level in solved))
        integers = [dataclasses.replace(rung, int8=True) for rung in rungs if int8 is not None]
        units.append(Unit(kind, layers, counts[0], (*rungs, *integers)))
        places[kind, layers[0]] = place
    return Levels(units, places, shelf, int8)


def round_stages(sessions: StageSessions, levels: Levels) -> None:
    """Give sessions those of the model that computes as integers will in all blocks that are units (`StageSessions.rounded`).

    Raises: UsageError where the model is too old or not in float32, RecogniseError where its stages are others.
    """
    from axformer_onnx.runtime import run_once

    assert levels.int8 is not None
    opset, least = sessions.staged.examined.anatomy.opset, least_opset(levels.int8)
    if opset < least:
        form = f" --activations {levels.int8.activations}" if levels.int8.is_static else ""
        raise UsageError(
            f"--quantize int8{form} needs operator set {least} or later, the model has {opset}; export it anew"
        )
    blocks = ((layer, unit.kind) for unit in levels.units for layer in unit.layers)
    int8 = levels.int8.with_blocks(blocks).products_alone()
    model = simulated(sessions.staged.examined.labelling.model, int8, run_once, examined=sessions.staged.examined)
    rounding = "QuantizeLinear" if levels.int8.is_static else "DynamicQuantizeLinear"
    if not any(node.op_type == rounding for node in model.graph):
        raise UsageError(
            "--quantize int8: no product of this model can be made of integers (is it in half precision, or quantised with "
            "operators that have no form in float32?); optimize the float32 model, or leave out --quantize"
        )
    rounded = type(sessions)(model, provider=sessions.provider, threads=sessions.workers)
    if [stage.outputs for stage in rounded.stages] != [stage.outputs for stage in sessions.stages]:
        raise RecogniseError(
            "the model cannot be cut into the same stages once its products are rounded; leave out --quantize"
        )
    sessions.rounded = rounded


def _moments(
    sessions: StageSessions, samples: Sequence[Sample] | None, shared: SharedWeights
) -> Iterator[tuple[tuple[int, ...], BlockKind, Array]]:
    """(layers, kind, H) of every unit; H of layers that share their weights is the sum over them, and empty without samples."""
    groups = shared_groups(sessions.staged.examined.anatomy) if shared == "together" else ()
    group_of = {(group.kind, layer): group for group in groups for layer in group.layers}
    sums: dict[tuple[BlockKind, tuple[int, ...]], list[Moments]] = {}
    none = (Moments(*block, np.zeros((0, 0)), 0) for block in calibrated_blocks(sessions))
    for found in none if samples is None else calibrate(sessions, samples):
        group = group_of.get((found.kind, found.layer))
        if group is None:
            yield (found.layer,), found.kind, found.matrix
            continue
        waiting = sums.setdefault((group.kind, group.layers), [])
        waiting.append(found)
        if len(waiting) == len(group.layers):
            yield group.layers, group.kind, np.sum([one.matrix for one in waiting], axis=0)
            waiting.clear()


def _number(unit: int, rung: int) -> int:
    return unit * 1000 + rung


def bytes_by_rung(anatomy: Anatomy, units: Sequence[Unit]) -> list[FloatArray]:
    """Bytes of every rung by unit: weights in float32 or in integers with a scale a column, biases in float32.

    What is stored in integers and multiplied in float32 counts as float32: or nothing would become a product of integers.
    """
    found = []
    for unit in units:
        block = getattr(anatomy.layers[unit.layers[0]], unit.kind)
        *inner, last = linears(block)
        per_unit = (sum(map(linear_parameters, inner)) + last.rows * last.columns) / unit.size
        each = np.array([1.0 if rung.int8 else 4.0 for rung in unit.rungs])
        found.append(each * np.array(unit.counts) * per_unit + 4.0 * last.columns)
    return found


__all__ = ["Choice", "Levels", "Rung", "Unit", "build_levels", "bytes_by_rung", "ladder", "round_stages"]
