"""Latency rows: what is compared with what. No figure of a clock is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_classifier import tiny_classifier

from axformer_onnx.errors import DataError, RuntimeFailure
from axformer_onnx.runtime import rounds
from axformer_onnx.runtime.latency import LatencyRow, compare_latency, make_feeds
from axformer_onnx.runtime.rounds import Budget
from axformer_onnx.runtime.sessions import make_session
from axformer_onnx.scoring import evaluation
from axformer_onnx.scoring.evaluation import latency_warnings
from axformer_passes.probe import TokenSequence

TABLE = np.ones((50, 3), dtype=np.float32)
NAMES = ["input_ids", "attention_mask"]


class Recorded:
    """A session that notes when it runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.session = name, log, make_session(tiny_classifier(TABLE), threads=1)

    def run(self, *arguments: Any) -> Any:
        self.log.append(self.name)
        return self.session.run(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def test_every_model_has_a_row_a_shape_and_ratios_are_to_the_first() -> None:
    sessions = {name: make_session(tiny_classifier(TABLE), threads=1) for name in ("source", "candidate")}
    shapes = [(batch, length, make_feeds(NAMES, batch, length, vocab_size=50)) for batch, length in ((1, 4), (3, 7))]
    rows = compare_latency(sessions, shapes, rounds=6, warmup=1, min_seconds=0)
    assert [(row.model, row.batch, row.length) for row in rows] == [
        ("source", 1, 4), ("candidate", 1, 4), ("source", 3, 7), ("candidate", 3, 7),
    ]  # fmt: skip
    for source, candidate in zip(rows[::2], rows[1::2], strict=True):
        assert source.ratio is None
        assert candidate.ratio is not None
        assert candidate.ratio.low <= candidate.ratio.value <= candidate.ratio.high
        assert 0 < candidate.p50_ms <= candidate.p95_ms
        assert 0 <= candidate.kept <= candidate.rounds and candidate.reliable == (not candidate.why)
        assert source.rounds == candidate.rounds == 6
        assert len(candidate.wall_ms) == 6 and np.percentile(candidate.wall_ms, 95) == pytest.approx(candidate.p95_ms)


def test_models_run_in_turns_in_orders_that_vary() -> None:
    log: list[str] = []
    sessions = {name: Recorded(name, log) for name in "AB"}
    compare_latency(sessions, [(1, 4, make_feeds(NAMES, 1, 4, vocab_size=50))], rounds=20, warmup=1, min_seconds=0)
    turns = [tuple(log[i : i + 2]) for i in range(0, len(log), 2)]
    assert all(set(one) == {"A", "B"} for one in turns)
    made = turns[2:]
    assert {("A", "B"), ("B", "A")} == set(made)
    assert all(first == second[::-1] for first, second in zip(made[::2], made[1::2], strict=True))


def test_a_session_that_does_not_run_is_named() -> None:
    feeds = make_feeds(NAMES, 1, 4, vocab_size=500)
    feeds["input_ids"][:] = 499
    with pytest.raises(RuntimeFailure, match="candidate: ONNX Runtime could not run it"):
        compare_latency({"candidate": make_session(tiny_classifier(TABLE))}, [(1, 4, feeds)])


def test_random_feeds_have_the_shape_and_only_known_inputs() -> None:
    feeds = make_feeds([*NAMES, "position_ids"], 2, 5, vocab_size=9)
    assert all(value.shape == (2, 5) and value.dtype == np.int64 for value in feeds.values())
    assert feeds["input_ids"].max() < 9
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    with pytest.raises(DataError, match="pixel_values"):
        make_feeds(["pixel_values"], 1, 1)


def test_a_figure_of_a_disturbed_machine_is_told_with_its_reason() -> None:
    steady = LatencyRow("a", 1, 32, 10.0, 13.0, None, 50, kept=50)
    disturbed = LatencyRow(
        "b", 8, 128, 2.0, 23.0, None, 50, kept=3, reliable=False, why="other processes kept 2 cores busy"
    )
    (warning,) = latency_warnings([steady, disturbed])
    assert "8 x 128" in warning and "other processes kept 2 cores busy" in warning


def test_threads_of_one_session_do_not_spin_while_another_is_timed() -> None:
    options = make_session(tiny_classifier(TABLE)).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_rounds_are_made_until_enough_are_undisturbed_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MOST_ROUNDS", 300)
    budget = Budget(rounds=30, warmup=1, min_seconds=1.0, max_seconds=10.0)
    assert budget.goes_on(29, 2.0, enough=True) and budget.goes_on(200, 0.9, enough=True)
    assert not budget.goes_on(30, 1.0, enough=True)
    assert budget.goes_on(30, 3.9, enough=False) and not budget.goes_on(30, 4.0, enough=False)
    slow = Budget(rounds=30, warmup=1, min_seconds=1.0, max_seconds=4.0)
    assert slow.goes_on(4, 99.0, enough=False) and not slow.goes_on(5, 4.0, enough=False)


@pytest.mark.parametrize("clock", ["wall", "either", "cpu"])
def test_cpu_time_is_asked_of_sessions_on_one_thread(
    clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.onnx").write_bytes(tiny_classifier(TABLE))
    asked: dict[str, Any] = {}

    def compare(sessions: dict[str, Any], feeds: Any, **rest: Any) -> list[LatencyRow]:
        asked.update(rest, sessions=sessions)
        return []

    monkeypatch.setattr(evaluation, "compare_latency", compare)
    tokens = TokenSequence(words=range(5, 40))
    models, machine = {"a": tmp_path / "a.onnx"}, evaluation.Machine(threads=2)
    evaluation.latency_of(models, [(1, 8)], tokens, machine, 0, wait_seconds=9.0, clock=clock)

    def threads(sessions: dict[str, Any]) -> list[int]:
        return [one.get_session_options().intra_op_num_threads for one in sessions.values()]

    assert asked["cpu_time"] == (clock == "cpu") and threads(asked["sessions"]) == [1 if clock == "cpu" else 2]
    assert asked["wait_seconds"] == (0.0 if clock == "cpu" else 9.0)
    assert (asked["on_one_thread"] is not None) == (clock == "either")
    assert clock != "either" or threads(asked["on_one_thread"]()) == [1]
