"""How far a choice is from the unpruned model: divergence of its outputs from the source's own, row by row.

    as the task's kind defines it (`tasks.Kind.divergence`), for classification KL(p_full || p) of one row in nats: it needs no
    labels, and its noise is far below that of a loss

Choices are scored through stages (`scoring/stage_scorer.py`): weights of their rungs are run-time inputs, so no graph is edited,
and what lies before the first changed block is reused. Rows are drawn with weights (`row_sampling.py`), by which their divergences
are multiplied. They come in *parts*, drawn at random and of equal size, so that a candidate which is clearly worse on the first
parts need not be evaluated on the rest:

    race   with d the row-wise difference from the incumbent on n rows seen so far of N: lost as soon as

               mean(d) > z SE(d) sqrt(1 - n / N)

The root is the finite population correction: the verdict is about these N rows, and the more of them were seen, the less the rest
can turn it. z = RACE_Z keeps it that of all rows in all but a few of a thousand cases (`tests/test_divergence.py`), however many
times it is looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray
from axformer_onnx.scoring import Setting, StageScorer, StageSessions
from axformer_onnx.search.compensated.levels import Choice, Levels
from axformer_passes.plan import Plan
from axformer_passes.stages import weight_feeds, writable

if TYPE_CHECKING:
    from axformer_onnx.data import Encoded, Rows
    from axformer_onnx.scoring import Reading
    from axformer_onnx.tasks import Kind
    from axformer_passes.stages import Form, Stage

Array = npt.NDArray[Any]
RACE_Z = 2.75
RACE_ROWS = 48
"""Fewest rows on which a race is decided: below, a standard error is not to be trusted."""
_FEEDS_BYTES = 2**28
_HOPELESS = 1e9  # nats of a row, where the outputs are not finite


@dataclasses.dataclass(frozen=True)
class Race:
    """divergence: float64[rows seen]; finished: all rows were seen."""

    divergence: FloatArray
    finished: bool

    @property
    def mean(self) -> float:
        """Mean over the rows seen."""
        return float(self.divergence.mean())


def is_lost(candidate: FloatArray, incumbent: FloatArray, rows: int, z: float = RACE_Z) -> bool:
    """Is the candidate's mean above the incumbent's by more than z standard errors of the paired difference?

    candidate, incumbent   float64[rows seen]; rows: how many there are
    """
    d = candidate - incumbent
    if len(d) < RACE_ROWS:
        return False
    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d)) * math.sqrt(1 - len(d) / rows)
    return mean > z * error and mean > 0


class Divergence:
    """Scores choices on fixed parts of rows.

    parts              one scorer for each part
    kind               of the task: what a divergence is
    weights            float64[rows] for each part, with mean 1 over all that could be drawn; without: 1 for every row
    stages_elsewhere   stages x rows that workers evaluated for this one
    """

    def __init__(
        self,
        sessions: StageSessions,
        levels: Levels,
        parts: Sequence[StageScorer],
        *,
        kind: Kind,
        weights: Sequence[FloatArray] | None = None,
    ) -> None:
        self.sessions, self.levels, self.parts, self._kind = sessions, levels, tuple(parts), kind
        self.weights = [np.ones(part.rows) for part in self.parts] if weights is None else list(weights)
        self._unit_at = {(u.kind, i): n for n, u in enumerate(levels.units) for i in u.layers}
        self._feeds: dict[tuple[int, int, int], dict[str, Array]] = {}
        plain = sessions.settings(Plan())
        self._source = [part.outputs(plain) for part in self.parts]
        self.stages_elsewhere = 0

    @property
    def rows(self) -> int:
        """Rows in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def stages_run(self) -> int:
        """Stages x rows evaluated so far."""
        return sum(part.stages_run for part in self.parts) + self.stages_elsewhere

    def forget(self) -> None:
        """Let go of what only makes the next question faster: hidden states, sessions, weights of rungs."""
        for part in self.parts:
            part.forget()
        self.sessions.forget()
        self._feeds.clear()

    def of(self, choice: Choice, part: int) -> FloatArray:
        """float64[rows of the part], weighted."""
        found = self.parts[part].outputs(self.settings(choice))
        if not np.isfinite(found).all():
            return np.full(len(found), _HOPELESS)
        return self.weights[part] * self._kind.divergence(self._source[part], found)

    def race(self, choice: Choice, incumbent: FloatArray | None = None) -> Race:
        """Part by part, until it is lost against the incumbent's rows (those of all parts, in order) or all were seen."""
        seen: list[FloatArray] = []
        for part in range(len(self.parts)):
            seen.append(self.of(choice, part))
            found = np.concatenate(seen)
            last = part == len(self.parts) - 1
            if not last and incumbent is not None and is_lost(found, incumbent[: len(found)], self.rows):
                return Race(found, False)
        return Race(np.concatenate(seen), True)

    def settings(self, choice: Choice) -> list[Setting]:
        """How every stage runs under a choice."""
        start = Plan()
        for layer, hard in choice.hard:
            start = start.with_hard_attention(layer, hard.k, hard.mode)
        plain = self.sessions.settings(start)
        rounded = self.sessions.rounded.settings(start) if self.sessions.rounded is not None else plain
        return [
            self._setting(stage, settings, choice)
            for stage, *settings in zip(self.sessions.stages, plain, rounded, strict=True)
        ]

    def _setting(self, stage: Stage, settings: Sequence[Setting], choice: Choice) -> Setting:
        """The weights of the rungs as feeds, where a block of the stage is not as it was.

        settings   of the stage in float32, and rounded. What stands in one stage is rounded together, if all of it is.
        """
        units = self.levels.units
        numbers = {(b.layer, b.kind): self._unit_at.get((b.kind, b.layer)) for b in stage.blocks}
        rungs = {at: (n, choice.rungs[n]) for at, n in numbers.items() if n is not None}
        int8 = bool(rungs) and all(units[n].rungs[rung].int8 for n, rung in rungs.values())
        setting = dataclasses.replace(settings[int8], int8=int8)
        if all(units[n].is_whole(rung) for n, rung in rungs.values()):
            return setting
        feeds: dict[str, Array] = dict(setting.feeds)
        for (layer, _), (unit, rung) in rungs.items():
            feeds.update(self._weights(unit, rung, layer))
        feeds.update(self._own_weights(numbers))
        name = ",".join(f"{unit}:{rung}" for unit, rung in rungs.values())
        form: Form = "weighed" if setting.form == "plain" else "tuned"
        return Setting(form, feeds, f"{name} {setting.digest.hex()}", int8)

    def _weights(self, unit: int, rung: int, layer: int) -> dict[str, Array]:
        key = (unit, rung, layer)
        if key not in self._feeds:
            place = writable(self.sessions.staged.examined, layer, self.levels.units[unit].kind)
            assert place is not None
            while self._feeds and sum(a.nbytes for f in self._feeds.values() for a in f.values()) > _FEEDS_BYTES:
                del self._feeds[next(iter(self._feeds))]
            self._feeds[key] = weight_feeds(place, *self.levels.full_weight(unit, rung))
        return self._feeds[key]

    def _own_weights(self, numbers: Mapping[tuple[int, Any], int | None]) -> dict[str, Array]:
        """The source's own weights of blocks in the same stage that are no units."""
        found: dict[str, Array] = {}
        for (layer, kind), number in numbers.items():
            place = writable(self.sessions.staged.examined, layer, kind) if number is None else None
            if place is not None and place.bias is not None:
                found.update({str(v.name): v.const_value.numpy() for v in (place.weight, place.bias)})  # type: ignore[union-attr]
        return found


def scorer_of(sessions: StageSessions, rows: Rows, encoded: Encoded, reading: Reading, cache_bytes: int) -> StageScorer:
    """The scorer of one part."""
    return StageScorer(
        sessions,
        sessions.staged.examined.anatomy,
        encoded,
        rows,
        reading.task,
        reading.label_map,
        output=reading.output,
        cache_bytes=cache_bytes,
    )


__all__ = ["Divergence", "Race", "is_lost", "scorer_of"]
