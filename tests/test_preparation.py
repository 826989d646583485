"""Candidates of a search: neighbours share what they can, every answer comes back to its question, and rows are sampled fairly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from axformer_onnx.search.compensated.divergence import Race
from axformer_onnx.search.compensated.evaluator import Evaluator
from axformer_onnx.search.compensated.levels import Choice
from axformer_onnx.search.compensated.row_sampling import drawn_from_pool, sizes_of
from axformer_onnx.search.compensated.tuning import LEAST_ROWS
from axformer_onnx.search.compensated.workers import Question
from axformer_onnx.search.journal import open_journal
from axformer_onnx.tasks import CLASSIFICATION
from axformer_passes.plan import Hard

CANDIDATES = [Choice(rungs) for rungs in [(2, 0, 1), (0, 5, 0), (2, 0, 0), (0, 4, 9), (1, 1, 1)]]


class Scoring:
    """The divergence of a candidate is the sum of its rungs, on each of four rows."""

    def __init__(self) -> None:
        self.order = list[tuple[int, ...]]()

    def __call__(self, questions: Sequence[Question]) -> list[Race]:
        self.order.extend(question.choice.rungs for question in questions)
        return [Race(np.full(4, float(sum(question.choice.rungs))), True) for question in questions]


def test_what_is_alike_at_the_bottom_is_evaluated_one_after_the_other(tmp_path: Path) -> None:
    scoring = Scoring()
    with open_journal(tmp_path / "journal.jsonl", {}) as journal:
        found = Evaluator(scoring, journal).compute([Question(choice) for choice in CANDIDATES])
    assert [race.mean for race in found] == [sum(choice.rungs) for choice in CANDIDATES]
    assert scoring.order == sorted(choice.rungs for choice in CANDIDATES)


def test_what_the_journal_knows_is_counted_and_not_computed_again(tmp_path: Path) -> None:
    asked = [*CANDIDATES, CANDIDATES[0].with_hard(1, Hard(4))]
    answers, computed = [], []
    for _ in range(2):
        scoring = Scoring()
        with open_journal(tmp_path / "journal.jsonl", {}) as journal:
            evaluator = Evaluator(scoring, journal)
            means = evaluator.means("sweep", CANDIDATES, 1)
            answers.append((means, [race.mean for race in evaluator.races(asked, np.ones(4))]))
        assert (evaluator.evaluations, evaluator.hard) == (11, 1)
        computed.append((evaluator.computed, len(scoring.order)))
    assert answers[0] == answers[1] and computed == [(11, 11), (0, 0)]


@pytest.mark.parametrize(("rows", "asked"), [(1000, 300), (120, 120)])
def test_rows_are_drawn_from_a_pool_without_bias(rows: int, asked: int) -> None:
    logits = np.random.default_rng(3).normal(0, 3, (rows, 2))
    divergence = np.random.default_rng(4).lognormal(0, 1, rows)
    pools = list[int]()

    def sizes_at(pool: np.ndarray) -> np.ndarray:
        pools.append(len(pool))
        return sizes_of(logits[pool], CLASSIFICATION)

    means, drawn = [], np.empty(0, dtype=np.int64)
    for seed in range(200):
        drawn, weights = drawn_from_pool(rows, 100, LEAST_ROWS, seed, sizes_at)
        assert len(set(drawn.tolist())) == len(drawn) == min(100, max(96, rows * 2 // 3))
        means.append((weights * divergence[drawn]).mean())
    assert set(pools) == {asked} and drawn.max() < rows
    assert np.mean(means) == pytest.approx(divergence.mean(), abs=4 * np.std(means) / np.sqrt(len(means)))
