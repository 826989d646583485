"""The compensated search on a tiny model, the whole line: its goals, its frontier, interruption and resumption."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axformer_onnx.commands.optimization import OptimizeOptions, OptimizeResult, Watcher, optimize
from axformer_onnx.commands.replay import apply
from axformer_onnx.errors import UsageError
from axformer_onnx.result.report.record import Report
from axformer_onnx.runtime.sessions import make_session
from axformer_onnx.search.compensated import tuning as tune
from axformer_onnx.search.compensated.levels import ladder
from axformer_onnx.search.compensated.operating_points import Builder
from axformer_onnx.tasks.definitions import get_task
from axformer_passes.apply import apply_plan
from axformer_passes.plan import Plan

tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")
pytestmark = pytest.mark.usefixtures("latency_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=160)


@dataclasses.dataclass(frozen=True)
class Observed:
    """A run, how many graphs lay on the disk at each point of its frontier, and what was applied behind the search."""

    result: OptimizeResult
    graphs: list[int]
    late: list[Plan]


@pytest.fixture(scope="module")
def observed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    output, graphs, late = tmp_path_factory.mktemp("whole") / "out", list[int](), list[Plan]()

    def part(doing: str, done: int, of: int) -> None:
        if doing == "building the frontier":
            graphs.append(len([*output.glob(".writing-*/frontier/*/model.onnx")]))

    def applied(model: Any, plan: Plan, *rest: Any, **more: Any) -> Any:
        late.append(plan)
        return apply_plan(model, plan, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("axformer_passes.apply.apply_plan", applied)  # as what comes after the search finds it
        return Observed(run(folder, output, Watcher(part=part), max_drop=20.0), graphs, late)


@pytest.fixture(scope="module")
def whole(observed: Observed) -> OptimizeResult:
    return observed.result


@pytest.fixture(scope="module")
def sized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    """The size of a file is the goal: it is not measured, so that another run of it ends with the same bytes."""
    return run(folder, tmp_path_factory.mktemp("sized") / "out", size=0.75)


@pytest.fixture(scope="module")
def unnarrowed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    """The default goal, without the exact rewrites."""
    return run(folder, tmp_path_factory.mktemp("unnarrowed") / "out", readout="whole", keys_values="projected")


def run(folder: Path, output: Path, watcher: Watcher | None = None, **changes: Any) -> OptimizeResult:
    options = {"length": (8,), "threads": 1, "effort": "low", **changes}
    return optimize(OptimizeOptions(model=folder, task=get_task("mnli"), output=output, **options), watcher)


def test_an_answer_whose_graph_was_deleted_is_built_again(
    folder: Path, sized: OptimizeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = Builder.keep_graphs
    monkeypatch.setattr(Builder, "keep_graphs", lambda self, points: delete(self, []))
    again = run(folder, tmp_path / "out", size=0.75)
    assert again.path.read_bytes() == sized.path.read_bytes()


def stopper(what: str, error: BaseException) -> Watcher:
    def part(doing: str, done: int, of: int) -> None:
        if doing == what and done >= 1:
            raise error

    return Watcher(part=part)


def test_output_is_a_model_folder_with_the_plan_its_weights_and_the_frontier(whole: OptimizeResult) -> None:
    names = {path.name for path in whole.output.iterdir()}
    assert names == {
        "model.onnx", "plan.json", "plan.safetensors", "report.html", "report.json", "report.md", "journal.jsonl",
        "tokenizer.json",
        "config.json", "frontier",
    }  # fmt: skip
    make_session(whole.output / "model.onnx", threads=1)
    report = Report.load(whole.output / "report.json")
    assert report == whole.report and report.compensation is not None
    assert report.search.kind == "compensated" and report.compensation.goal == "--max-drop 20"
    assert report.compensation.work < report.compensation.plain_work
    assert report.candidate.size_bytes < report.source.size_bytes
    assert whole.plan.readout == "narrow" and whole.plan.weights == "plan.safetensors"
    assert whole.plan.keys_values == "absorbed"
    text = (whole.output / "report.md").read_text()
    assert "The frontier" in text and "<- the result" in text


def test_every_point_of_the_frontier_is_a_plan_that_apply_builds(
    folder: Path, whole: OptimizeResult, tmp_path: Path
) -> None:
    assert whole.report.compensation is not None
    points = whole.report.compensation.frontier
    assert len(points) >= 6 and sum(point.chosen for point in points) == 1
    assert [point.plan.parent for point in whole.frontier] == [whole.output / "frontier"] * len(points)
    assert [point.speedup.value for point in whole.frontier] == sorted(point.speedup.value for point in points)
    for number, point in enumerate(points):
        path = apply(whole.output / point.folder / "plan.json", folder, tmp_path / f"{number}.onnx")
        assert path.stat().st_size == point.size_bytes
        if point.chosen:
            assert path.read_bytes() == (whole.output / "model.onnx").read_bytes()


def test_plan_replays_to_the_same_bytes(folder: Path, whole: OptimizeResult, tmp_path: Path) -> None:
    path = apply(whole.output / "plan.json", folder, tmp_path / "again.onnx")
    assert path.read_bytes() == (whole.output / "model.onnx").read_bytes()


def test_graphs_lie_on_the_disk_while_they_may_win_and_the_winner_is_not_built_again(
    observed: Observed,
) -> None:
    assert len(observed.graphs) >= 3 and min(observed.graphs) >= 1
    assert max(observed.graphs) < len(observed.result.frontier), (
        "those that the table calls as fast as the fastest, no others"
    )
    assert len(observed.late) == 1 and observed.late[0].weights is None, "the random plan of equal size alone"
    assert observed.result.plan.weights is not None
    assert not [*observed.result.output.glob("frontier/*/model.onnx*")]


def test_no_drop_is_the_default_and_the_choice_holds_it(unnarrowed: OptimizeResult) -> None:
    compensation = unnarrowed.report.compensation
    assert compensation is not None and compensation.goal == "--max-drop 0"
    chosen = next(point for point in compensation.frontier if point.chosen)
    assert chosen.drop <= 1e-9


def test_size_goal_is_met_by_the_file(sized: OptimizeResult) -> None:
    assert sized.report.compensation is not None and sized.report.compensation.reached
    assert sized.report.candidate.size_bytes <= 0.75 * sized.report.source.size_bytes


def test_goals_out_of_reach_are_one_line_that_says_what_is_reachable(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--speedup 900 is out of reach: .* is \d+\.\d\dx as fast at 1 x 8"):
        run(folder, tmp_path / "a", speedup=900.0)
    with pytest.raises(UsageError, match=r"--size 0\.01 is out of reach: .* the file is 0\.\d\d of the source's"):
        run(folder, tmp_path / "b", size=0.01)


def test_killed_run_resumes_to_the_same_plan_weights_and_model(
    folder: Path, sized: OptimizeResult, tmp_path: Path
) -> None:
    for what in ("sweep", "building the frontier"):
        with pytest.raises(MemoryError):
            run(folder, tmp_path / "out", stopper(what, MemoryError()), size=0.75)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["journal.jsonl"]
    journal = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
    facts = {json.loads(line).get("fact") for line in journal}
    assert "latency table" in facts
    resumed = run(folder, tmp_path / "out", size=0.75)
    again = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
    assert again[: len(journal)] == journal
    measured = [fact for line in again if (fact := json.loads(line).get("fact"))]
    assert len(measured) == len(set(measured)), "a fact was measured again"
    assert resumed.plan == sized.plan and resumed.plan.readout == "narrow"
    for name in ("plan.json", "plan.safetensors", "model.onnx"):
        assert (resumed.output / name).read_bytes() == (sized.output / name).read_bytes(), name


def test_ctrl_c_ends_with_the_best_so_far(folder: Path, tmp_path: Path) -> None:
    stopped = run(folder, tmp_path / "out", stopper("building the frontier", KeyboardInterrupt()), max_drop=9)
    assert stopped.report.search.interrupted
    assert "interrupted: run the same command again" in (stopped.output / "report.md").read_text()
    make_session(stopped.output / "model.onnx", threads=1)


@pytest.mark.sampled(0)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # loky tells that a worker stopped
@pytest.mark.parametrize("killing", [False, True])
def test_other_processes_end_with_the_same_plan_and_weights(
    folder: Path, tmp_path: Path, killing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    from joblib.externals.loky import reusable_executor

    def kill(doing: str, done: int, of: int) -> None:
        executor = reusable_executor._executor  # type: ignore[attr-defined]
        if doing.startswith("tuning") and not killed and executor is not None and executor._processes:
            killed.append(next(iter(executor._processes)))
            os.kill(killed[0], signal.SIGKILL)

    _same_in_other_processes(folder, tmp_path, monkeypatch, Watcher(part=kill) if killing else None, jobs=4)
    assert bool(killed) == killing


@pytest.mark.sampled(0)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_local_ray_cluster_ends_with_the_same_plan_and_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the [ray] extra")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        _same_in_other_processes(folder, tmp_path, monkeypatch, None, jobs=2, backend="ray")
    finally:
        ray.shutdown()


def _same_in_other_processes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watcher: Watcher | None, **more: Any
) -> None:
    """The size of a file is the goal: it is not measured, so that nothing but the scoring could differ."""
    monkeypatch.setitem(tune.EFFORTS, "medium", tune.Effort(2000, 2000, 40, 3, 60, 12))
    changes: dict[str, Any] = {"size": 0.75, "effort": "medium"}
    alone = run(folder, tmp_path / "alone", **changes)
    spread = run(folder, tmp_path / "spread", watcher, **more, **changes)
    for name in ("plan.json", "plan.safetensors", "model.onnx"):
        assert (spread.output / name).read_bytes() == (alone.output / name).read_bytes()


def test_whole_readout_is_left_whole_and_keys_and_values_are_left_projected(unnarrowed: OptimizeResult) -> None:
    result = unnarrowed
    assert result.plan.readout == "whole" and result.plan.keys_values == "projected"
    text = (result.output / "plan.json").read_text()
    assert "readout" not in text and "keys_values" not in text


@pytest.mark.parametrize("kind", ["attention", "feed_forward"])
@pytest.mark.parametrize("size", [1, 2, 3, 12, 16, 40, 56, 64, 300, 1536, 3072])
def test_ladder_falls_from_the_whole_block_to_none(kind: Any, size: int) -> None:
    counts = ladder(kind, size)
    assert counts[0] == size and counts[-1] == 0 and (np.diff(counts) < 0).all()
    assert len(counts) <= 42


def test_plan_says_narrow_and_reads_it_back() -> None:
    plan = Plan(readout="narrow")
    assert Plan.loads(plan.dumps()) == plan and not plan.is_empty and plan.is_exact
    assert "readout" not in Plan().dumps()


def test_refit_of_the_classifier_is_named_and_replays(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "out", size=0.8, refit_classifier=True)
    assert any("--refit-classifier" in note for note in result.report.notes)
    path = apply(result.output / "plan.json", folder, tmp_path / "again.onnx")
    assert path.read_bytes() == (result.output / "model.onnx").read_bytes()
