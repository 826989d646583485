"""One of the two models of a refit on its way through the stages, and where a block of it begins and ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.compensate.moments import Sample, last_readers, side_by_side
from axformer_onnx.runtime import run_session
from axformer_passes.blocks import Inputs, Projection, inputs_of, projection

if TYPE_CHECKING:
    from axformer_onnx.runtime import Shelf
    from axformer_onnx.scoring import Setting, StageSessions
    from axformer_passes.blocks import BlockKind

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_] | None


@dataclasses.dataclass(frozen=True)
class Side:
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
        own, earlier = self._where(number, names)
        wanted = list(dict.fromkeys([*own, *stage.outputs]))
        session = self.sessions.part(stage, setting.form, wanted)

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

        No more is computed than they need. Those of earlier stages come from the shelf.
        """
        stage, setting = self.sessions.stages[number], self.settings[number]
        own, earlier = self._where(number, names)
        session = self.sessions.part(stage, setting.form, own, tensors=tensors) if own else None

        def run(sample: int) -> dict[str, Array]:
            found = run_session(session, self._feeds(session, setting, sample), own) if own else {}
            return {**found, **self.shelf.get(sample, earlier)}

        yield from side_by_side(self.sessions.workers, samples, run)

    def move(self, number: int, samples: int, tensors: Mapping[str, Array], given: Sequence[str] = ()) -> None:
        """All samples through a stage, with other initializers in it where `tensors` has them.

        given   tensors of its inside that are on the shelf: the stage goes on from them, and then they are dropped
        """
        stage, setting = self.sessions.stages[number], self.settings[number]
        given = [name for name in given if name not in stage.outputs]
        session = self.sessions.part(stage, setting.form, stage.outputs, given=given, tensors=tensors)

        def run(sample: int) -> dict[str, Array]:
            return run_session(session, self._feeds(session, setting, sample), stage.outputs)

        for sample, found in enumerate(side_by_side(self.sessions.workers, samples, run)):
            self.shelf.drop(sample, given)
            self._put(number, sample, found)

    def keep(self, number: int, sample: int, tensors: Mapping[str, Array]) -> None:
        """Put tensors of the inside of a stage on the shelf, for `move`."""
        outputs = self.sessions.stages[number].outputs
        self.shelf.put(sample, {name: array.copy() for name, array in tensors.items() if name not in outputs})

    def _where(self, number: int, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """(those that a stage makes, those of earlier ones)."""
        made = self.sessions.staged.made_in(self.sessions.stages[number])
        return [n for n in names if n in made], [n for n in names if n not in made]

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
class Ends:
    """One block in one of the models: what its projection reads, the projection, and where it joins the residual stream.

    residual   None, too, where it is the branch of a parallel block, which may be made after this one
    """

    inputs: Inputs
    place: Projection
    branch: str | None
    residual: str | None

    @classmethod
    def of(cls, side: Side, layer: int, kind: BlockKind) -> Ends:
        examined = side.sessions.staged.examined
        block = getattr(examined.anatomy.layers[layer], kind)
        parallel = {one.branch for each in examined.anatomy.layers for one in each.blocks}
        residual = None if block.residual in parallel else block.residual
        return cls(inputs_of(examined, layer, kind), projection(examined, layer, kind), block.branch, residual)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(n for n in (self.inputs.name, self.branch, self.residual) if n is not None))

    def stream(self, tensor: Array, real: Mask) -> Array:
        """[real tokens, D] of a tensor that lies as the branch does."""
        flat = tensor.reshape(-1, tensor.shape[-1])
        mask = self.inputs.arranged(real) if real is not None else None
        return flat if mask is None else flat[mask]


__all__ = ["Ends", "Mask", "Side"]
