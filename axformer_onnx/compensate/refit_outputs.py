"""Refit: bottom to top, each output projection anew on the pruned model's own inputs (docs/method.md 2.6).

    source    z, residual         what it computes for a token
    pruned    z', residual'       the same under the plan, with the weights found so far
    target    T = z W + b + (residual - residual')

so that each block also repairs what those below it broke. `compensation.refit` solves |z' W' + b' - T|^2 for the kept rows, held to
the level's weights. Before that, its inner projections (queries, keys, values, up, gate) are fitted to the source's own outputs
(`refit_inner.py`). Then the pruned model moves on by that stage, with the new weights. T is z W + b alone where a stage holds
several blocks, and where something other than the bias stands between projection and addition.

The source's part of T is worked out once (`Teacher`) and serves every plan. Hidden states and targets are kept as in `calibrate`; a
refit costs one run of the pruned model (`refit_cut.py`), which stops at what each projection reads and goes on from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.compensate.algebra import refit
from axformer_onnx.compensate.moments import MEMORY_BYTES, Sample, real_tokens, with_one
from axformer_onnx.compensate.refit_cut import pruned_sessions
from axformer_onnx.compensate.refit_inner import Together, read_together, same_in, solve_together
from axformer_onnx.compensate.refit_side import Ends, Mask, Side
from axformer_onnx.errors import RecogniseError
from axformer_onnx.runtime import Shelf
from axformer_onnx.scoring import StageSessions
from axformer_passes.blocks import BlockKind, Inputs, expanded, gone_classes, inputs_of, kind_of, shared_groups
from axformer_passes.cut import PARTS, Weights, expanded_weights, kept_rows, weight_key, written
from axformer_passes.integers import inner_shifts, input_shifts, nearest
from axformer_passes.plan import Plan
from axformer_passes.stages import writable

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.blocks import Projection
    from axformer_passes.precision import Int8

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_SAME = 1e-3
"""Relative difference below which a branch is its projection and nothing else."""


class Teacher:
    """What the blocks of the source write, for every sample: the targets of refits; a context manager.

    known                     shapes of weights by name that inner projections may have, where a plan will be carried out on another
                              model than this one; None: any
    of(sample, layer, kind)   float32[real tokens, D]: z W + b, and the residual with it where `corrected`
    read(sample, tensor)      float32[real tokens, R]: what inner projections read
    """

    def __init__(
        self,
        sessions: StageSessions,
        samples: Sequence[Sample],
        memory_bytes: int = MEMORY_BYTES,
        known: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.sessions, self.samples, self.corrected = sessions, samples, dict[tuple[int, BlockKind], bool]()
        self.known, self._unreadable = known, set[str]()
        self._targets, self._memory = Shelf(memory_bytes), memory_bytes

    def __enter__(self) -> Teacher:
        self._targets.__enter__()
        with Shelf(self._memory) as shelf:
            side = Side(self.sessions, self.sessions.settings(Plan()), shelf)
            side.start(self.samples)
            for stage in self.sessions.stages:
                self._stage(side, stage.index)
        return self

    def __exit__(self, *error: object) -> None:
        self._targets.__exit__(*error)

    def of(self, sample: int, layer: int, kind: BlockKind) -> Array:
        """float32[real tokens, D]."""
        name = f"{layer} {kind}"
        return self._targets.get(sample, [name])[name]

    def read_together(self, number: int, layer: int, kind: BlockKind) -> list[Together]:
        """Inner projections that may be refitted."""
        found = read_together(self.sessions, number, layer, kind, self.known)
        return [one for one in found if one.inputs.name not in self._unreadable]

    def read(self, sample: int, tensor: str) -> Array:
        """float32[real tokens, R]."""
        return self._targets.get(sample, [f"read {tensor}"])[f"read {tensor}"]

    def blocks(self, number: int) -> list[tuple[int, BlockKind]]:
        """The blocks of a stage whose projection's input is made there."""
        stage = self.sessions.stages[number]
        made, examined = self.sessions.staged.made_in(stage), self.sessions.staged.examined
        blocks = [(b.layer, b.kind) for b in stage.blocks]
        return [x for x in blocks if writable(examined, *x) is not None and inputs_of(examined, *x).name in made]

    def _stage(self, side: Side, number: int) -> None:
        ends = {block: Ends.of(side, *block) for block in self.blocks(number)}
        reads = {one.inputs.name: one.inputs for block in ends for one in self.read_together(number, *block)}
        names = list(dict.fromkeys([*(name for one in ends.values() for name in one.names), *reads]))
        for sample, found in enumerate(side.through(number, names, len(self.samples))):
            for name, inputs in reads.items():
                self._note(sample, name, inputs, found[name])
            for block, one in ends.items():
                target = self._target(block, one, found, self.samples[sample].real, alone=len(ends) == 1)
                self._targets.put(sample, {f"{block[0]} {block[1]}": target.astype(np.float32)})

    def _note(self, sample: int, name: str, inputs: Inputs, tensor: Array) -> None:
        """Keep what inner projections read, unless it cannot be told which of its tokens are padding."""
        if name not in self._unreadable:
            try:
                tokens = real_tokens(inputs, tensor, self.samples[sample].real)
            except RecogniseError:
                self._unreadable.add(name)
            else:
                self._targets.put(sample, {f"read {name}": tokens.astype(np.float32)})

    def _target(
        self, block: tuple[int, BlockKind], ends: Ends, found: Mapping[str, Array], real: Mask, *, alone: bool
    ) -> FloatArray:
        z = with_one(real_tokens(ends.inputs, found[ends.inputs.name], real))
        matrix = ends.place.weight_matrix()
        target: FloatArray = z @ np.vstack([matrix, _or_zeros(ends.place.bias_vector(), matrix.shape[1])])
        if block not in self.corrected:
            self.corrected[block] = (
                alone and ends.residual is not None and _alike(target, ends.stream(found[str(ends.branch)], real))
            )
        return target + ends.stream(found[str(ends.residual)], real) if self.corrected[block] else target


def refit_weights(
    model: ir.Model | StageSessions,
    plan: Plan,
    weights: Weights,
    samples: Sequence[Sample],
    *,
    ridge: float | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Array]:
    """New float32 weights of every block that `plan` leaves, starting from `weights` (else the source's), by their names.

    model   the source, or its sessions where the caller has them

    Projections that cannot be written (quantised ones) and layers whose shared weights go together are left as given.

    Raises: PlanError for weights that do not fit, DataError, RecogniseError as `calibrate`.
    """
    source = model if isinstance(model, StageSessions) else StageSessions(model, provider=provider, threads=threads)
    plan.validate(source.staged.examined.anatomy)
    with Teacher(source, samples, memory_bytes // 2) as teacher:
        return refit_from(teacher, plan, weights, ridge=ridge, threads=threads, memory_bytes=memory_bytes // 2)


def refit_from(
    teacher: Teacher,
    plan: Plan,
    weights: Weights,
    *,
    ridge: float | None = None,
    threads: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Array]:
    """As `refit_weights`, from the targets of a teacher."""
    source = teacher.sessions
    anatomy = source.staged.examined.anatomy
    plan.validate(anatomy)
    start = _complete(source, plan, weights)
    tied = {(g.kind, i) for g in shared_groups(anatomy) for i in g.layers if plan.shared_weights == "together"}
    plan = expanded(plan, anatomy)
    pruned, rest = pruned_sessions(source, plan, start, threads)
    with Shelf(memory_bytes) as shelf:
        side = Side(pruned, pruned.settings(rest), shelf)
        side.start(teacher.samples)
        walk = _Walk(teacher, side, plan, rest, ridge, dict(start))
        for stage in source.stages:
            blocks = [(layer, kind) for layer, kind in teacher.blocks(stage.index) if (kind, layer) not in tied]
            walk.stage(stage.index, [x for x in blocks if weight_key(*x, "weight") in start])
    return walk.weights


def _complete(source: StageSessions, plan: Plan, weights: Weights) -> dict[str, Array]:
    """`weights`, and where they say nothing the source's own at the kept rows, with biases of zeros where it has none."""
    examined = source.staged.examined
    found = expanded_weights(weights, plan, examined.anatomy)
    plan = expanded(plan, examined.anatomy)
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            kind = kind_of(block)
            removed = plan.attention_blocks if kind == "attention" else plan.feed_forward_blocks
            place = None if layer.index in removed else writable(examined, layer.index, kind)
            if place is not None:
                matrix = place.weight_matrix()[kept_rows(place, plan, layer.index, kind)]
                given = matrix, _or_zeros(place.bias_vector(), matrix.shape[1])
                for part, array in zip(PARTS, given, strict=True):
                    found.setdefault(weight_key(layer.index, kind, part), array.astype(np.float32))
    return found


@dataclasses.dataclass
class _Walk:
    """The pruned model at a stage, and the weights so far.

    plan, rest   as it is for the source, and what of it the pruned model leaves to gates
    """

    teacher: Teacher
    pruned: Side
    plan: Plan
    rest: Plan
    ridge: float | None
    weights: dict[str, Array]

    def stage(self, number: int, blocks: list[tuple[int, BlockKind]]) -> None:
        """Refit the blocks of one stage and move on."""
        changed, read = dict[str, Array](), list[str]()
        for layer, kind in blocks:
            changed.update(self._inner(number, layer, kind, changed))
            own = Ends.of(self.pruned, layer, kind)
            kept = kept_rows(own.place, self.rest, layer, kind)
            keys = [weight_key(layer, kind, part) for part in PARTS]
            held = [self.weights[key] for key in keys]
            solved = self._solve(number, (layer, kind), own, kept, held, changed)
            read.append(own.inputs.name)
            self.weights.update((k, array.astype(np.float32)) for k, array in zip(keys, solved, strict=True))
            weight, bias = (self.weights[key] for key in keys)
            changed.update(
                written(own.place, "rows", kept, self._rounded_output(own.place, kept, layer, kind, weight), bias)
            )
        self.pruned.move(number, len(self.teacher.samples), changed, read)

    def _inner(self, number: int, layer: int, kind: BlockKind, changed: Mapping[str, Array]) -> dict[str, Array]:
        """Refit what the block reads the stream with; the initializers that this changes."""
        gone, rest = (
            gone_classes(examined, plan, layer, getattr(examined.anatomy.layers[layer], kind))
            for examined, plan in (
                (self.teacher.sessions.staged.examined, self.plan),
                (self.pruned.sessions.staged.examined, self.rest),
            )
        )
        tensors: dict[str, Array] = {}
        for source in self.teacher.read_together(number, layer, kind) if gone is not None else ():
            own = same_in(self.pruned.sessions, source, layer, kind)
            if own is None:
                continue
            solved = solve_together(
                source.members,
                [one.kept(gone or ()) for one in source.members],
                self._pairs(number, own.inputs, source.inputs, changed),
                self.ridge,
            )
            for one in own.members:
                weight, bias = solved.get(one.role, (None, None))
                for part, array in zip(PARTS, (weight, bias), strict=True):
                    if array is not None:
                        self.weights[weight_key(layer, kind, part, one.role)] = array.astype(np.float32)
                if weight is not None:
                    shifts = input_shifts(self.int8, layer, kind, one.place) if self.int8 is not None else None
                    seen = self._rounded(layer, kind, weight, shifts)
                    tensors.update(written(one.place, "columns", one.kept(rest or ()), seen, bias))
        return tensors

    @cached_property
    def int8(self) -> Int8 | None:
        """As the pruned model has it: what is gone from its graph has no number there."""
        gone = {layer: ids - self.rest.neurons.get(layer, frozenset()) for layer, ids in self.plan.neurons.items()}
        return self.plan.int8.without_neurons(gone) if self.plan.int8 is not None else None

    def _rounded_output(self, place: Projection, kept: IntArray, layer: int, kind: BlockKind, weight: Array) -> Array:
        shifts = inner_shifts(self.int8, layer, kind, place) if self.int8 is not None else None
        return self._rounded(layer, kind, weight, None if shifts is None else shifts[kept])

    def _rounded(self, layer: int, kind: BlockKind, weight: Array, shifts: IntArray | None) -> Array:
        """What the pruned model multiplies with: `weight` on its grid, where the plan makes integers of it."""
        bits = self.int8.bits_of(layer, kind) if self.int8 is not None else None
        if self.int8 is None or bits is None:
            return weight
        return nearest(weight, bits, shifts if self.int8.has(layer, kind) else None)

    def _pairs(
        self, number: int, own: Inputs, source: Inputs, changed: Mapping[str, Array]
    ) -> Iterator[tuple[Array, Array]]:
        """Per sample what an inner projection reads here, and in the source."""
        samples = self.teacher.samples
        for i, found in enumerate(self.pruned.inside(number, [own.name], len(samples), changed)):
            yield real_tokens(own, found[own.name], samples[i].real), self.teacher.read(i, source.name)

    def _solve(
        self,
        number: int,
        block: tuple[int, BlockKind],
        own: Ends,
        kept: IntArray,
        held: list[Array],
        changed: Mapping[str, Array],
    ) -> tuple[FloatArray, FloatArray]:
        """The sums over all samples, then the ridge regression."""
        from scipy.linalg.blas import ssyrk

        size, samples = len(kept) + 1, self.teacher.samples
        corrected = self.teacher.corrected[block]
        lower, cross = np.zeros((size, size), order="F"), np.zeros((size, len(held[1])))
        names = [own.inputs.name, *([str(own.residual)] if corrected else [])]
        for i, after in enumerate(self.pruned.inside(number, names, len(samples), changed)):
            target, real = self.teacher.of(i, *block), samples[i].real
            if corrected:
                target = target - own.stream(after[str(own.residual)], real).astype(np.float32)
            z = with_one(real_tokens(own.inputs, after[own.inputs.name], real)[:, kept], np.float32)
            self.pruned.keep(number, i, {own.inputs.name: after[own.inputs.name]})
            if len(z):  # products of one sample in float32, their sum in float64: the ridge is far above that rounding
                lower += ssyrk(1.0, z.T, lower=1)
                cross += z.T @ target
        inputs = lower + np.tril(lower, -1).T
        return refit(inputs, cross, held[0], held[1], self.ridge)


def _alike(target: FloatArray, branch: FloatArray) -> bool:
    """Is the branch the projection and nothing else?"""
    if target.shape != branch.shape:
        return False
    return bool(np.abs(target - branch).max(initial=0) <= _SAME * max(np.abs(target).max(initial=0), 1e-6))


def _or_zeros(bias: FloatArray | None, columns: int) -> FloatArray:
    return np.zeros(columns) if bias is None else bias


__all__ = ["Teacher", "refit_from", "refit_weights"]
