"""Candidates evaluated, from the journal where it has the answer, else here or in workers; and counted."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from axformer_onnx.records import FloatArray
from axformer_onnx.search.compensated.divergence import Race
from axformer_onnx.search.compensated.levels import Choice
from axformer_onnx.search.compensated.workers import Question, Scoring

if TYPE_CHECKING:
    from axformer_onnx.search.journal import Journal


@dataclasses.dataclass
class Evaluator:
    """Evaluates candidates by `scoring`, unless the journal has them.

    evaluations   candidates evaluated so far; `hard` of them with hard attention, `computed` of them not from the journal
    """

    scoring: Scoring
    journal: Journal
    evaluations: int = 0
    hard: int = 0
    computed: int = 0

    def races(self, choices: Sequence[Choice], incumbent: FloatArray | None) -> list[Race]:
        """Race every choice against the incumbent's rows (None: on all rows)."""
        self.evaluations += len(choices)
        self.hard += sum(bool(choice.hard) for choice in choices)
        against = "nothing" if incumbent is None else f"{incumbent.mean():.9g}"
        questions = [Question(choice, None, incumbent) for choice in choices]
        races = self.journal.fact(
            f"races {_digest(choices)} against {against}", lambda: [_race_json(r) for r in self.compute(questions)]
        )
        return [_race_from(race) for race in races]

    def means(self, fact: str, choices: Sequence[Choice], parts: int) -> list[float]:
        """Mean divergence of every choice over the first `parts` parts of the rows; `fact`: its name in the journal."""
        self.evaluations += len(choices)
        questions = [Question(choice, parts) for choice in choices]
        found: list[float] = self.journal.fact(fact, lambda: [race.mean for race in self.compute(questions)])
        return found

    def compute(self, questions: Sequence[Question]) -> list[Race]:
        """Neighbours are those that are alike up to a stage, since they share what it reads."""
        self.computed += len(questions)
        order = sorted(range(len(questions)), key=lambda i: questions[i].choice.rungs)
        found = dict(zip(order, self.scoring([questions[i] for i in order]), strict=True))
        return [found[i] for i in range(len(questions))]


def _digest(choices: Sequence[Choice]) -> str:
    return hashlib.sha256(repr(list(choices)).encode()).hexdigest()[:16]


def _race_json(race: Race) -> dict[str, Any]:
    return {"divergence": race.divergence.tolist(), "finished": race.finished}


def _race_from(data: dict[str, Any]) -> Race:
    return Race(np.array(data["divergence"]), bool(data["finished"]))


__all__ = ["Evaluator"]
