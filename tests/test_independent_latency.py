"""The clock that is not ours: what LoadGen measures, how its log is read, and when two figures agree."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

from independent_latency import SCENARIOS, interval, summary, table

BENCH = Path(__file__).resolve().parents[1] / "bench"


def runs(ours: float, theirs: float, noise: float = 0.0, count: int = 10, stated: bool = True) -> list[dict[str, Any]]:
    """Repetitions in which each clock finds its own ratio, up to noise; the result takes 1 ms by both."""
    generator = np.random.default_rng(0)

    def one() -> dict[str, Any]:
        us, them = (x * float(np.exp(generator.normal(0, noise))) for x in (ours, theirs))
        own = {"source": us, "result": 1.0, "faster": [us, 0.98 * us, 1.02 * us], "stated": stated, "why": ""}
        return {
            "loadgen": {scenario: {"source": them, "result": 1.0} for scenario in SCENARIOS},
            "ours": dict.fromkeys(SCENARIOS, own),
        }

    return [one() for _ in range(count)]


def test_equal_figures_agree_and_a_planted_bias_does_not() -> None:
    assert summary(runs(2.0, 2.0, 0.01))["scenarios"]["Offline"]["agree"] is True
    found = summary(runs(2.1, 2.0, 0.01))["scenarios"]["Offline"]
    assert found["agree"] is False
    assert found["ours / loadgen"][0] == pytest.approx(1.05, abs=0.01)
    assert found["ms, ours / loadgen"]["result"] == [1.0, 1.0, 1.0]


def test_repetitions_that_ours_does_not_state_decide_nothing() -> None:
    found = summary(runs(2.1, 2.0, stated=False))["scenarios"]["SingleStream"]
    assert (found["agree"], found["stated"], found["reach"], found["ours"]) == (None, 0, 0, None)
    text = table(
        {
            "hardware": {"cpu": "c", "cores_usable": 2, "onnxruntime": "1"},
            "loadgen": "6",
            **summary(runs(2.1, 2.0, stated=False)),
        }
    )
    assert "undecided" in text and "nan" not in text


def test_the_interval_over_repetitions_holds_the_truth_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(1), 0
    for _ in range(2000):
        found = interval(np.exp(generator.normal(0.7, 0.05, 8)).tolist())
        assert found is not None
        held += found[1] <= float(np.exp(0.7)) <= found[2]
    assert 0.93 < held / 2000 < 0.97


def test_the_other_clock_shares_no_code_with_ours() -> None:
    tree = ast.parse((BENCH / "guarding" / "loadgen.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} == {
        "__future__", "collections", "json", "mlperf_loadgen", "numpy", "onnxruntime", "pathlib", "tempfile", "typing",
    }  # fmt: skip


def test_only_results_are_read_of_a_log() -> None:
    loadgen = pytest.importorskip("guarding.loadgen", exc_type=ImportError)
    log = "\n".join(
        [
            ':::MLLOG {"key": "result_50.00_percentile_latency_ns", "value": 1500, "metadata": {}}',
            ':::MLLOG {"key": "effective_min_duration_ms", "value": 7, "metadata": {}}',
            "another line",
        ]
    )
    assert loadgen.results(log) == {"result_50.00_percentile_latency_ns": 1500}


def test_loadgen_asks_one_row_at_a_time_or_all_at_once_and_finds_a_planted_delay() -> None:
    """A session that sleeps 4 ms a run: LoadGen never finds less than that, however slow the machine is."""
    loadgen = pytest.importorskip("guarding.loadgen", exc_type=ImportError)
    system = loadgen.System(str(BENCH.parent / "models" / "nli-mini" / "model.onnx"), 4, 8, 500, 1, 0)
    system.session = Sleeper(0.004)
    single = loadgen.asked(system, "SingleStream", 0.3)
    assert single["result_min_latency_ns"] >= 4e6
    assert set(system.queries) == {1} and single["result_query_count"] == len(system.queries) >= 64
    system.queries.clear()
    system.session.rows.clear()
    offline = loadgen.asked(system, "Offline", 0.1, 1000.0)
    assert len(system.queries) == 1 and sum(system.session.rows) == system.queries[0]
    assert set(system.session.rows[:-1]) == {8}
    assert offline["result_samples_per_second"] <= 8 / 0.004


class Sleeper:
    """A session that sleeps; `rows` of every run."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.rows = seconds, list[int]()

    def run(self, outputs: None, feeds: dict[str, Any]) -> None:
        """One run."""
        import time

        self.rows.append(len(next(iter(feeds.values()))))
        time.sleep(self.seconds)
