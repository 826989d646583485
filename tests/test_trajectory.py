"""What a compensated search tries is a function of the seed, the latency table and the losses: no clock has a part in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from axformer_onnx.commands import OptimizeResult, optimize
from axformer_onnx.options import OptimizeOptions
from axformer_onnx.records import Interval
from axformer_onnx.runtime import LatencyRow
from axformer_onnx.scoring import evaluation, plan_clock
from axformer_onnx.search.compensated import goals, latency_table, tuning
from axformer_onnx.searches import Watcher
from axformer_onnx.tasks import get_task
from axformer_passes.plan import Plan

tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")

SPEEDUP, FEWEST = 1.8, 3
GOALS = {"speedup": {"speedup": SPEEDUP}, "drop": {"max_drop": 20.0}}
SOURCE_MS, MODEL_MS, HEAD_MS, NEURON_MS = 11.0, 10.0, 0.25, 0.02


def made_up_ms(what: Plan | Path) -> float:
    """What a plan for three layers of 4 heads and 56 neurons costs, the more the more is left: sums of prices do not quite hold."""
    if isinstance(what, Path):
        return SOURCE_MS
    heads, neurons = (sum(len(gone) for gone in part.values()) for part in (what.heads, what.neurons))
    hard = 0.4 * len(what.hard_attention)
    return MODEL_MS + hard - (HEAD_MS * heads + NEURON_MS * neurons) * (0.8 + 0.2 * heads / 12)


@dataclasses.dataclass(frozen=True)
class MadeUpSession:
    """A session that is only asked what it costs and what it reads."""

    what: Plan | Path

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input_ids")]


def made_up_comparison(sessions: dict[str, MadeUpSession], feeds: Any, **rest: Any) -> list[Any]:
    ms = [made_up_ms(session.what) for session in sessions.values()]
    return [
        SimpleNamespace(
            p50_ms=x,
            reliable=True,
            ratio=SimpleNamespace(value=ms[0] / x) if i else None,
            log_ratio=SimpleNamespace(error=0.0) if i else None,
        )
        for i, x in enumerate(ms)
    ]


def wild(seed: int) -> Callable[..., list[LatencyRow]]:
    """A stopwatch that says anything between a hundredth and a hundred times the truth."""
    rng = np.random.default_rng(seed)

    def disturbed(sessions: dict[str, Any], feeds: Any, **rest: Any) -> list[LatencyRow]:
        return [
            LatencyRow(name, batch, length, ratio, ratio, Interval(ratio, ratio, ratio) if i else None, 30)
            for batch, length, _ in feeds
            for i, (name, ratio) in enumerate(
                zip(sessions, np.exp(rng.normal(0, 2, len(sessions))).tolist(), strict=True)
            )
        ]

    return disturbed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=120)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", autouse=True)
def made_up_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A latency table that no stopwatch has a part in; few rows."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency_table, "_cache_folder", lambda: cache)
        patch.setattr(plan_clock, "apply_plan", lambda model, plan, runner, examined: plan)
        patch.setattr(plan_clock, "detached", lambda plan: plan)
        patch.setattr(plan_clock, "make_session", lambda what, **rest: MadeUpSession(what))
        patch.setattr(plan_clock, "compare_latency", made_up_comparison)
        patch.setattr(goals, "FEWEST", FEWEST)
        patch.setattr(goals, "LADDER", ())
        patch.setattr(goals, "REFINED", 1)
        patch.setitem(tuning.EFFORTS, "medium", tuning.Effort(1500, 1500, 40, 3, 60, 16))
        yield


def run(
    folder: Path, output: Path, goal: str, clock: int, watcher: Watcher | None = None, **more: Any
) -> OptimizeResult:
    options = {"length": (8,), "threads": 1, **GOALS[goal], **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "compare_latency", wild(clock))
        return optimize(OptimizeOptions(model=folder, task=get_task("mnli"), output=output, **options), watcher)


@pytest.fixture(scope="module")
def once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OptimizeResult]:
    """The run by the first clock, for a goal; made once."""

    @cache
    def of(goal: str) -> OptimizeResult:
        return run(folder, tmp_path_factory.mktemp(goal) / "out", goal, clock=1)

    return of


@pytest.fixture(scope="module")
def again(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    """The same for a speedup, by another clock."""
    return run(folder, tmp_path_factory.mktemp("again") / "out", "speedup", clock=2)


def frontier(result: OptimizeResult) -> list[tuple[bytes, bytes]]:
    """(plan, weights) of every point, in the order of the table's speeds."""
    assert result.report.compensation is not None
    folders = [result.output / point.folder for point in result.report.compensation.frontier]
    return [
        tuple(path.read_bytes() if (path := at / name).is_file() else b"" for name in ("plan.json", "plan.safetensors"))
        for at in folders
    ]  # type: ignore[misc]


def tried(result: OptimizeResult) -> list[tuple[str, Any]]:
    """What the journal says, in order, with the answers; of measured speeds the questions alone."""
    lines = [json.loads(line) for line in (result.output / "journal.jsonl").read_text().splitlines()[1:]]
    return [(x["fact"], None if x["fact"].startswith("speedup ") else x["value"]) for x in lines]


def speeds(result: OptimizeResult) -> list[float]:
    assert result.report.compensation is not None
    return [point.speedup.value for point in result.report.compensation.frontier]


def test_two_disturbed_clocks_end_with_the_same_candidates_and_the_same_frontier(
    once: Callable[[str], OptimizeResult], again: OptimizeResult
) -> None:
    first = once("speedup")
    assert speeds(first) != speeds(again), "the clocks are disturbed"
    assert sum(name.startswith("races ") for name, _ in tried(first)) >= 3
    assert tried(first) == tried(again)
    assert frontier(first) == frontier(again) and len(frontier(first)) >= FEWEST


def test_a_run_that_is_killed_goes_on_by_another_clock_to_the_same_frontier(
    folder: Path, once: Callable[[str], OptimizeResult], tmp_path: Path
) -> None:
    def kill(doing: str, done: int, of: int) -> None:
        if doing == "building the frontier" and done >= 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(folder, tmp_path / "out", "drop", clock=1, watcher=Watcher(part=kill))
    resumed = run(folder, tmp_path / "out", "drop", clock=3)
    assert tried(resumed) == tried(once("drop")) and frontier(resumed) == frontier(once("drop"))
    same = [one == other for one, other in zip(speeds(resumed), speeds(once("drop")), strict=True)]
    assert 2 <= sum(same) < len(same), "what was measured before is not measured again, what follows is"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # loky tells that a worker stopped
def test_two_processes_end_with_the_same_candidates_and_the_same_frontier(
    folder: Path, once: Callable[[str], OptimizeResult], tmp_path: Path
) -> None:
    spread = run(folder, tmp_path / "out", "speedup", clock=4, jobs=2)
    assert tried(spread) == tried(once("speedup")) and frontier(spread) == frontier(once("speedup"))


@pytest.mark.sampled(0)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_local_ray_cluster_ends_with_the_same_frontier_and_says_no_word_of_its_own(
    folder: Path,
    once: Callable[[str], OptimizeResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    ray = pytest.importorskip("ray", reason="needs the [ray] extra")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    expected, seen = once("drop"), list[str]()
    capfd.readouterr()
    watcher = Watcher(part=lambda doing, done, of: seen.append(doing))
    spread = run(folder, tmp_path / "out", "drop", clock=6, watcher=watcher, jobs=2, backend="ray")
    assert not ray.is_initialized(), "who starts it ends it"
    assert tried(spread) == tried(expected) and frontier(spread) == frontier(expected)
    assert capfd.readouterr().err == ""
    assert any(what.startswith("Ray started in ") for what in seen)
    start = "Ray (a local cluster of 2 processes) took "
    assert sum(note.startswith(start) for note in spread.report.notes) == 1


def test_a_speedup_is_built_from_what_the_table_promises_up_to_its_error(once: Callable[[str], OptimizeResult]) -> None:
    compensation = once("speedup").report.compensation
    assert compensation is not None and compensation.table is not None
    assert compensation.table.plans >= 3 and compensation.table.bias != 0
    error = max(compensation.table.worst, 0.02)
    predicted = [point.predicted for point in compensation.frontier]
    assert predicted == sorted(predicted) and len(predicted) <= FEWEST + 1
    near = [p for p in predicted if SPEEDUP <= p <= SPEEDUP * (1 + error) * 1.03]
    assert len(near) >= 2, "one that is promised, and those that are fast enough where the table promises too much"
    assert min(near) < SPEEDUP * 1.03


def test_the_answer_is_what_the_clock_calls_fast_enough_within_the_error_of_the_table(
    once: Callable[[str], OptimizeResult], again: OptimizeResult
) -> None:
    for number, result in enumerate((once("speedup"), again)):
        compensation = result.report.compensation
        assert compensation is not None and compensation.table is not None
        error = min(max(compensation.table.worst, 0.02), 0.15)
        points = compensation.frontier
        fast = [p for p in points if p.speedup.value >= SPEEDUP and p.predicted * (1 + error) >= SPEEDUP]
        (chosen,) = [p for p in points if p.chosen]
        assert compensation.reached == bool(fast), number
        if fast:
            assert chosen.divergence == min(p.divergence for p in fast)


def test_the_report_says_how_wrong_the_table_is(once: Callable[[str], OptimizeResult]) -> None:
    text = (once("drop").output / "report.md").read_text()
    assert "The latency table, tried on " in text and "% at worst." in text
    facts = dict(tried(once("drop")))
    table = once("drop").report.compensation.table  # type: ignore[union-attr]
    assert table is not None and table.model_dump() == {**facts["latency table"]["error"], "cpu_time": False}
