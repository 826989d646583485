"""Refit: bottom to top, each output projection anew on the pruned model's own inputs (METHOD.md 2.6).

    source    z, residual         what it computes for a token
    pruned    z', residual'       the same under the plan, with the weights found so far
    target    T = z W + b + (residual - residual')

so that each block also repairs what those below it broke. `compensation.refit` solves |z' W' + b' - T|^2 for the kept rows, held to
the level's weights. Before that, its inner projections (queries, keys, values, up, gate) are fitted to the source's own outputs
(`refit_inner.py`). Then the pruned model moves on by that stage, with the new weights. T is z W + b alone where a stage holds
several blocks, and where something other than the bias stands between projection and addition.

The source's part of T is worked out once (`Teacher`) and serves every plan. Hidden states and targets are kept as in `calibrate`; a
refit costs two runs of the pruned model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.calibrate import MEMORY_BYTES, Sample, last_readers, real_tokens, side_by_side, with_one
from axformer_onnx.compensation import RIDGE, refit
from axformer_onnx.refit_inner import read_together, solve_together
from axformer_onnx.runtime import run_once, run_session
from axformer_onnx.search.stages import Setting, StageSessions
from axformer_onnx.shelf import Shelf
from axformer_passes.inner import gone_classes
from axformer_passes.plan import Plan
from axformer_passes.projection import Inputs, Projection, inputs_of, projection
from axformer_passes.reweight import PARTS, Weights, expanded_weights, weight_key, written
from axformer_passes.shared import BlockKind, expanded, kind_of, shared_groups
from axformer_passes.weigh import writable

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_] | None
_SAME = 1e-3
"""Relative difference below which a branch is its projection and nothing else."""


class Teacher:
    """What the blocks of the source write, for every sample: the targets of refits; a context manager.

    of(sample, layer, kind)   float32[real tokens, D]: z W + b, and the residual with it where `corrected`
    read(sample, tensor)      float32[real tokens, R]: what inner projections read
    """

    def __init__(self, sessions: StageSessions, samples: Sequence[Sample], memory_bytes: int = MEMORY_BYTES) -> None:
        self.sessions, self.samples, self.corrected = sessions, samples, dict[tuple[int, BlockKind], bool]()
        self._targets, self._memory = Shelf(memory_bytes), memory_bytes

    def __enter__(self) -> Teacher:
        self._targets.__enter__()
        with Shelf(self._memory) as shelf:
            side = _Side(self.sessions, self.sessions.settings(Plan()), shelf)
            side.start(self.samples)
            for stage in self.sessions.stages:
                self._stage(side, stage.index)
        return self

    def __exit__(self, *error: object) -> None:
        self._targets.__exit__(*error)

    def of(self, sample: int, layer: int, kind: BlockKind) -> FloatArray:
        """float64[real tokens, D]."""
        name = f"{layer} {kind}"
        return self._targets.get(sample, [name])[name].astype(np.float64)

    def read(self, sample: int, tensor: str) -> Array:
        """float32[real tokens, R]."""
        return self._targets.get(sample, [f"read {tensor}"])[f"read {tensor}"]

    def blocks(self, number: int) -> list[tuple[int, BlockKind]]:
        """The blocks of a stage whose projection's input is made there."""
        stage = self.sessions.stages[number]
        made, examined = self.sessions.staged.made_in(stage), self.sessions.staged.examined
        blocks = [(b.layer, b.kind) for b in stage.blocks]
        return [x for x in blocks if writable(examined, *x) is not None and inputs_of(examined, *x).name in made]

    def _stage(self, side: _Side, number: int) -> None:
        ends = {block: _Ends.of(side, *block) for block in self.blocks(number)}
        reads = {one.inputs.name: one.inputs for block in ends for one in read_together(self.sessions, number, *block)}
        names = list(dict.fromkeys([*(name for one in ends.values() for name in one.names), *reads]))
        for sample, found in enumerate(side.through(number, names, len(self.samples))):
            for name, inputs in reads.items():
                tokens = real_tokens(inputs, found[name], self.samples[sample].real)
                self._targets.put(sample, {f"read {name}": tokens.astype(np.float32)})
            for block, one in ends.items():
                target = self._target(block, one, found, self.samples[sample].real, alone=len(ends) == 1)
                self._targets.put(sample, {f"{block[0]} {block[1]}": target.astype(np.float32)})

    def _target(
        self, block: tuple[int, BlockKind], ends: _Ends, found: Mapping[str, Array], real: Mask, *, alone: bool
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
    ridge: float = RIDGE,
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
    ridge: float = RIDGE,
    threads: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Array]:
    """As `refit_weights`, from the targets of a teacher."""
    from axformer_passes.apply import reweighted

    source = teacher.sessions
    anatomy = source.staged.examined.anatomy
    plan.validate(anatomy)
    start = _complete(source, plan, weights)
    tied = {(g.kind, i) for g in shared_groups(anatomy) for i in g.layers if plan.shared_weights == "together"}
    plan = expanded(plan, anatomy)
    model = reweighted(source.model, plan, start, run_once)
    pruned = StageSessions(model, provider=source.provider, threads=threads)
    with Shelf(memory_bytes) as shelf:
        side = _Side(pruned, pruned.settings(plan), shelf)
        side.start(teacher.samples)
        walk = _Walk(teacher, side, plan, ridge, dict(start))
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
                matrix = place.weight_matrix()[_kept(place, plan, layer.index, kind)]
                given = matrix, _or_zeros(place.bias_vector(), matrix.shape[1])
                for part, array in zip(PARTS, given, strict=True):
                    found.setdefault(weight_key(layer.index, kind, part), array.astype(np.float32))
    return found


def _kept(place: Projection, plan: Plan, layer: int, kind: BlockKind) -> IntArray:
    """Rows that the plan keeps, ascending."""
    dropped = (plan.heads if kind == "attention" else plan.neurons).get(layer, frozenset())
    rows = [row for unit, own in enumerate(place.positions) if unit not in dropped for row in own]
    return np.array(sorted(rows), dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class _Side:
    """One of the two models on its way through the stages."""

    sessions: StageSessions
    settings: list[Setting]
    shelf: Shelf

    def start(self, samples: Sequence[Sample]) -> None:
        """Put the feeds of all samples on the shelf."""
        for number, sample in enumerate(samples):
            self.shelf.put(number, {name: sample.feeds[name] for name in self.sessions.input_names})

    def through(self, number: int, names: Sequence[str], samples: int) -> Iterator[dict[str, Array]]:
        """Tensors of one stage as it is, sample by sample, each of which has then moved on."""
        stage, setting = self.sessions.stages[number], self.settings[number]
        made = self.sessions.staged.made_in(stage)
        own, earlier = [n for n in names if n in made], [n for n in names if n not in made]
        session = self.sessions.exposing(stage, setting.form, own)
        wanted = list(dict.fromkeys([*own, *stage.outputs]))

        def run(sample: int) -> dict[str, Array]:
            found = run_session(session, self._feeds(session, setting, sample), wanted)
            return {**found, **self.shelf.get(sample, earlier)}

        for sample, found in enumerate(side_by_side(self.sessions.workers, samples, run)):
            yield found
            self._put(number, sample, found)

    def inside(
        self, number: int, names: Sequence[str], samples: int, tensors: Mapping[str, Array]
    ) -> Iterator[dict[str, Array]]:
        """Tensors of one stage, sample by sample, with other initializers in it where `tensors` has them.

        Those of earlier stages come from the shelf.
        """
        stage, setting = self.sessions.stages[number], self.settings[number]
        made = self.sessions.staged.made_in(stage)
        own, earlier = [n for n in names if n in made], [n for n in names if n not in made]
        session = self.sessions.exposing(stage, setting.form, own, tensors) if own else None

        def run(sample: int) -> dict[str, Array]:
            found = run_session(session, self._feeds(session, setting, sample), own) if own else {}
            return {**found, **self.shelf.get(sample, earlier)}

        yield from side_by_side(self.sessions.workers, samples, run)

    def move(self, number: int, samples: int, tensors: Mapping[str, Array]) -> None:
        """All samples through a stage, with other initializers in it where `tensors` has them."""
        stage, setting = self.sessions.stages[number], self.settings[number]
        session = self.sessions.exposing(stage, setting.form, (), tensors)

        def run(sample: int) -> dict[str, Array]:
            return run_session(session, self._feeds(session, setting, sample), stage.outputs)

        for sample, found in enumerate(side_by_side(self.sessions.workers, samples, run)):
            self._put(number, sample, found)

    def _put(self, number: int, sample: int, found: Mapping[str, Array]) -> None:
        """Keep what later stages read, forget what none reads any more."""
        last = last_readers(self.sessions)
        outputs = self.sessions.stages[number].outputs
        self.shelf.put(sample, {n: found[n].copy() for n in outputs if last.get(n, -1) > number})
        self.shelf.drop(sample, [name for name, reader in last.items() if reader == number])

    def _feeds(self, session: Any, setting: Setting, sample: int) -> dict[str, Array]:
        names = [one.name for one in session.get_inputs() if one.name not in setting.feeds]
        return {**self.shelf.get(sample, names), **setting.feeds}


@dataclasses.dataclass(frozen=True)
class _Ends:
    """One block in one of the models: what its projection reads, the projection, and where it joins the residual stream."""

    inputs: Inputs
    place: Projection
    branch: str | None
    residual: str | None

    @classmethod
    def of(cls, side: _Side, layer: int, kind: BlockKind) -> _Ends:
        examined = side.sessions.staged.examined
        block = getattr(examined.anatomy.layers[layer], kind)
        return cls(inputs_of(examined, layer, kind), projection(examined, layer, kind), block.branch, block.residual)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(n for n in (self.inputs.name, self.branch, self.residual) if n is not None))

    def stream(self, tensor: Array, real: Mask) -> FloatArray:
        """float64[real tokens, D] of a tensor that lies as the branch does."""
        flat = tensor.astype(np.float64).reshape(-1, tensor.shape[-1])
        mask = self.inputs.arranged(real) if real is not None else None
        return flat if mask is None else flat[mask]


@dataclasses.dataclass
class _Walk:
    """The pruned model at a stage, and the weights so far."""

    teacher: Teacher
    pruned: _Side
    plan: Plan
    ridge: float
    weights: dict[str, Array]

    def stage(self, number: int, blocks: list[tuple[int, BlockKind]]) -> None:
        """Refit the blocks of one stage and move on."""
        changed: dict[str, Array] = {}
        for layer, kind in blocks:
            changed.update(self._inner(number, layer, kind, changed))
            own = _Ends.of(self.pruned, layer, kind)
            kept = _kept(own.place, self.plan, layer, kind)
            keys = [weight_key(layer, kind, part) for part in PARTS]
            held = [self.weights[key] for key in keys]
            solved = self._solve(number, (layer, kind), own, kept, held, changed)
            self.weights.update((k, array.astype(np.float32)) for k, array in zip(keys, solved, strict=True))
            changed.update(written(own.place, "rows", kept, *(self.weights[key] for key in keys)))
        self.pruned.move(number, len(self.teacher.samples), changed)

    def _inner(self, number: int, layer: int, kind: BlockKind, changed: Mapping[str, Array]) -> dict[str, Array]:
        """Refit what the block reads the stream with; the initializers that this changes."""
        examined = self.pruned.sessions.staged.examined
        gone = gone_classes(examined, self.plan, layer, getattr(examined.anatomy.layers[layer], kind))
        both = (read_together(side, number, layer, kind) for side in (self.pruned.sessions, self.teacher.sessions))
        tensors: dict[str, Array] = {}
        for own, source in zip(*both, strict=True) if gone is not None else ():
            kept = [one.kept(gone or ()) for one in own.members]
            solved = solve_together(
                source.members, kept, self._pairs(number, own.inputs, source.inputs, changed), self.ridge
            )
            for one, columns in zip(own.members, kept, strict=True):
                weight, bias = solved.get(one.role, (None, None))
                for part, array in zip(PARTS, (weight, bias), strict=True):
                    if array is not None:
                        self.weights[weight_key(layer, kind, part, one.role)] = array.astype(np.float32)
                if weight is not None:
                    tensors.update(written(one.place, "columns", columns, weight, bias))
        return tensors

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
        own: _Ends,
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
                target -= own.stream(after[str(own.residual)], real)
            z = with_one(real_tokens(own.inputs, after[own.inputs.name], real)[:, kept]).astype(np.float32)
            if len(z):  # products of one sample in float32, their sum in float64: the ridge is far above that rounding
                lower += ssyrk(1.0, z.T, lower=1)
                cross += z.T @ target.astype(np.float32)
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
